"""Widen a checkpoint: find, plan, write, verify and publish it, as `mupscale widen` does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mupscale_cli import __version__
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.digests import segments_digest
from mupscale_cli.checkpoints.fates import DRAFT, RECORD, PlannedFile
from mupscale_cli.checkpoints.header import METADATA_KEY, replace_metadata
from mupscale_cli.checkpoints.layouts.opening import USUAL, read_sizes
from mupscale_cli.checkpoints.libraries import library_of
from mupscale_cli.checkpoints.other_formats import describe
from mupscale_cli.checkpoints.output_files import copy_file, inner_file, output_errors, write_json, write_text
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.checkpoints.staging import recover
from mupscale_cli.checkpoints.target import check_output
from mupscale_cli.checkpoints.yaml_files import write_yaml
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.ranks import ALONE, Ranks
from mupscale_cli.errors import CheckpointError, OtherFormatError, OutputError, OutputExistsError
from mupscale_cli.files import require_unchanged
from mupscale_cli.optimizers.carrying import plan_carried_state
from mupscale_cli.optimizers.fates import plan_files
from mupscale_cli.optimizers.trainers.writers import continuing_lines
from mupscale_cli.plan import Plan, with_noise
from mupscale_cli.record.changes import source_files, weights_changed
from mupscale_cli.record.making import hash_source_files, make_record
from mupscale_cli.tasks.adapters import plan_adapters
from mupscale_cli.tasks.finished import find_changed_file, reason_to_write
from mupscale_cli.tasks.modules import write_modules
from mupscale_cli.tasks.options import WidenOptions, called_with
from mupscale_cli.tasks.planning import output_path, plan_source, require_class, require_same_recipe
from mupscale_cli.tasks.resume import resumable
from mupscale_cli.tasks.source import Source, find_source
from mupscale_cli.tasks.target import Target, companions_of, plan_target
from mupscale_cli.tasks.writing import Output, write
from mupscale_cli.verification.early import require_startable

if TYPE_CHECKING:
    from mupscale_cli.record import types as recorded
    from mupscale_cli.verification.result import FunctionCheck


@dataclass(frozen=True)
class Widened:
    """The result of `widen`.

    Attributes:
        output: the written file or directory.
        plan: the executed plan.
        record: the content of mupscale.json.
        verification: the comparison of both models; None if there was none.
        skipped: why there was no verification; None if there was one.
        files: what became of every file of the source.
        into_trainer: lines to continue with in the trainer that wrote the source.
        is_new: whether this call wrote the output; otherwise it existed, from the same input and options.
    """

    output: Path
    plan: Plan
    record: dict[str, Any]
    verification: FunctionCheck | None
    skipped: str | None
    files: tuple[PlannedFile, ...] = ()
    into_trainer: tuple[str, ...] = ()
    is_new: bool = True

    @property
    def paths(self) -> tuple[Path, ...]:
        """The output, and the files beside it if it is a single file."""
        return (self.output, *(companions_of(self.output, self.record) if self.output.is_file() else ()))


@dataclass(frozen=True)
class WidenCall(WidenOptions):
    """The arguments of `widen`: what to make, and how to run.

    Attributes:
        resume: continue a killed run: check its finished shards and write only the others.
        plan: the plan. Default: planned by this call.
        events: receive the progress.
        ranks: the processes that share the work. Each must call `widen` with the same arguments; all return the same
            result. See `ranks.join_ranks`.
        processes: number of local processes that write the output, including this one; the others are forked. None
            chooses it by the size of the output. Values other than 1 require that no other thread is running.
    """

    _: KW_ONLY
    resume: bool = False
    plan: Plan | None = None
    events: Events = SILENT
    ranks: Ranks = ALONE
    processes: int | None = 1


@called_with(WidenCall)
def widen(checkpoint: str | Path | Source, call: WidenCall) -> Widened:
    """Widen a checkpoint: weights, config and everything else needed to load it.

    The output appears under its name only when it is complete, flushed and verified, unless verification is disabled
    or impossible. If the two models differ, the output is discarded. An output that is complete, from the same input
    with the same options, is left as it is, and verified if it has not been.

    Args:
        checkpoint: a safetensors file, a model directory, or a Hub id. A file is widened to a file (and
            `NAME.config.json` next to it if there is a config), a directory to a directory.
        call: the fields of `WidenOptions` and `WidenCall`, as separate arguments.

    Raises:
        MupscaleError: the user can fix the problem; what was under the output's name is unchanged.

    Example:
        >>> widen("tiny", factor=4, noise=0.1).output  # doctest: +SKIP
        PosixPath('tiny-x4')
    """
    if call.verify:
        require_startable(call.verification)
    source = find_source(checkpoint, call.reading, recipe=call.recipe, headers_only=True)
    plan = call.plan or plan_source(source, call)
    path = output_path(source, call)
    if call.ranks.is_first:
        recover(path, call.events.note)
    call.ranks.broadcast(path)  # the others check it afterwards
    why = call.ranks.broadcast(_reason_to_write(source, plan, path, call) if call.ranks.is_first else None)
    if why is None:
        outcome = call.ranks.broadcast(_complete(source, path, call) if call.ranks.is_first else None)
        return Widened(path, with_noise(plan, outcome.record["noise"]), *outcome, is_new=False)
    if not source.is_local:  # refuse before the download what the headers suffice to refuse
        with _saying(why, path):
            check_output(path, source.checkpoint.path, needed_bytes=plan.num_bytes, overwrite=call.overwrite)
        if call.ranks.is_first:
            require_class(source, plan, call, call.events)
    source = source.fetched(call.state)
    output = _plan_output(source.checkpoint, plan, call, path)
    target = plan_target(path, output)
    inputs = _inputs(output, call)
    needed_bytes = 0 if call.resume else output.num_bytes
    with _saying(why, path):
        target.check(output.source.path, inputs, needed_bytes=needed_bytes, overwrite=call.overwrite)
    fits = call.ranks.broadcast(require_class(source, plan, call, call.events) if call.ranks.is_first else None)
    require_unchanged(output.opened)  # since the plan was made
    files = call.ranks.broadcast(_hash_source(source, call.events) if call.ranks.is_first else None)
    origin = source.origin(path, plan.recipe)
    output = replace(output, record=make_record(plan, files, origin, __version__, output.fates))
    outcome = _lead(output, target, call, fits=fits) if call.ranks.is_first else _follow(output, call)
    into_trainer = _into_trainer(output, path)
    return Widened(path, with_noise(plan, outcome.record["noise"]), *outcome, output.fates, into_trainer)


def _reason_to_write(source: Source, plan: Plan, path: Path, call: WidenCall) -> str | None:
    """Return why the output has to be written; None if it is complete."""
    if call.overwrite and not call.resume:
        return "it is to be replaced"
    try:
        if why := reason_to_write(call, source, plan, path):
            return why
        call.events.phase("checking the existing output", 0)
        return find_changed_file(call, source, open_checkpoint(path))
    except OtherFormatError:
        return f"it {describe(path).predicate}, and mupscale did not write it"
    except CheckpointError as error:
        return error.message


@contextmanager
def _saying(why: str, path: Path) -> Iterator[None]:
    """Add to the error for an existing output why it is not the one that would be written."""
    try:
        yield
    except OutputExistsError as error:
        if not path.exists():  # a companion is in the way
            raise
        raise OutputExistsError(f"{error.message}: {why}", hint=error.hint) from error


def _complete(source: Source, path: Path, call: WidenCall) -> _Outcome:
    """Return the outcome of an output that is complete, after verifying it if it has not been."""
    record = open_checkpoint(path).record
    assert record is not None
    if not call.verify or (record["verification"] or {}).get("agrees") is True:
        return _Outcome(record, None, None)
    from mupscale_cli.tasks.verify import verify
    from mupscale_cli.verification.result import CannotVerify

    narrow = str(source.checkpoint.path if source.remote is None else source.remote.id)
    options = replace(call.verification, narrow=narrow, only=("function",))
    try:
        return _Outcome(record, verify(path, **vars(options), events=call.events).function, None)
    except CannotVerify as reason:
        return _Outcome(record, None, reason.message)


def _into_trainer(output: Output, path: Path) -> tuple[str, ...]:
    """Return the lines with which the trainer that wrote the source continues; none if its state stays behind."""
    trained = output.source.trained
    has_state = output.in_kind is not None and output.in_kind.key is not None
    if trained is not None and trained.layout.next_lines is not None:
        is_left = trained.state is not None and not has_state  # the trainer would look for it
        return () if is_left else tuple(trained.layout.next_lines(str(path)))
    if output.carried is not None:
        return continuing_lines([file.name for file in output.carried.files], str(path))
    return continuing_lines([path.name], str(path)) if has_state else ()


def _plan_output(source: Checkpoint, plan: Plan, options: WidenOptions, path: Path) -> Output:
    """Add adapters, the optimizer state and further files to a plan of weights."""
    adapters = plan_adapters(source, plan, options.adapter, str(path))
    in_kind = None
    if source.trained is not None:
        from mupscale_cli.optimizers.in_kind import plan_in_kind  # imports torch, as opening the source did

        in_kind = plan_in_kind(source, source.trained, plan, options.state)
    has_state = in_kind is not None and in_kind.key is not None
    carried = None if has_state else plan_carried_state(options.state, source, plan, options.max_shard_size)
    files = plan_files(source, plan, None if carried is None else carried.source.path)
    return Output(plan, source, carried, files, options.allow_nonfinite, adapters, in_kind)


def _inputs(output: Output, options: WidenOptions) -> tuple[Path, ...]:
    """Return every file that a run reads, none of which its output may replace."""
    model = (options.model or "").rpartition(":")[0]
    by_user = (output.plan.recipe.path, Path(model) if model else None)
    return (*output.opened, *(output.carried.files if output.carried else ()), *filter(None, by_user))


def _hash_source(source: Source, events: Events) -> dict[str, dict[str, Any]]:
    """Hash the files that the output is made from."""
    checkpoint = source.checkpoint
    events.phase("hashing source", sum(file.stat().st_size for file in source_files(checkpoint).values()))
    return hash_source_files(checkpoint, events.advance, is_remote=source.remote is not None)


class _Outcome(NamedTuple):
    """The result that the first process sends to the others."""

    record: dict[str, Any]
    verification: FunctionCheck | None
    skipped: str | None


def _lead(output: Output, target: Target, call: WidenCall, *, fits: bool) -> _Outcome:
    """Run the first process: stage the output, write a share of it, verify the whole and publish it."""
    with resumable(output, target.path, call, resume=call.resume, events=call.events) as staging:
        record = write(output, call.ranks.broadcast(staging.journal), call.events, call.ranks, call.processes)
        assert record is not None
        plan = with_noise(output.plan, record["noise"])
        record["adapters"] = {
            adapter.folder: adapter.write(
                staging.content, target.path, call.events.advance, allow_nonfinite=output.allow_nonfinite
            )
            for adapter in output.adapters
        }
        names = _write_companions(output, staging.content, call.events)
        record["others"] = {name: {"digest": segments_digest(staging.content / name)} for name in names}
        verification, skipped = _verify(output.source, plan, staging.content, record, call, fits=fits)
        require_unchanged(output.opened)
        require_same_recipe(plan.recipe, output.source.config)
        record["verification"] = _as_record(verification)
        if verification is None or verification.agrees:
            _write_record(output, record, staging.content)
            target.check(output.source.path, _inputs(output, call), needed_bytes=None, overwrite=call.overwrite)
            staging.publish(target.parts, overwrite=call.overwrite)
    return call.ranks.broadcast(_Outcome(record, verification, skipped))


def _follow(output: Output, call: WidenCall) -> _Outcome:
    """Run any other process: write a share of the output that the first process stages, and receive the result."""
    write(output, call.ranks.broadcast(None), call.events, call.ranks, call.processes)
    return call.ranks.broadcast(None)


def _write_companions(output: Output, directory: Path, events: Events) -> tuple[str, ...]:
    """Write the config, the index and the files for the tokenizer and for generation.

    Returns:
        Their names, and those of the files that were written with the optimizer state.
    """
    plan, state, library = output.plan, output.carried, output.source.library
    names = [file.name for file in state.files if file != state.source.path] if state else []
    names += _write_config(output, directory)
    names += _write_schedules(output, directory)
    names += _write_draft(plan.recipe, directory)
    for name, side in plan.side_files.items():
        write_json(inner_file(directory, name), side.content)
        names.append(name)
    if output.source.is_file:
        return tuple(names)
    for name, text in output.source.pointers.items():
        with output_errors(directory / name):
            (directory / name).write_text(text, encoding="utf-8")
        names.append(name)
    if len(plan.shards) > 1:
        weight_map = {tensor.target.name: shard.file for shard in plan.shards for tensor in shard.tensors}
        write_json(directory / library.index, {"metadata": {"total_size": plan.num_bytes}, "weight_map": weight_map})
        names.append(library.index)
    copied = [file.name for file in output.files if file.fate == "carried" and file.name not in names]
    for name in copied:
        copy_file(output.source.path / name, inner_file(directory, name))
    modules = write_modules(plan, output.source, directory, events.advance, allow_nonfinite=output.allow_nonfinite)
    return (*names, *copied, *modules, *(name for adapter in output.adapters for name in adapter.names))


def _write_config(output: Output, directory: Path) -> list[str]:
    """Write the sizes of the model where the source has them, unless that is beside the weights; return the file."""
    plan, trained = output.plan, output.source.trained
    if plan.config is None:
        return []
    if trained is None or trained.sizes is None:
        name = library_of(plan.config).config
        write_json(directory / name, plan.config)
        return [name]
    file = trained.config_file
    if file is None:
        return []
    content = trained.sizes.replaced(read_sizes(file), plan.config)
    (write_yaml if file.suffix in (".yaml", ".yml") else write_json)(directory / file.name, content)
    return [file.name]


def _write_draft(recipe: Recipe, directory: Path) -> list[str]:
    """Write a drafted recipe beside the weights, where it can be read and reused; return the file."""
    if recipe.text is None:
        return []
    write_text(directory / DRAFT, recipe.text)
    return [DRAFT]


def _write_schedules(output: Output, directory: Path) -> list[str]:
    """Write the files that hold the progress of training with the learning rate of each group; return their names."""
    if output.in_kind is None:
        return []
    from mupscale_cli.optimizers.scheduler import wide_progress  # imports torch

    names = output.source.schedules
    for name in names:
        write_json(inner_file(directory, name), wide_progress(output.source.path / name, output.in_kind.state.groups))
    return list(names)


def _verify(
    source: Checkpoint, plan: Plan, directory: Path, record: dict[str, Any], call: WidenCall, *, fits: bool
) -> tuple[FunctionCheck | None, str | None]:
    """Verify the staged output; return the result, or why there is none.

    Raises:
        OutputError: a file is not what was written.
    """
    if not call.verify:
        return None, "disabled by `--no-verify`"
    from mupscale_cli.verification.comparing import verify_checkpoints  # imports torch
    from mupscale_cli.verification.result import CannotVerify

    call.events.phase("reading back", 0)
    is_inside = source.is_file and source.trained is not None
    choice = USUAL if source.trained is None else source.trained.choice
    staged = open_checkpoint(directory / source.path.name if is_inside else directory, choice)
    if name := weights_changed(record["written"], staged):
        raise OutputError(
            f"`{name}` is not what was written: its bytes have another digest than while they were computed",
            hint="the memory or the disk may be faulty; run the command again",
        )
    call.events.phase("verifying", 0)
    try:
        # Temporary files go into the staged folder, which is removed even if this fails.
        function = verify_checkpoints(source, staged, plan, call.verification, directory, fits=fits, events=call.events)
    except CannotVerify as reason:
        return None, reason.text
    return function, None


def _as_record(function: FunctionCheck | None) -> recorded.Verification | None:
    """Return the record's entry for a verification that ran the models; the bytes were just written and hashed."""
    if function is None:
        return None
    from mupscale_cli.verification.result import Verification

    return Verification(function=function).as_record()


def _write_record(output: Output, record: dict[str, Any], directory: Path) -> None:
    """Add the record to the staged output: as mupscale.json, or to the header of a single file."""
    if not output.source.is_file or output.in_kind is not None:
        write_json(directory / RECORD, record)
        return
    (shard,) = output.plan.shards
    with output_errors(directory / shard.file):
        replace_metadata(directory / shard.file, {"format": "pt", METADATA_KEY: json.dumps(record)})
