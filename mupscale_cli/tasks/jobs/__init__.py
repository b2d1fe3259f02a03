"""What `mupscale run` does, as functions: a list of widenings, verifications and pushes, planned and done in order.

A step whose output is there, complete and made from the same input with the same options is not done again:
mupscale.json says from what and how an output was made, and has the digests of both sides.
"""

from mupscale_cli.tasks.jobs.planning import plan_job
from mupscale_cli.tasks.jobs.running import JobEvents, run_job
from mupscale_cli.tasks.jobs.steps import (
    JobPlan,
    PlannedStep,
    PushStep,
    Step,
    StepResult,
    VerifyStep,
    WidenStep,
    exit_code,
)

__all__ = [
    "JobEvents",
    "JobPlan",
    "PlannedStep",
    "PushStep",
    "Step",
    "StepResult",
    "VerifyStep",
    "WidenStep",
    "exit_code",
    "plan_job",
    "run_job",
]
