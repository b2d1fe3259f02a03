"""Read the checkpoints of DeepSpeed's ZeRO in both of their forms, and write the universal one.

A *partitioned* checkpoint has one file per process, with flat tensors that hold a part of every parameter of a group.
A tensor is then a sequence of stretches in several files. The *universal* form has a folder for each parameter, and any
number of processes can load it (`"checkpoint": {"load_universal": true}`).

Both are read as the same content:

    module           the weights in full precision, and the buffers, by name
    optimizer        the optimizer's state dict, by name
    optimizer_state  what else the optimizer keeps, such as the loss scale
    model_states     everything else: steps, schedule, the values that the training code passes

Sources: DeepSpeed 0.19.8, `checkpoint/ds_to_universal.py`, `runtime/base_optimizer.py` and `runtime/zero/stage3.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.checkpoints.containers import stand_ins
from mupscale_cli.checkpoints.containers.base import Contents, TensorSlot
from mupscale_cli.checkpoints.containers.nested import map_tensors
from mupscale_cli.checkpoints.containers.places import Place, place_name
from mupscale_cli.checkpoints.containers.torch_file import blank_tensor, read_torch_file, write_blank_file
from mupscale_cli.checkpoints.header import ByteRange, ReadableTensor
from mupscale_cli.checkpoints.json_files import is_file_name
from mupscale_cli.checkpoints.output_files import output_errors
from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import CheckpointError
from mupscale_cli.files import plain, read_errors
from mupscale_cli.text import shown

PARAMETERS, OPTIMIZER_FILE = "zero", "zero/optimizer_state.pt"
_STATES = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL = "*_model_states.pt"
_MODEL_FILES = {3: "zero_pp_rank_0_mp_rank_00_model_states.pt"}  # by stage
_MODEL_FILE = "mp_rank_00_model_states.pt"  # of all others
# Entries of a process's own optimizer state: those that become content, and those that describe the partition.
_PARTITIONED = (
    *("base_optimizer_state", "single_partition_of_fp32_groups", "param_slice_mappings", "group_paddings"),
    *("param_alignment_paddings", "partition_count", "fp32_flat_groups", "optimizer_state_dict", "param_groups"),
    "ds_zero_partition_groups",
)
_SUB_GROUP_SIZE = 10**9  # DeepSpeed's default, in elements of a process


@dataclass(frozen=True)
class _Stretch:
    """Consecutive elements of a tensor within a stored one.

    Attributes:
        tensor: the stored tensor.
        start: the first element in it.
        count: the number of elements.
    """

    tensor: ReadableTensor
    start: int
    count: int


@dataclass(frozen=True)
class PartitionedTensor:
    """A tensor whose elements are stretches of others.

    Attributes:
        spec: its name, data type and shape.
        stretches: where its elements are, in order.
    """

    spec: TensorSpec
    stretches: tuple[_Stretch, ...]

    def byte_ranges(self, start: int, num_bytes: int) -> Iterator[ByteRange]:
        """Yield the ranges that hold `num_bytes` bytes from byte `start`."""
        size = DTYPES[self.spec.dtype].size
        first, stop = 0, start + num_bytes
        for stretch in self.stretches:
            low, high = max(start, first), min(stop, first + stretch.count * size)
            if low < high:
                yield from stretch.tensor.byte_ranges(stretch.start * size + low - first, high - low)
            first += stretch.count * size


@dataclass(frozen=True)
class _Parts:
    """What the files of a checkpoint say.

    Attributes:
        model: the content of the first file of model states, and where its tensors are.
        tensors: every tensor of a parameter by the parameter and its key: `fp32`, `exp_avg`.
        numbers: every other state entry of a parameter, such as the step.
        optimizer: what else the optimizer keeps.
        groups: the settings of each group of parameters.
        members: the names of the parameters of each group.
    """

    model: Contents
    tensors: Mapping[str, Mapping[str, ReadableTensor]]
    numbers: Mapping[str, Mapping[str, Any]]
    optimizer: Mapping[str, Any]
    groups: Sequence[Mapping[str, Any]]
    members: Sequence[Sequence[str]]


def read_zero(path: Path) -> Contents:
    """Read the structure of a checkpoint of ZeRO.

    Args:
        path: the folder of a step, such as `DIR/global_step1000`.

    Raises:
        CheckpointError: it is damaged, or was saved with tensor or pipeline parallelism, experts or frozen parameters.
    """
    try:
        parts = _universal(path) if (path / OPTIMIZER_FILE).is_file() else _partitioned(path)
        return _contents(path, parts)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"`{path}` is not a checkpoint of ZeRO as DeepSpeed 0.19 writes it: {type(error).__name__} {error}",
            hint=_conversion(path),
        ) from error


def _contents(path: Path, parts: _Parts) -> Contents:
    stored: dict[Place, ReadableTensor] = {}

    def blank(tensor: ReadableTensor, *place: Any) -> torch.Tensor:
        stored[place] = replace(tensor, spec=replace(tensor.spec, name=place_name(place)))  # type: ignore[type-var]
        return blank_tensor(tensor.spec)

    for name in parts.tensors:
        if not is_file_name(name):
            raise CheckpointError(f"`{path}` has a parameter called {shown(name)}")
    weights = {name: blank(tensors["fp32"], "module", name) for name, tensors in parts.tensors.items()}
    buffers = {
        name: blank(parts.model.tensors["module", name], "module", name)
        for name in parts.model.content.get("buffer_names") or ()
        if ("module", name) in parts.model.tensors
    }
    states = {
        name: {
            **{key: blank(each, "optimizer", "state", name, key) for key, each in tensors.items() if key != "fp32"},
            **parts.numbers.get(name, {}),
        }
        for name, tensors in parts.tensors.items()
    }
    groups = [
        {**{key: value for key, value in group.items() if key != "params"}, "params": list(names)}
        for group, names in zip(parts.groups, parts.members, strict=True)
    ]
    own = {key: value for key, value in parts.model.content.items() if key not in ("module", "param_shapes")}
    others = map_tensors(own, (), lambda place, _: blank(parts.model.tensors[place], "model_states", *place))
    content = {
        "module": {**weights, **buffers},
        "optimizer": {"state": states, "param_groups": groups},
        "optimizer_state": dict(parts.optimizer),
        "model_states": others,
    }
    return Contents(path, content, stored)


def _model_states(path: Path) -> tuple[Contents, list[dict[str, tuple[int, ...]]]]:
    """Read the first file of model states; return it and the shapes of the parameters of each flat group."""
    files = sorted(path.glob(_MODEL))
    foreign = [file.name for file in files if not re.fullmatch(r"(?:zero_pp_rank_\d+_)?mp_rank_00_.*", file.name)]
    if not files or foreign:
        raise CheckpointError(
            f"`{path}` was saved with tensor or pipeline parallelism, or with experts: it has `{foreign[0]}`"
            if foreign
            else f"`{path}` has no `{_MODEL}`",
            hint="gather the weights with the program that split them, and widen those; zero_to_fp32.py refuses to"
            if foreign
            else "pass a step's folder with the files of all processes",
        )
    model = read_torch_file(files[0])
    if model.content.get("frozen_param_shapes"):
        raise CheckpointError(
            f"`{path}` has frozen parameters, which DeepSpeed's universal form leaves out",
            hint=_conversion(path),
        )
    return model, [{n: tuple(shape) for n, shape in group.items()} for group in model.content["param_shapes"]]


def _partitioned(path: Path) -> _Parts:
    model, shapes = _model_states(path)
    found = sorted((int(match[1]), file) for file in path.iterdir() if (match := _STATES.fullmatch(file.name)))
    ranks = [read_torch_file(file) for _, file in found]
    count = model.content["dp_world_size"]
    if [rank for rank, _ in found] != list(range(count)):
        raise CheckpointError(
            f"`{path}` has {len(found)} files `*_optim_states.pt`, expected one for each of {count} processes",
            hint="copy the files of all processes into one folder",
        )
    is_split = "fp32_flat_groups" in ranks[0].content["optimizer_state_dict"]  # the weights as well: stage 3
    inner, weights = (
        ("optimizer_state_dict", "fp32_flat_groups")
        if is_split
        else ("base_optimizer_state", "single_partition_of_fp32_groups")
    )
    whole = {name: shape for group in shapes for name, shape in group.items()}
    stretches: dict[str, dict[str, list[_Stretch]]] = {name: {} for name in whole}
    numbers: dict[str, dict[str, Any]] = {name: {} for name in whole}
    for rank, contents in enumerate(ranks):
        own = contents.content["optimizer_state_dict"]
        for index, group in enumerate(shapes):
            flat: dict[str, Place] = {"fp32": ("optimizer_state_dict", weights, index)}
            for key, value in own[inner]["state"].get(index, {}).items():
                entry: Place = ("optimizer_state_dict", inner, "state", index, key)
                if isinstance(value, torch.Tensor) and value.dim():
                    flat[key] = entry
                elif rank == 0:
                    numbers |= {name: {**numbers[name], key: _number(contents, entry, value)} for name in group}
            ranges = [*(_split(group, rank, count) if is_split else _mapped(own["param_slice_mappings"][index]))]
            for key, place in flat.items():
                tensor = contents.tensors[place]
                for name, start, length in ranges:
                    if not 0 <= start <= start + length <= math.prod(tensor.spec.shape):
                        raise CheckpointError(
                            f"`{contents.path}` has no elements {start} to {start + length} of `{name}`"
                        )
                    stretches[name].setdefault(key, []).append(_Stretch(tensor, start, length))
    tensors = {
        name: {key: _joined(path, name, shape, pieces) for key, pieces in stretches[name].items()}
        for name, shape in whole.items()
    }
    first = ranks[0].content["optimizer_state_dict"]
    optimizer = {key: value for key, value in first.items() if key not in _PARTITIONED}
    groups = first[inner]["param_groups"]
    size = ranks[0].content["ds_config"].get("zero_optimization", {}).get("sub_group_size") or _SUB_GROUP_SIZE
    return _Parts(model, tensors, numbers, optimizer, groups, _members(path, shapes, len(groups), count, int(size)))


def _joined(path: Path, name: str, shape: tuple[int, ...], pieces: Sequence[_Stretch]) -> PartitionedTensor:
    if sum(piece.count for piece in pieces) != math.prod(shape):
        raise CheckpointError(
            f"`{path}` holds {sum(piece.count for piece in pieces)} elements of `{name}`, expected {math.prod(shape)}"
        )
    return PartitionedTensor(TensorSpec(name, pieces[0].tensor.spec.dtype, shape), tuple(pieces))


def _mapped(mapping: Mapping[str, Mapping[str, int]]) -> Iterator[tuple[str, int, int]]:
    """Yield the parameters in a process's part of a group: the name, the first element and the number of elements."""
    for name, address in mapping.items():
        yield name, address["start"], address["numel"]


