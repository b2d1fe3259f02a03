"""What `mupscale run` does, as functions: a list of widenings, verifications and pushes, planned and done in order.

A step whose output is there, complete and made from the same input with the same options is not done again:
mupscale.json says from what and how an output was made, and has the digests of both sides.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from mupscale_cli.checkpoint.header import StoredTensor
from mupscale_cli.checkpoint.source import Checkpoint, open_checkpoint
from mupscale_cli.checkpoint.target import check_output
from mupscale_cli.errors import CheckpointError, MupscaleError, RunError
from mupscale_cli.hub.publishing import require_login
from mupscale_cli.memory import WIDENING, comparing_bytes, training_bytes
from mupscale_cli.methods import MUPSCALE, Method
from mupscale_cli.perturbation import Perturbation
from mupscale_cli.plan import DEFAULT_SHARD_BYTES, Plan
from mupscale_cli.pushing import PushOptions, prepare_push, push_target
from mupscale_cli.record import check_record, output_changed, source_changed
from mupscale_cli.widening import (
    Events,
    Source,
    StateOptions,
    Widened,
    default_output,
    find_source,
    plan_widening,
    widen,
)

if TYPE_CHECKING:
    from mupscale_cli.verification import Verification, VerifyOptions, WeightsCheck

_log = logging.getLogger(__name__)  # `-v` shows it
_FLOAT64 = 8  # bytes
Status = Literal["to do", "done", "skipped", "differs", "failed", "not run"]


@dataclass(frozen=True)
class Comparing:
    """How models are compared.

    Attributes:
        dtype: in which both run; `auto` is float64 where it fits.
        device: where; `auto` is the GPU where there is one.
        model: `path/or/module.py:build` for an own model.
        seed: of the random inputs.
        steps: optimizer steps to take on both as well.
    """

    dtype: str = "auto"
    device: str = "auto"
    model: str | None = None
    seed: int = 0
    steps: int = 0

    def options(self) -> VerifyOptions:
        """The same for `verify`; imports torch."""
        from mupscale_cli.verification import VerifyOptions

        return VerifyOptions(self.dtype, self.device, self.model, self.seed, self.steps)


@dataclass(frozen=True)
class WidenStep:
    """A widening; its attributes are the arguments of `widen`.

    Further ones are `comparing`, None where it is not verified, and `folder`, where models of the Hub go.
    """

    checkpoint: str
    output: Path | None = None
    factor: int | None = None
    axes: Mapping[str, int] = field(default_factory=dict)
    recipe: str | None = None
    tie: str | None = None
    method: Method = MUPSCALE
    perturbation: Perturbation | None = None
    max_shard_size: int = DEFAULT_SHARD_BYTES
    state: StateOptions = field(default_factory=StateOptions)
    overwrite: bool = False
    allow_nonfinite: bool = False
    comparing: Comparing | None = Comparing()
    folder: Path = Path()
    kind: Literal["widen"] = "widen"


@dataclass(frozen=True)
class VerifyStep:
    """A verification; its attributes are the arguments of `verify`, `weights` asks for `verify_weights`."""

    wide: str
    narrow: str | None = None
    comparing: Comparing = Comparing()
    recipe: str | None = None
    optimizer: Path | None = None
    allow_pickle: bool = False
    weights: bool = False
    kind: Literal["verify"] = "verify"


@dataclass(frozen=True)
class PushStep:
    """A publication; its attributes are the arguments of `prepare_push`."""

    wide: str
    target: str
    options: PushOptions = field(default_factory=PushOptions)
    kind: Literal["push"] = "push"


Step = Union[WidenStep, VerifyStep, PushStep]


@dataclass(frozen=True)
class PlannedStep:
    """A step, and what is known of it before anything is done.

    Attributes:
        step: what to do.
        title: the same in words.
        status: `to do`, or `skipped` where its output is there.
        reason: why.
        plan: of a widening.
        target: what it works on or writes.
        disk_bytes: what it writes.
        download_bytes: what it fetches from the Hub.
        memory_bytes: what it takes at most, as far as that is known.
    """

    step: Step
    title: str
    status: Status
    reason: str
    target: Path
    plan: Plan | None = None
    disk_bytes: int = 0
    download_bytes: int = 0
    memory_bytes: float = 0


@dataclass(frozen=True)
class Disk:
    """What a job needs of a file system.

    Attributes:
        place: a directory on it.
        needed: bytes of everything that is to be written there.
        free: bytes, those that a killed run has written already among them.
    """

    place: Path
    needed: int
    free: int

    @property
    def has_room(self) -> bool:
        return self.needed <= self.free


@dataclass(frozen=True)
class JobPlan:
    """A job that is planned; nothing is done."""

    steps: tuple[PlannedStep, ...]
    disks: tuple[Disk, ...]

    @property
    def download_bytes(self) -> int:
        return sum(step.download_bytes for step in self.steps)

    @property
    def memory_bytes(self) -> float:
        return max((step.memory_bytes for step in self.steps if step.status == "to do"), default=0)


@dataclass(frozen=True)
class Done:
    """What came of a step.

    Attributes:
        planned: the step.
        status: `done`, `skipped`, `differs`, `failed` or `not run`.
        reason: in words.
        widened: of a widening that was done.
        verification: of a step that verified.
        url: of a push.
        error: why it failed.
    """

    planned: PlannedStep
    status: Status
    reason: str
    widened: Widened | None = None
    verification: Verification | WeightsCheck | None = None
    url: str | None = None
    error: MupscaleError | None = None


def exit_code(results: Sequence[Done]) -> int:
    """The exit code of a job: that of the first step that did not go well."""
    for result in results:
        if result.error is not None:
            return result.error.exit_code
        if result.status == "differs":
            return 1
    return 0


# Planning --------------------------------------------------------------------------------------


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
                one = _plan_widen(replace(step, overwrite=step.overwrite or overwrite), made)
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
    plan = _plan(step, source)
    default = default_output(source, step.factor, step.axes)
    target = step.output or (step.folder / default if source.hub else default)
    why = _why_not_there(step, source, plan, target, made)
    if why is not None and target.exists():
        if not step.overwrite:
            raise RunError(
                f"`{target}` is there, but is not what this step makes: {why}",
                hint="`overwrite: true` in the step, or `--overwrite`, replaces it; or choose another `output`",
            )
        check_output(target, source.checkpoint.path, needed_bytes=0, overwrite=True)
    factors = " ".join(f"{axis.name}=x{axis.factor}" for axis in plan.axes if axis.factor > 1)
    compared = comparing_bytes(max(plan.num_parameters), _FLOAT64) if step.comparing else 0
    return PlannedStep(
        step,
        f"{step.checkpoint} -> {target} ({factors})",
        "skipped" if why is None else "to do",
        "complete, from the same input with the same options" if why is None else why,
        target,
        plan,
        0 if why is None else plan.num_bytes + _state_bytes(step, source, plan),
        0 if why is None else source.missing_bytes(step.state),
        0 if why is None else max(WIDENING, compared),
    )


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


def _plan(step: WidenStep, source: Source) -> Plan:
    return plan_widening(
        source, step.factor, step.axes, recipe=step.recipe, max_shard_size=step.max_shard_size, tie=step.tie,
        method=step.method, perturbation=step.perturbation,
    )  # fmt: skip


def _state_bytes(step: WidenStep, source: Source, plan: Plan) -> int:
    """About what the optimizer's state will take: it grows as the parameters do."""
    if (source.remote is None and not source.checkpoint.path.exists()) or step.state.optimizer == "none":
        return 0
    path = None if source.remote is not None else step.state.find(source.checkpoint)
    if path is None or not path.exists():
        return 0
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    before, after = plan.num_parameters
    return sum(file.stat().st_size for file in files) * after // max(before, 1)


