"""Plan the steps of a job from headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mupscale_cli.checkpoints.header import StoredTensor
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.checkpoints.target import check_output
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.engine.memory import WIDENING_BYTES, comparison_bytes, training_bytes
from mupscale_cli.errors import CheckpointError, MupscaleError, RunError
from mupscale_cli.plan import Plan
from mupscale_cli.record.reading import read_record
from mupscale_cli.tasks.finished import reason_to_write
from mupscale_cli.tasks.jobs.steps import JobPlan, PlannedStep, PushStep, Step, VerifyStep, WidenStep
from mupscale_cli.tasks.jobs.verified import is_recorded
from mupscale_cli.tasks.planning import comparison_memory, output_path, plan_source, require_class
from mupscale_cli.tasks.push import push_target
from mupscale_cli.tasks.source import Source, find_source
from mupscale_cli.tasks.space import disks, wide_state_bytes
from mupscale_cli.text import growth_factor


def plan_job(steps: Sequence[Step], *, overwrite: bool = False) -> JobPlan:
    """Plan a job from headers alone; write nothing. The classes of models that will be verified are built without data.

    A step may start from the output of an earlier one, whose plan describes it.

    Args:
        steps: the steps, in the order to run them in.
        overwrite: replace outputs that were made from another source or with other options.

    Raises:
        MupscaleError: a step is impossible, or two steps contradict each other.
    """
    made: dict[Path, Plan] = {}  # plans of the outputs of earlier steps, by their resolved paths
    states: dict[Path, int] = {}  # bytes of their optimizer states
    planned_steps: list[PlannedStep] = []
    taken: set[Path] = set()
    for number, step in enumerate(steps, 1):
        try:
            if isinstance(step, WidenStep):
                planned = _plan_widen(_replacing(step) if overwrite else step, made, states)
                real = planned.target.resolve()
                if real in taken:
                    raise RunError(f"two steps write `{planned.target}`", hint="give one of them another `output`")
                taken.add(real)
                if planned.status == "to do":
                    assert planned.plan is not None
                    made[real] = planned.plan
                    states[real] = planned.disk_bytes - planned.plan.num_bytes
            elif isinstance(step, VerifyStep):
                planned = _plan_verify(step, made)
            else:
                planned = _plan_push(step, made)
        except MupscaleError as error:
            error.message = f"step {number} ({step.kind}): {error.message}"
            error.args = (error.message,)
            raise
        planned_steps.append(planned)
    outputs = [(planned.target, planned.disk_bytes) for planned in planned_steps if planned.disk_bytes]
    downloads = {file: num_bytes for planned in planned_steps for file, num_bytes in planned.downloads.items()}
    return JobPlan(tuple(planned_steps), tuple(disks([*outputs, *downloads.items()])))


def _plan_widen(step: WidenStep, made: Mapping[Path, Plan], states: Mapping[Path, int]) -> PlannedStep:
    source = _source(step, made)
    options = step.options
    plan = plan_source(source, options)
    path = output_path(source, options)
    target = step.folder / path if source.hub and options.output is None else path
    why = reason_to_write(options, source, plan, target, made)
    if why is not None and target.exists():
        if not options.overwrite:
            raise RunError(
                f"`{target}` exists, but this step would write something else: {why}",
                hint="replace it with `overwrite: true` in the step or with `--overwrite`, or choose another `output`",
            )
        check_output(target, source.checkpoint.path, needed_bytes=0, overwrite=True)
    if why is not None:
        require_class(source, plan, options)
    factors = " ".join(
        f"{axis.name}={growth_factor(axis.size, axis.wide_size, axis.factor)}" for axis in plan.axes if axis.ratio > 1
    )
    compared = comparison_memory(plan, options.model) if options.verify else 0
    return PlannedStep(
        step,
        f"{step.checkpoint} -> {target} ({factors})",
        "skipped" if why is None else "to do",
        "complete, from the same input with the same options" if why is None else why,
        target,
        plan,
        0 if why is None else plan.num_bytes + wide_state_bytes(source, plan, options.state, states),
        {} if why is None else source.downloads(options.state),
        0 if why is None else max(WIDENING_BYTES, compared),
    )


def _replacing(step: WidenStep) -> WidenStep:
    """Return the step with `overwrite` set."""
    return replace(step, options=replace(step.options, overwrite=True))


def _source(step: WidenStep, made: Mapping[Path, Plan]) -> Source:
    """Open the checkpoint that a step starts from, or describe it if an earlier step will write it."""
    path = Path(step.checkpoint)
    if (plan := made.get(path.resolve())) is not None:
        return Source(_future_checkpoint(path, plan))
    return find_source(step.checkpoint, step.options.reading, recipe=step.options.recipe, headers_only=True)


def _future_checkpoint(path: Path, plan: Plan) -> Checkpoint:
    """Describe the checkpoint that a plan will write."""
    is_file = path.suffix == ".safetensors"
    tensors = {
        tensor.target.name: StoredTensor(tensor.target, path if is_file else path / shard.file, 0)
        for shard in plan.shards
        for tensor in shard.tensors
    }
    files = (path,) if is_file else tuple(path / shard.file for shard in plan.shards)
    return Checkpoint(path, is_file, files, tensors, plan.config, {})


def _plan_verify(step: VerifyStep, made: Mapping[Path, Plan]) -> PlannedStep:
    path = Path(step.wide)
    future = made.get(path.resolve())
    what = f"{', '.join(step.options.parts)} of " if step.options.only else ""
    title = f"{what}{step.wide}" + (f" against {step.options.narrow}" if step.options.narrow else "")
    if future is not None:
        sizes, largest = future.num_parameters, _largest(tensor.target for tensor in future.tensors)
    else:
        found = find_source(step.wide, headers_only=True).checkpoint
        sizes = read_record(found)["parameters"]["before"], sum(spec.num_elements for spec in found.specs)
        largest = _largest(found.specs)
    largest = max(sizes) if step.options.model else largest
    memory = 0.0 if "function" not in step.options.parts else comparison_bytes(largest)
    if step.options.steps:
        memory = max(memory, training_bytes(*sizes))
    is_done = future is None and path.exists() and is_recorded(step, open_checkpoint(path))
    reason = "verified with the same options" if is_done else "not verified yet"
    return PlannedStep(step, title, "skipped" if is_done else "to do", reason, path, memory_bytes=memory)


def _largest(specs: Iterable[TensorSpec]) -> int:
    """Return the elements of the largest tensor, which is converted as a whole at worst (`verification.streamed`)."""
    return max((spec.num_elements for spec in specs), default=0)


def _plan_push(step: PushStep, made: Mapping[Path, Plan]) -> PlannedStep:
    repository = push_target(step.target, step.options)
    path = Path(step.wide)
    future = made.get(path.resolve())
    if future is None and not path.exists():
        raise CheckpointError(
            f"no checkpoint at `{step.wide}`, and no earlier step writes it",
            hint="steps run in their order: move the `widen` step up",
        )
    return PlannedStep(step, f"{step.wide} as {repository}", "to do", "compares with the repository when it runs", path)