def _split(group: Mapping[str, tuple[int, ...]], rank: int, count: int) -> Iterator[tuple[str, int, int]]:
    """Yield the same in stage 3, where each process has an equal part of every parameter, the last ones padded."""
    start = 0
    for name, shape in group.items():
        total = math.prod(shape)
        part = -(-total // count)
        yield name, start, max(0, min(part, total - rank * part))
        start += part


def _members(
    path: Path, shapes: Sequence[Mapping[str, tuple[int, ...]]], count: int, processes: int, size: int
) -> list[list[str]]:
    """Return the parameters of each group of the optimizer; stage 3 divides large groups into several flat tensors.

    Args:
        path: the checkpoint, for messages.
        shapes: the parameters of each flat tensor.
        count: the number of groups.
        processes: the number of processes.
        size: the elements of a process that fill a flat tensor; only the last one of a group may have fewer.
    """
    members: list[list[str]] = [[]]
    for group in shapes:
        members[-1].extend(group)
        if len(shapes) == count or sum(-(-math.prod(shape) // processes) for shape in group.values()) < size:
            members.append([])
    found = [names for names in members if names]
    if len(found) != count:
        raise CheckpointError(
            f"`{path}` has {count} groups of parameters in {len(shapes)} flat tensors that do not show their bounds",
            hint="save it once with `zero_optimization.sub_group_size` larger than the model",
        )
    return found


def _universal(path: Path) -> _Parts:
    model, shapes = _model_states(path)
    saved = read_torch_file(path / OPTIMIZER_FILE)
    tensors: dict[str, dict[str, ReadableTensor]] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, shape in ((name, shape) for group in shapes for name, shape in group.items()):
        tensors[name], numbers[name] = {}, {}
        for file in sorted((path / PARAMETERS / name).glob("*.pt")):
            held = read_torch_file(file)
            if isinstance(held.content, Mapping) and held.content.keys() - {"param", "cat_dim"}:
                raise CheckpointError(f"`{file}` describes a parameter of tensor parallelism, which cannot be widened")
            value, place = (
                (held.content["param"], ("param",)) if isinstance(held.content, Mapping) else (held.content, ())
            )
            if isinstance(value, torch.Tensor) and value.numel() == math.prod(shape) and file.stem != "step":
                piece = _Stretch(held.tensors[place], 0, value.numel())
                tensors[name][file.stem] = _joined(path, name, shape, [piece])
            else:
                numbers[name][file.stem] = _number(held, place, value)
    inner = saved.content.get("optimizer_state_dict", saved.content)  # stage 3 keeps the step there
    step = inner.get("state", {}).get(0, {}).get("step")
    if step is not None:
        number = _number(saved, ("optimizer_state_dict", "state", 0, "step"), step)
        numbers = {name: {"step": number, **each} for name, each in numbers.items()}
    optimizer = {key: value for key, value in saved.content.items() if key not in _PARTITIONED}
    groups = saved.content["param_groups"]
    return _Parts(model, tensors, numbers, optimizer, groups, _members(path, shapes, len(groups), 1, _SUB_GROUP_SIZE))


def _number(contents: Contents, place: Place, value: Any) -> Any:
    """Return a state entry that is no tensor of the parameter; the value of a tensor with one element."""
    if not isinstance(value, torch.Tensor):
        return value
    return float(_read(contents.tensors[place]))


def _read(tensor: ReadableTensor) -> torch.Tensor:
    """Read a tensor into memory."""
    data = bytearray()
    for each in tensor.byte_ranges(0, tensor.spec.num_bytes):
        with read_errors(each.file), open(each.file, "rb", opener=plain) as stream:
            stream.seek(each.offset)
            data += stream.read(each.num_bytes)
    if not data:
        return torch.empty(tensor.spec.shape, dtype=DTYPES[tensor.spec.dtype].torch)
    return torch.frombuffer(data, dtype=DTYPES[tensor.spec.dtype].torch).reshape(tensor.spec.shape)


def load_zero(contents: Contents) -> Any:
    """Load a checkpoint with its tensors, and with steps as torch's optimizers have them."""
    loaded = map_tensors(contents.content, (), lambda place, _: _read(contents.tensors[place]))
    states = loaded["optimizer"]["state"]
    for name, entries in states.items():
        states[name] = {key: _stored_number(value) for key, value in entries.items()}
    return loaded


def write_blank_zero(path: Path, content: Any) -> dict[str, TensorSlot]:
    """Write a universal checkpoint whose tensors have no data yet; return the slot of each."""
    weights, optimizer = content["module"], content["optimizer"]
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    slots: dict[str, TensorSlot] = {}
    for name in names:
        tensors: dict[str, tuple[Place, Any]] = {"fp32": (("module", name), weights[name])}
        for key, value in optimizer["state"].get(name, {}).items():
            tensors[key] = (("optimizer", "state", name, key), value)
        folder = path / PARAMETERS / name
        with output_errors(folder):
            folder.mkdir(parents=True)
        for key, (place, value) in tensors.items():
            file = folder / f"{key}.pt"
            if not isinstance(value, torch.Tensor):
                _save(file, _stored_number(value))
            elif value.numel():
                slots[place_name(place)] = write_blank_file(file, {"param": value})["param"]
            else:
                _save(file, {"param": torch.empty(value.shape, dtype=value.dtype)})
    groups = [{**group, "params": [index]} for index, group in enumerate(optimizer["param_groups"])]
    steps = [each["step"] for name in names if "step" in (each := optimizer["state"].get(name, {}))]
    step = {0: {"step": _stored_number(steps[0])}} if steps else {}
    saved = {**content["optimizer_state"], "param_groups": groups}
    _save(path / OPTIMIZER_FILE, {**saved, "optimizer_state_dict": {"state": step, "param_groups": groups}})
    states = {
        **content["model_states"],
        "module": {name: tensor for name, tensor in weights.items() if name not in set(names)},
        "param_shapes": [
            {name: weights[name].shape for name in group["params"]} for group in optimizer["param_groups"]
        ],
    }
    stage = states.get("ds_config", {}).get("zero_optimization", {}).get("stage")
    written = write_blank_file(path / _MODEL_FILES.get(stage, _MODEL_FILE), states)
    return slots | {
        (name if name.startswith("module/") else f"model_states/{name}"): slot for name, slot in written.items()
    }


def _stored_number(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float32) if isinstance(value, float) else value


def _save(file: Path, content: Any) -> None:
    with output_errors(file):
        torch.save(content, file, pickle_module=stand_ins)


def _conversion(path: Path) -> str:
    """Return how to get a checkpoint that can be widened."""
    folder = shown(str(path.parent))
    return (
        f"`python zero_to_fp32.py {folder} OUT --safe_serialization` in that folder extracts the weights alone; put "
        "config.json beside them"
    )