def _why_not_there(step: WidenStep, source: Source, plan: Plan, target: Path, made: Mapping[Path, Plan]) -> str | None:
    """Why the output is not there, complete and as asked, by its record and headers; None if it is."""
    if not target.exists():
        return "not there yet"
    if source.checkpoint.path.resolve() in made:
        return "its input is made anew"
    found = open_checkpoint(target)
    if found.record is None:
        return "mupscale did not write it"
    check_record(found.record, target)
    return _difference(step, source, plan, found)


def _difference(step: WidenStep, source: Source, plan: Plan, found: Checkpoint) -> str | None:
    """What a finished output was made with that this step does not ask for, or the other way round."""
    record = found.record
    assert record is not None
    factors = {axis.name: axis.factor for axis in plan.axes}
    noted = {name: axis["factor"] for name, axis in record["axes"].items()}
    if noted != factors:
        return f"it was widened by {_factors_text(noted)}, not by {_factors_text(factors)}"
    wanted = {
        "recipe": plan.recipe.digest,
        "tie": plan.tie,
        "method": plan.method.as_record(),
        "noise": plan.perturbation.as_record() if plan.perturbation else None,
    }
    has = {
        "recipe": record["recipe"].get("sha256"),
        "tie": record.get("tie"),
        "method": record.get("method"),
        "noise": record.get("perturbation"),
    }
    for name, value in wanted.items():
        if has[name] != value:
            return f"its {name} is another one"
    if source.remote is not None:
        origin = record["source"]
        if (origin.get("repo"), origin.get("revision")) != (source.remote.id.repo, source.remote.commit):
            return f"it was made from another source than {source.remote.id} at {source.remote.commit}"
    if {spec.name: spec for spec in found.specs} != {tensor.target.name: tensor.target for tensor in plan.tensors}:
        return "it has other tensors"
    if not found.is_file and {file.name for file in found.files} != {shard.file for shard in plan.shards}:
        return "its files are of another size"
    return _state_difference(step, source, found, record)


