"""Plan and run a list of widenings, verifications and pushes, as `mupscale run` does.

A step is skipped if its output is complete and was made from the same input with the same options. mupscale.json
records the input, the options and the digests of both sides.
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
