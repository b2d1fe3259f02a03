"""The optimizer files of nanochat, read and written as if one optimizer had written one file.

nanochat's `MuonAdamW` has a file for each process, `optim_STEP_rankN.pt`. Matrices of one shape are a group, and their
state is stacked under the first of them: each process has consecutive matrices of the stack, padded with zeros. Other
parameters of at least 1024 elements have a slice of their rows in each process, smaller ones all of them. Which
parameter a number stands for follows from the names and shapes of the model (`GPT.setup_optimizer`).

NorMuon averages squares along the shorter side of a matrix. The gate of a value embedding has as many rows as there are
key/value heads and 12 columns, so its longer side can become the other one. Its averages then begin again, as in
the first step of a run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.checkpoints.containers.base import Container, Contents, Share, TensorSlot
from mupscale_cli.checkpoints.containers.places import Place, place_name
from mupscale_cli.checkpoints.containers.torch_file import (
    blank_tensor,
    load_torch_file,
    read_torch_file,
    stored_tensor,
    write_blank_file,
)
from mupscale_cli.checkpoints.header import JoinedTensor, ReadableTensor
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError
from mupscale_cli.text import listed

Shapes = Mapping[str, tuple[int, ...]]
_SMALL = 1024  # elements; smaller tensors are whole in every file
_NAME = re.compile(r"(optim_\d+_rank)(\d+)\.pt")
_OTHER = (("resid_lambdas",), ("x0_lambdas",), ("smear_gate.weight", "smear_lambda", "backout_lambda"))


def group_names(shapes: Shapes) -> list[tuple[str, ...]]:
    """Return the parameters of each group that nanochat makes, in its order.

    Args:
        shapes: the shape of every weight, in the order of the model.
    """
    embeddings = tuple(name for name in shapes if name.startswith("value_embeds."))
    blocks = [name for name in shapes if name.startswith("transformer.h.")]
    stacks = [
        tuple(name for name in blocks if shapes[name] == shape) for shape in sorted({shapes[name] for name in blocks})
    ]
    return [("lm_head.weight",), ("transformer.wte.weight",), embeddings, *_OTHER, *stacks]


@dataclass(frozen=True)
class RankFiles(Container):
    """The optimizer files of all processes.

    Attributes:
        shapes: the shape of every weight, in the order of the model: of the narrow one to read, of the wide one to
            write.
        num_ranks: the number of files to write.
    """

    shapes: Shapes
    num_ranks: int = 1
    name = "ranks"

    @classmethod
    def beside(cls, path: Path, shapes: Shapes) -> RankFiles:
        """Return the container of one of the files and of those beside it."""
        made = cls(shapes)
        return replace(made, num_ranks=len(made.files(path))) if made.recognizes(path) else made

    def resized(self, shapes: Shapes, /) -> RankFiles:
        return replace(self, shapes=shapes)

    def recognizes(self, path: Path) -> bool:
        return _NAME.fullmatch(path.name) is not None

    def files(self, path: Path) -> tuple[Path, ...]:
        match = _NAME.fullmatch(path.name)
        assert match is not None
        found = (file for file in path.parent.iterdir() if file.name.startswith(match[1]) and self.recognizes(file))
        return tuple(sorted(found, key=_rank))

    def read(self, path: Path) -> Contents:
        files = self.files(path)
        if [_rank(file) for file in files] != list(range(len(files))):
            raise CheckpointError(
                f"the optimizer files beside `{path}` are those of ranks {listed(str(_rank(file)) for file in files)}",
                hint="copy the files of all ranks into the folder",
            )
        contents = [read_torch_file(file).content for file in files]
        groups = self._groups(path, contents)
        state: dict[int, dict[str, Any]] = {}
        tensors: dict[Place, ReadableTensor] = {}
        for number, name, key, pieces in _entries(groups, contents):
            if not isinstance(pieces[0][1], torch.Tensor):
                state.setdefault(number, {})[key] = pieces[0][1]
                continue
            place = ("state", number, key)
            stored = [stored_tensor(files[rank], place, value) for rank, value in self._parts(name, pieces)]
            first = stored[0].spec
            rows = sum(each.spec.shape[0] for each in stored) if first.shape else 0
            spec = TensorSpec(first.name, first.dtype, (rows, *first.shape[1:]) if first.shape else ())
            state.setdefault(number, {})[key] = blank_tensor(spec)
            tensors[place] = stored[0] if len(stored) == 1 else JoinedTensor(spec, tuple(stored))
        return Contents(path, _content(groups, state), tensors)

    def load(self, contents: Contents) -> Any:
        loaded = [load_torch_file(Contents(file, None, {})) for file in self.files(contents.path)]
        groups = self._groups(contents.path, loaded)
        state: dict[int, dict[str, Any]] = {}
        for number, name, key, pieces in _entries(groups, loaded):
            value = pieces[0][1]
            if isinstance(value, torch.Tensor):
                parts = [part for _, part in self._parts(name, pieces)]
                value = parts[0] if len(parts) == 1 else torch.cat(parts)
            state.setdefault(number, {})[key] = value
        return _content(groups, state)

    def _groups(self, path: Path, contents: Sequence[Any]) -> list[_Group]:
        """Return the groups, which must be those that nanochat makes for the model."""
        names = group_names(self.shapes)
        for content in contents:
            found = [len(group["params"]) for group in content["param_groups"]]
            if found != [len(each) for each in names]:
                expected = listed(str(len(each)) for each in names)
                raise CheckpointError(
                    f"`{path}` has groups of {listed(map(str, found))} parameters, but nanochat makes groups of "
                    f"{expected}",
                    hint="widen without the state: `--optimizer none`",
                )
        return [
            _Group({key: value for key, value in group.items() if key != "params"}, tuple(group["params"]), each)
            for group, each in zip(contents[0]["param_groups"], names, strict=True)
        ]

    def _parts(self, name: str, pieces: list[tuple[int, torch.Tensor]]) -> list[tuple[int, torch.Tensor]]:
        """Return the pieces that make up a tensor: the first one if every process has all of it."""
        shape = self.shapes[name]
        (_, first), *_ = pieces
        if len(pieces) == 1 or tuple(first.shape) == shape:
            return pieces[:1]
        return pieces

    # Writing ----------------------------------------------------------------------------------

    def write_blank(self, path: Path, content: Any) -> Mapping[str, TensorSlot]:
        slots: dict[str, TensorSlot] = {}
        for rank, (own, _) in enumerate(self.split(content)):
            file = path.with_name(f"{_NAME.fullmatch(path.name)[1]}{rank}.pt")  # type: ignore[index]
            slots |= {f"{rank}/{name}": slot for name, slot in write_blank_file(file, own).items()}
        return slots

    def shares(self, content: Any, /) -> Mapping[str, tuple[Share, ...]]:
        found: dict[str, list[Share]] = {}
        for rank, (_, shares) in enumerate(self.split(content)):
            for name, share in shares:
                own = () if share is None else (replace(share, slot=f"{rank}/{share.slot}"),)
                found.setdefault(name, []).extend(own)
        return {name: tuple(shares) for name, shares in found.items()}

    def split(self, content: Any) -> list[tuple[Any, list[tuple[str, Share | None]]]]:
        """Split an optimizer's state dict into those of the processes.

        Args:
            content: the state dict, with the names of its parameters in the groups and blank tensors.

        Returns:
            For each process its content, and where the bytes of each tensor go; None if they are dropped.

        Raises:
            CheckpointError: matrices of one shape need different hyperparameters, or rows cannot be shared out.
        """
        groups = self._regrouped(content)
        return [self._of_rank(rank, groups, content["state"]) for rank in range(self.num_ranks)]

    def _regrouped(self, content: Any) -> list[_Group]:
        """Return the groups that nanochat makes for the wide model, with the settings of the content."""
        settings, numbers = {}, {}
        for group in content["param_groups"]:
            own = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            for number, name in zip(group["params"], group["param_names"], strict=True):
                settings[name], numbers[name] = own, number
        groups = []
        for names in group_names(self.shapes):
            for name in names[1:]:
                if settings[name] != settings[names[0]]:
                    raise CheckpointError(
                        f"`{names[0]}` and `{name}` would be in one group of nanochat's optimizer, which takes one "
                        "learning rate for all matrices of a shape, but they need different ones",
                        hint="widen all axes by one whole factor, or without the state: `--optimizer none`",
                    )
            groups.append(_Group(settings[names[0]] if names else {}, tuple(numbers[name] for name in names), names))
        return groups

    def _of_rank(
        self, rank: int, groups: Sequence[_Group], states: Mapping[int, Mapping[str, Any]]
    ) -> tuple[Any, list[tuple[str, Share | None]]]:
        state: dict[int, dict[str, Any]] = {}
        shares: list[tuple[str, Share | None]] = []
        wide, first = [], 0
        for group in groups:
            numbers = list(range(first, first + len(group.numbers)))
            wide.append({**group.settings, "params": numbers})
            entries = [states.get(number, {}) for number in group.numbers]
            if group.is_stack:
                own = group.of_rank(rank, self.num_ranks)
                dropped = self._turned(group, entries[0])
                shares += ((place_name(("state", number, key)), None) for number in group.numbers for key in dropped)
                for key, value in ((key, value) for key, value in entries[0].items() if key not in dropped):
                    state.setdefault(first, {})[key] = value.new_empty((len(own), *value.shape))
                    for index, position in enumerate(own):
                        source = place_name(("state", group.numbers[position], key))
                        size = value.numel() * value.element_size()
                        slot = place_name(("state", first, key))
                        shares.append((source, Share(slot, index * size, 0, size)))
            else:
                for number, old, own_entries in zip(numbers, group.numbers, entries, strict=True):
                    for key, value in own_entries.items():
                        if not isinstance(value, torch.Tensor):
                            state.setdefault(number, {})[key] = value
                            continue
                        rows = self._rows(group.names[number - first], value, rank)
                        part = value[rows.start : rows.stop] if value.dim() else value
                        state.setdefault(number, {})[key] = part.new_empty(part.shape)
                        size = part.numel() * part.element_size()
                        source, slot = (place_name(("state", each, key)) for each in (old, number))
                        shares.append((source, Share(slot, 0, rank * size if len(part) < len(value) else 0, size)))
            first += len(numbers)
        return {"state": state, "param_groups": wide}, shares

    def _turned(self, group: _Group, entries: Mapping[str, Any]) -> set[str]:
        """Return the keys of averages along what has become the longer side of the matrices."""
        rows, columns = self.shapes[group.names[0]]
        kept = (rows, 1) if rows >= columns else (1, columns)
        turned = {key for key, value in entries.items() if 1 in value.shape and tuple(value.shape) != kept}
        turned = {key for key in turned if tuple(entries[key].shape) != (rows, columns)}
        if turned and not all(name.endswith("ve_gate.weight") for name in group.names):
            raise CheckpointError(
                f"the longer side of `{group.names[0]}` becomes the other one, along which NorMuon has no averages",
                hint="widen all axes by one factor, or without the state: `--optimizer none`",
            )
        return turned

    def _rows(self, name: str, value: torch.Tensor, rank: int) -> range:
        if self.num_ranks == 1 or value.numel() < _SMALL:
            return range(len(value))
        if len(value) % self.num_ranks:
            raise CheckpointError(f"the {len(value)} rows of `{name}` cannot be shared out to {self.num_ranks} files")
        count = len(value) // self.num_ranks
        return range(rank * count, (rank + 1) * count)


@dataclass(frozen=True)
class _Group:
    """A group: its settings, and its parameters by number and by name."""

    settings: Mapping[str, Any]
    numbers: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def is_stack(self) -> bool:
        return self.settings.get("kind") != "adamw"

    def of_rank(self, rank: int, num_ranks: int) -> range:
        """Return the positions of the matrices that a process has."""
        count = -(-len(self.numbers) // num_ranks)
        return range(min(rank * count, len(self.numbers)), min((rank + 1) * count, len(self.numbers)))


def _rank(file: Path) -> int:
    match = _NAME.fullmatch(file.name)
    assert match is not None
    return int(match[2])


def _content(groups: Sequence[_Group], state: Mapping[int, Any]) -> dict[str, Any]:
    named = [{**group.settings, "params": list(group.numbers), "param_names": list(group.names)} for group in groups]
    return {"state": state, "param_groups": named}


def _entries(
    groups: Sequence[_Group], contents: Sequence[Any]
) -> Iterator[tuple[int, str, str, list[tuple[int, Any]]]]:
    """Yield the state entries of each parameter: its number and name, the key, and the pieces with their process."""
    states = [content["state"] for content in contents]
    for group in groups:
        if group.is_stack:
            for rank, state in enumerate(states):
                for row, position in enumerate(group.of_rank(rank, len(states))):
                    for key, stack in state.get(group.numbers[0], {}).items():
                        yield group.numbers[position], group.names[position], key, [(rank, stack[row])]
            continue
        for number, name in zip(group.numbers, group.names, strict=True):
            for key in states[0].get(number, {}):
                yield number, name, key, [(rank, state[number][key]) for rank, state in enumerate(states)]