def _factors_text(factors: Mapping[str, int]) -> str:
    return " ".join(f"{name}=x{factor}" for name, factor in factors.items() if factor > 1)


def _state_difference(step: WidenStep, source: Source, found: Checkpoint, record: Mapping[str, Any]) -> str | None:
    carried = record.get("optimizer_state")
    wanted = source.find_state(step.state)
    if (carried is None) != (wanted is None):
        return "it has no optimizer state" if carried is None else "it has an optimizer state"
    if carried is None or wanted is None:
        return None
    if (carried.get("policy"), carried.get("key")) != (step.state.policy, step.state.key):
        return "its optimizer state was carried in another way"
    if source.remote is None and _age(Path(wanted)) > max(file.stat().st_mtime for file in found.files):
        return f"the optimizer's state `{wanted}` is newer"
    return None


def _age(path: Path) -> float:
    """When the youngest file of a state was written."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return max((file.stat().st_mtime for file in files), default=0.0)


def _plan_verify(step: VerifyStep, made: Mapping[Path, Plan]) -> PlannedStep:
    path = Path(step.wide)
    future = made.get(path.resolve())
    what = "bytes of " if step.weights else ""
    title = f"{what}{step.wide}" + (f" against {step.narrow}" if step.narrow else "")
    if future is not None:
        sizes = future.num_parameters
    else:
        found = find_source(step.wide, headers_only=True).checkpoint
        if found.record is None:
            raise CheckpointError(f"`{step.wide}` was not written by mupscale: it has no record of its source")
        check_record(found.record, found.path)
        recorded = found.record.get("parameters") or {}
        sizes = int(recorded.get("before", 0)), sum(spec.num_elements for spec in found.specs)
    memory = 0.0 if step.weights else comparing_bytes(max(sizes), _FLOAT64)
    if step.comparing.steps:
        memory = max(memory, training_bytes(sum(sizes)))
    is_noted = future is None and _is_noted(step, open_checkpoint(path)) if path.exists() else False
    reason = "verified with the same options" if is_noted else "to be verified"
    return PlannedStep(step, title, "skipped" if is_noted else "to do", reason, path, memory_bytes=memory)


def _is_noted(step: VerifyStep, found: Checkpoint) -> bool:
    """Whether the record says that this very verification was done, and went well."""
    noted = ((found.record or {}).get("verification")) or {}
    chosen = step.comparing
    wanted = {"dtype": chosen.dtype, "device": chosen.device, "own_model": chosen.model is not None,
              "seed": chosen.seed, "steps": chosen.steps}  # fmt: skip
    return not step.weights and noted.get("agrees") is True and noted.get("options") == wanted


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


# Doing -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobEvents:
    """What a caller wants to be told while a job runs.

    Attributes:
        begin: called with the number of a step (from 1) and the step, before it is done.
        working: makes the context of a step's work, which has the events of its progress.
    """

    begin: Callable[[int, PlannedStep], None] = lambda _number, _planned: None
    working: Callable[[], AbstractContextManager[Events]] = lambda: nullcontext(Events())


def run_job(job: JobPlan, events: JobEvents = JobEvents()) -> Iterator[Done]:
    """Do the steps of a job in their order; what came of each is yielded as it is done.

    The first step that fails, or whose models differ, is the last: those after it are yielded as `not run`.

    Args:
        job: what `plan_job` planned.
        events: for progress.

    Raises:
        RunError: a disk has no room for what is to be written.
        HubError: something is to be pushed, and there is no token.
    """
    for disk in job.disks:
        if not disk.has_room:
            raise RunError(
                f"not enough disk: the outputs take {disk.needed / 1e9:.2f} GB, `{disk.place}` has "
                f"{disk.free / 1e9:.2f} GB free",
                hint="free some space, or write to another disk",
            )
    for one in job.steps:  # before the work, not after it
        if isinstance(one.step, PushStep):
            require_login(push_target(one.step.target, one.step.options))
    has_stopped = False
    for number, one in enumerate(job.steps, 1):
        if has_stopped:
            yield Done(one, "not run", "an earlier step did not go well")
            continue
        events.begin(number, one)
        try:
            with events.working() as work:
                result = _do(one, work)
        except MupscaleError as error:
            result = Done(one, "failed", error.message, error=error)
        has_stopped = result.status in ("failed", "differs")
        yield result


def _do(one: PlannedStep, events: Events) -> Done:
    if isinstance(one.step, WidenStep):
        return _do_widen(one, one.step, events)
    if isinstance(one.step, VerifyStep):
        return _do_verify(one, one.step, events)
    return _do_push(one, one.step)


def _do_widen(one: PlannedStep, step: WidenStep, events: Events) -> Done:
    source = find_source(step.checkpoint, headers_only=True)
    plan = _plan(step, source)
    if one.target.exists():
        why = _why_not_there(step, source, plan, one.target, {}) or _changed(source, open_checkpoint(one.target))
        if why is None:
            _log.info("%s is complete: its digests and those of its source are what its record says", one.target)
            return _verified_before(one, step)
        if not step.overwrite:
            raise RunError(
                f"`{one.target}` is there, but is not what this step makes: {why}",
                hint="`overwrite: true` in the step, or `--overwrite`, replaces it; or choose another `output`",
            )
        _log.info("%s is made anew: %s", one.target, why)
    result = widen(
        source.fetched(step.state), one.target, step.factor, step.axes, overwrite=step.overwrite, resume=True,
        verify=step.comparing.options() if step.comparing else False, state=step.state, plan=plan, events=events,
        allow_nonfinite=step.allow_nonfinite,
    )  # fmt: skip
    found = result.verification
    if found is not None and not found.agrees:
        return Done(one, "differs", "the models differ; nothing was written", result, found)
    return Done(one, "done", "widened", result, found)


def _changed(source: Source, found: Checkpoint) -> str | None:
    """Which file of the source or of the output is not what it was; of a commit of the Hub nothing changes."""
    assert found.record is not None
    if source.remote is None and (name := source_changed(found.record, source.checkpoint)):
        return f"`{name}` of `{source.checkpoint.shown}` has changed"
    if name := output_changed(found.record, found):
        return f"its `{name}` has changed"
    return None


def _verified_before(one: PlannedStep, step: WidenStep) -> Done:
    """A finished output; verified now where it is to be and was not."""
    noted = (open_checkpoint(one.target).record or {}).get("verification") or {}
    if step.comparing is None or noted.get("agrees") is True:
        return Done(one, "skipped", "complete, from the same input with the same options")
    from mupscale_cli.verification import CannotVerify
    from mupscale_cli.verifying import verify

    try:
        found = verify(one.target, step.checkpoint, options=step.comparing.options(), recipe=step.recipe)
    except CannotVerify as reason:
        return Done(one, "skipped", f"complete; not verified: {reason.message}")
    if not found.agrees:
        return Done(one, "differs", "the models differ", None, found)
    return Done(one, "done", "was complete, and is now verified", None, found)


def _do_verify(one: PlannedStep, step: VerifyStep, events: Events) -> Done:
    from mupscale_cli.verifying import verify, verify_weights

    found: Verification | WeightsCheck
    if step.weights:
        found = verify_weights(step.wide, step.narrow, recipe=step.recipe, events=events)
    else:
        if Path(step.wide).exists() and _is_still_verified(step):
            return Done(one, "skipped", "verified with the same options")
        events.phase("verifying", 0)
        found = verify(
            step.wide, step.narrow, options=step.comparing.options(), recipe=step.recipe, optimizer=step.optimizer,
            allow_pickle=step.allow_pickle,
        )  # fmt: skip
    if not found.agrees:
        return Done(one, "differs", "the models differ", verification=found)
    return Done(one, "done", "as planned", verification=found)


def _is_still_verified(step: VerifyStep) -> bool:
    """Whether the record has this verification, and neither side has changed since."""
    found = open_checkpoint(Path(step.wide))
    if not _is_noted(step, found):
        return False
    assert found.record is not None
    if output_changed(found.record, found):
        return False
    origin = found.record["source"]
    if step.narrow is None and "path" not in origin:
        return True  # a commit of the Hub
    narrow = Path(step.narrow) if step.narrow is not None else found.path.resolve().parent / origin["path"]
    return narrow.exists() and source_changed(found.record, open_checkpoint(narrow)) is None


def _do_push(one: PlannedStep, step: PushStep) -> Done:
    prepared = prepare_push(step.wide, step.target, step.options)
    for warning in prepared.warnings:
        _log.warning("warning: %s", warning)
    if prepared.repository.commit and all(status == "unchanged" for status in prepared.statuses().values()):
        return Done(one, "skipped", "the repository has all of it")
    published = prepared.send()
    return Done(one, "done", "published", url=published.url)
