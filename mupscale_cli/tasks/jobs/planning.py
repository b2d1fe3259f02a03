"""What each step of a job will do, decided from headers alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mupscale_cli.checkpoints.header import StoredTensor
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.checkpoints.staging import check_output
from mupscale_cli.engine.memory import WIDENING_BYTES, inference_bytes, training_bytes
from mupscale_cli.errors import CheckpointError, MupscaleError, RunError
from mupscale_cli.plan import Plan
from mupscale_cli.record.reading import read_record
from mupscale_cli.tasks.jobs.finished import is_recorded, reason_to_write
from mupscale_cli.tasks.jobs.steps import Disk, JobPlan, PlannedStep, PushStep, Step, VerifyStep, WidenStep
from mupscale_cli.tasks.planning import output_path, plan_source
from mupscale_cli.tasks.push import push_target
from mupscale_cli.tasks.source import Source, find_source

_FLOAT64 = 8  # bytes


def plan_job(steps: Sequence[Step], *, overwrite: bool = False) -> JobPlan:
    """Decide what a job will do, from headers alone; nothing is written, torch is not imported.

    A step may start from what an earlier one writes: it is planned by that one's plan.

    Args:
        steps: in the order in which they are done.
        overwrite: replace outputs that were made from something else, or otherwise.

    Raises:
        MupscaleError: a step cannot be done as asked, or the steps contradict one another.
    """
    made: dict[Path, Plan] = {}  # what earlier steps will have written, by its real path
    planned: list[PlannedStep] = []
    taken: set[Path] = set()
    for number, step in enumerate(steps, 1):
        try:
            if isinstance(step, WidenStep):
                one = _plan_widen(_replacing(step) if overwrite else step, made)
                real = one.target.resolve()
                if real in taken:
                    raise RunError(f"two steps write `{one.target}`", hint="give one of them another `output`")
                taken.add(real)
                if one.status == "to do":
                    assert one.plan is not None
                    made[real] = one.plan
            elif isinstance(step, VerifyStep):
                one = _plan_verify(step, made)
            else:
                one = _plan_push(step, made)
        except MupscaleError as error:
            error.message = f"step {number} ({step.kind}): {error.message}"
            error.args = (error.message,)
            raise
        planned.append(one)
    return JobPlan(tuple(planned), tuple(_disks(planned)))


def _plan_widen(step: WidenStep, made: Mapping[Path, Plan]) -> PlannedStep:
    source = _source(step.checkpoint, made)
    options = step.options
    plan = plan_source(source, options)
    path = output_path(source, options)
    target = step.folder / path if source.hub and options.output is None else path
    why = reason_to_write(step, source, plan, target, made)
    if why is not None and target.exists():
        if not options.overwrite:
            raise RunError(
                f"`{target}` is there, but is not what this step makes: {why}",
                hint="`overwrite: true` in the step, or `--overwrite`, replaces it; or choose another `output`",
            )
        check_output(target, source.checkpoint.path, needed_bytes=0, overwrite=True)
    factors = " ".join(f"{axis.name}=x{axis.factor}" for axis in plan.axes if axis.factor > 1)
    compared = inference_bytes(max(plan.num_parameters), _FLOAT64) if options.verify else 0
    return PlannedStep(
        step,
        f"{step.checkpoint} -> {target} ({factors})",
        "skipped" if why is None else "to do",
        "complete, from the same input with the same options" if why is None else why,
        target,
        plan,
        0 if why is None else plan.num_bytes + _state_bytes(step, source, plan),
        0 if why is None else source.missing_bytes(options.state),
        0 if why is None else max(WIDENING_BYTES, compared),
    )


def _replacing(step: WidenStep) -> WidenStep:
    """Return the step that also replaces what was made from something else, or otherwise."""
    return replace(step, options=replace(step.options, overwrite=True))


def _source(checkpoint: str, made: Mapping[Path, Plan]) -> Source:
    """The checkpoint that a step starts from, as it is or as an earlier step will have written it."""
    path = Path(checkpoint)
    if (plan := made.get(path.resolve())) is not None:
        return Source(_future(path, plan))
    return find_source(checkpoint, headers_only=True)


def _future(path: Path, plan: Plan) -> Checkpoint:
    """A checkpoint that is not there yet."""
    is_file = path.suffix == ".safetensors"
    tensors = {
        tensor.target.name: StoredTensor(tensor.target, path if is_file else path / shard.file, 0)
        for shard in plan.shards
        for tensor in shard.tensors
    }
    files = (path,) if is_file else tuple(path / shard.file for shard in plan.shards)
    return Checkpoint(path, is_file, files, tensors, plan.config, {})


def _state_bytes(step: WidenStep, source: Source, plan: Plan) -> int:
    """About what the optimizer's state will take: it grows as the parameters do."""
    if (source.remote is None and not source.checkpoint.path.exists()) or step.options.optimizer == "none":
        return 0
    path = None if source.remote is not None else step.options.state.find(source.checkpoint)
    if path is None or not path.exists():
        return 0
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    before, after = plan.num_parameters
    return sum(file.stat().st_size for file in files) * after // max(before, 1)


def _plan_verify(step: VerifyStep, made: Mapping[Path, Plan]) -> PlannedStep:
    path = Path(step.wide)
    future = made.get(path.resolve())
    what = "bytes of " if step.weights else ""
    title = f"{what}{step.wide}" + (f" against {step.options.narrow}" if step.options.narrow else "")
    if future is not None:
        sizes = future.num_parameters
    else:
        found = find_source(step.wide, headers_only=True).checkpoint
        sizes = read_record(found)["parameters"]["before"], sum(spec.num_elements for spec in found.specs)
    memory = 0.0 if step.weights else inference_bytes(max(sizes), _FLOAT64)
    if step.options.steps:
        memory = max(memory, training_bytes(sum(sizes)))
    is_done = future is None and path.exists() and is_recorded(step, open_checkpoint(path))
    reason = "verified with the same options" if is_done else "to be verified"
    return PlannedStep(step, title, "skipped" if is_done else "to do", reason, path, memory_bytes=memory)


def _plan_push(step: PushStep, made: Mapping[Path, Plan]) -> PlannedStep:
    repository = push_target(step.target, step.options)
    path = Path(step.wide)
    future = made.get(path.resolve())
    if future is None and not path.exists():
        raise CheckpointError(
            f"there is no checkpoint at `{step.wide}`, and no earlier step writes it",
            hint="steps are done in their order",
        )
    return PlannedStep(step, f"{step.wide} as {repository}", "to do", "asks the Hub what it has", path)


def _disks(planned: list[PlannedStep]) -> Iterator[Disk]:
    """What is needed of every file system that is written to."""
    needed: dict[int, tuple[Path, int, int]] = {}
    for one in planned:
        if not one.disk_bytes:
            continue
        place = next(parent for parent in one.target.resolve().parents if parent.exists())
        device = place.stat().st_dev
        _, before, begun = needed.get(device, (place, 0, 0))
        needed[device] = (needed.get(device, (place, 0, 0))[0], before + one.disk_bytes, begun + _begun(one.target))
    for place, total, begun in needed.values():
        yield Disk(place, total, shutil.disk_usage(place).free + begun)


def _begun(target: Path) -> int:
    """Bytes that a killed run has left of an output, which is continued."""
    parts = target.parent.glob(f".{target.name}.partial-*/*") if target.parent.exists() else ()
    return sum(file.stat().st_size for file in parts if file.is_file())
