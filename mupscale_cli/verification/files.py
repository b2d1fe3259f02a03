"""Comparing every file beside the weights with what source and plan make of it; trusts no recorded digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mupscale_cli.checkpoints.fates import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RECORD, PlannedFile, grouped
from mupscale_cli.checkpoints.header import METADATA_KEY, StoredTensor, open_file, read_header
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.modules import WEIGHTS as MODULE_WEIGHTS
from mupscale_cli.checkpoints.reading import SUFFIXES, Checkpoint
from mupscale_cli.files import read_bytes
from mupscale_cli.optimizers.carrying import CarriedState
from mupscale_cli.optimizers.fates import plan_files
from mupscale_cli.optimizers.finding import state_files, state_names
from mupscale_cli.optimizers.scheduler import read_scheduler, wide_progress, wide_scheduler
from mupscale_cli.plan import Plan
from mupscale_cli.record.making import Origin, make_record, record_adapter
from mupscale_cli.record.reading import companion_path
from mupscale_cli.text import bytes_text, shown
from mupscale_cli.verification.content import content_differences
from mupscale_cli.verification.result import FilesCheck

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record

_BLOCK_BYTES = 1 << 20
# Keys of a record that the plan does not decide: where everything came from, and what was found while widening.
_NOT_PLANNED = (
    "format_version",
    "mupscale_version",
    "source",
    "fates",
    "written",
    "others",
    "recipe",
    "to",
    "noise",
    "nonfinite",
    "overflowed",
    "optimizer_state",
    "adapters",
    "verification",
)


def check_files(
    narrow: Checkpoint,
    wide: Checkpoint,
    plan: Plan,
    record: Record,
    state: CarriedState | None = None,
    adapters: Mapping[str, Plan] = MappingProxyType({}),
    copied: Mapping[str, Path] = MappingProxyType({}),
) -> FilesCheck:
    """Compare all files except weights, config.json and the optimizer state; of the record, what the plan decides.

    Args:
        narrow: the source.
        wide: its widening.
        plan: plan of the widening.
        record: its record.
        state: the optimizer state, planned again; None if none was widened, or it is not compared.
        adapters: plans of the adapters, by their folder in the wide checkpoint.
        copied: files that are copied with the adapters, by their path in the wide checkpoint.

    Raises:
        CheckpointError: a file cannot be read.
    """
    fates = plan_files(narrow, plan, state.source.path if state else None)
    planned: dict[str, Callable[[Path], Iterable[str]]] = {
        file.name: partial(_copy_differences, narrow.path / file.name) for file in fates if file.fate == "carried"
    }
    planned |= {name: partial(_json_differences, side.content) for name, side in plan.side_files.items()}
    planned |= {
        f"{module.folder}/{MODULE_WEIGHTS}": partial(_metadata_differences, is_single=False) for module in plan.modules
    }
    planned |= {name: partial(_copy_differences, file) for name, file in copied.items()}
    planned |= {name: partial(_text_differences, text) for name, text in narrow.pointers.items()}
    for folder in adapters:
        place = PurePosixPath(folder)
        planned[str(place / ADAPTER_WEIGHTS)] = partial(_metadata_differences, is_single=False)
        planned[str(place / ADAPTER_CONFIG)] = lambda _: ()  # compared like config.json
    if len(wide.files) > 1 and wide.trained is None:
        planned[wide.library.index] = partial(_index_differences, wide)
    groups = () if state is None else state.state.groups
    planned |= {
        name: partial(_json_differences, wide_progress(narrow.path / name, groups)) for name in narrow.schedules
    }
    if state is not None:
        for scheduler in state.schedulers:
            planned[scheduler.name] = partial(_scheduler_differences, state, scheduler)
    differences = [
        f"`{name}` is not in the plan" for name in _unplanned(wide, record, planned, is_state_skipped=state is None)
    ]
    for name, compare in planned.items():
        file = companion_path(wide, name)
        differences += compare(file) if file.is_file() else (f"`{name}` is missing",)
    for file in wide.files if wide.trained is None else ():
        differences += _metadata_differences(file, is_single=wide.is_file)
    differences += _record_differences(plan, record)
    if state is not None or record["optimizer_state"] is None:
        differences += _fate_differences(fates, record)
    for folder, adapter in adapters.items():
        planned_entry, entry = record_adapter(adapter), record["adapters"][folder]
        stored = {"rules": entry["rules"], "called": entry["called"]}
        differences += _named(Path(RECORD), content_differences(planned_entry, stored))
    return FilesCheck((*planned, RECORD), tuple(differences))


def _unplanned(wide: Checkpoint, record: Record, planned: Iterable[str], *, is_state_skipped: bool) -> Iterator[str]:
    """Yield the files that a loader or a trainer would read although the plan does not have them."""
    if wide.is_file:
        return
    names = wide.sizes.keys()
    expected = {*planned, *map(wide.inner_name, wide.files)}
    if (carried := record["optimizer_state"]) is not None:
        name = carried["file"]
        expected |= {*(state_names if is_state_skipped else state_files)(names, name)} if name is not None else set()
    trained = state_names(names)
    loaded = {file.name for file in wide.plan_files() if file.fate != "left behind"}
    loaded |= {name for name in names if "/" not in name and name.endswith(SUFFIXES)}
    config = wide.library.config if wide.config_file is None else wide.config_file.name
    yield from sorted((loaded | {*trained}) - expected - {config})


def _text_differences(text: str, file: Path) -> Iterator[str]:
    """Compare a file with the text that it should have."""
    if read_bytes(file) != text.encode():
        yield f"`{file.name}` does not contain {shown(text)}"


def _copy_differences(source: Path, file: Path) -> Iterator[str]:
    """Compare a file with the one that it was copied from."""
    sizes = source.stat().st_size, file.stat().st_size
    if sizes[0] != sizes[1]:
        yield f"`{file.name}` is {bytes_text(sizes[1])}, expected {bytes_text(sizes[0])}"
        return
    offset = 0
    with open_file(source) as planned, open_file(file) as stored:
        while block := planned.read(_BLOCK_BYTES):
            other = stored.read(_BLOCK_BYTES)
            if block != other:
                first = next(i for i, (a, b) in enumerate(zip(block, other, strict=False)) if a != b)
                yield f"`{file.name}` differs from the source's, first at byte {offset + first}"
                return
            offset += len(block)


def _json_differences(planned: Mapping[str, Any], file: Path) -> Iterator[str]:
    yield from _named(file, content_differences(planned, read_json(file)))


def _index_differences(wide: Checkpoint, file: Path) -> Iterator[str]:
    total = sum(tensor.spec.num_bytes for tensor in wide.tensors.values())
    places = {name: tensor.file.name for name, tensor in wide.tensors.items() if isinstance(tensor, StoredTensor)}
    return _json_differences({"metadata": {"total_size": total}, "weight_map": places}, file)


def _scheduler_differences(state: CarriedState, source: Path, file: Path) -> Iterator[str]:
    planned = wide_scheduler(source, state.state.groups)
    yield from _named(file, content_differences(planned, read_scheduler(file)))


def _metadata_differences(file: Path, *, is_single: bool) -> Iterator[str]:
    """Compare the metadata of a weight file, by which libraries choose how to read it."""
    stored = read_header(file).metadata
    planned = {"format": "pt", **({METADATA_KEY: stored.get(METADATA_KEY, "")} if is_single else {})}
    yield from _named(file, content_differences(planned, stored))


def _record_differences(plan: Plan, record: Record) -> Iterator[str]:
    """Compare what a record says about the plan: `hparams`, trainers and cards believe it."""
    planned = _comparable(make_record(plan, {}, Origin(""), record["mupscale_version"]))
    stored = _comparable(record)
    yield from _named(Path(RECORD), content_differences(planned, {key: stored.get(key) for key in planned}))


def _fate_differences(planned: Iterable[PlannedFile], record: Record) -> Iterator[str]:
    """Compare the fates of files that the output is made from; others may have come and gone since.

    The files of adapters are compared one by one instead.
    """
    made = {name: (group.fate, count) for group, names in grouped(planned).items() for name, count in names.items()}
    stored = {name: (entry["fate"], entry["files"]) for name, entry in record["fates"].items()}
    own = (name for name in {**made, **stored} if not name.startswith("adapters/"))
    for name in sorted(own):
        fates = {found.get(name, ("left behind", 0)) for found in (made, stored)}
        if len(fates) > 1 and {fate for fate, _ in fates} != {"left behind"}:
            yield f"`fates.{name}` is not as planned in `{RECORD}`"


def _comparable(record: Any) -> dict[str, Any]:
    """Return what the plan decides, with the rule of each tensor under its name; a recipe's wording may change."""
    rules = {
        name: {key: value for key, value in rule.items() if key not in ("pattern", "layout", "tensors")}
        for rule in record["rules"]
        for name in rule["tensors"]
    }
    return {**{key: value for key, value in record.items() if key not in _NOT_PLANNED}, "rules": rules}


def _named(file: Path, differences: Iterable[str]) -> Iterator[str]:
    return (f"{difference} in `{file.name}`" for difference in differences)
