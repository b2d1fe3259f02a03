"""Read the 8-bit state of bitsandbytes as the 32-bit one that it stands for (page `theory`).

An entry `state1` of codes has a table of 256 values, `qmap1`, and for each block of consecutive elements the largest
absolute value, `absmax1`: an element is the product of its code's value and its block's, in float32. bitsandbytes
computes steps from these products, and takes an entry of 32 bits as well as one of 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mupscale_cli.checkpoints.containers.base import Contents
from mupscale_cli.checkpoints.containers.nested import walk
from mupscale_cli.checkpoints.containers.places import Place, place_name
from mupscale_cli.checkpoints.containers.torch_file import blank_tensor
from mupscale_cli.checkpoints.header import ByteRange, ReadableTensor
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError

_WRAPPER = "__bnb_optimizer_quant_state__"  # hides entries from FSDP; bitsandbytes also loads them without it
_NUMBERS = ("1", "2")
_BLOCKS = (256, 2048)  # elements, of releases since 0.45 and before
_FLOAT = torch.float32.itemsize


@dataclass(frozen=True, slots=True)
class DequantizedTensor:
    """A tensor of float32 that is computed while it is read.

    Attributes:
        spec: name, data type and shape of what is read.
        codes: one byte for each element.
        table: the value of each code.
        largest: the largest absolute value of each block.
        block: the number of elements of a block.
    """

    spec: TensorSpec
    codes: ReadableTensor
    table: ReadableTensor
    largest: ReadableTensor
    block: int

    def byte_ranges(self, _start: int, _num_bytes: int) -> Iterable[ByteRange]:
        """Return nothing: no file has these bytes."""
        return ()

    def compute(self, reader: RowReader, start: int, into: memoryview) -> None:
        """Fill a buffer with bytes from `start` on, which are those of whole elements."""
        first, stop = start // _FLOAT, (start + len(into)) // _FLOAT
        low, high = first // self.block, -(-stop // self.block)
        codes, table, largest = bytearray(stop - first), bytearray(256 * _FLOAT), bytearray((high - low) * _FLOAT)
        reader.read(self.codes, first, memoryview(codes))
        reader.read(self.table, 0, memoryview(table))
        reader.read(self.largest, low * _FLOAT, memoryview(largest))
        values_of, largest_of = (torch.frombuffer(each, dtype=torch.float32) for each in (table, largest))
        values = _values(torch.frombuffer(codes, dtype=torch.uint8), values_of, largest_of, self.block, first)
        torch.frombuffer(into, dtype=torch.float32).copy_(values)


def dequantized_contents(contents: Contents) -> Contents:
    """Return a container's structure in which 8-bit entries are tensors of float32, and no entry is wrapped.

    Raises:
        CheckpointError: the blocks of an entry have an unknown size.
    """
    stored = {id(tensor): contents.tensors[place] for place, tensor in walk(contents.content)}

    def entry(codes: Tensor, table: Tensor, largest: Tensor, block: int) -> Tensor:
        spec = replace(stored[id(codes)].spec, dtype="F32")
        blank = blank_tensor(spec)
        stored_codes, stored_table, stored_largest = (stored[id(each)] for each in (codes, table, largest))
        stored[id(blank)] = DequantizedTensor(spec, stored_codes, stored_table, stored_largest, block)
        return blank

    content = _changed(contents.content, entry)
    if content is contents.content:
        return contents
    return replace(contents, content=content, tensors={p: _named(stored[id(t)], p) for p, t in walk(content)})


def dequantized(content: Any) -> Any:
    """Return loaded content in which 8-bit entries are tensors of float32, and no entry is wrapped.

    Raises:
        CheckpointError: the blocks of an entry have an unknown size.
    """

    def entry(codes: Tensor, table: Tensor, largest: Tensor, block: int) -> Tensor:
        return _values(codes.flatten(), table, largest, block).view(codes.shape)

    return _changed(content, entry)


def _changed(content: Any, entry: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Any:
    """Return nested content with the entries that `entry` makes of codes, table, largest values and size of blocks."""
    if isinstance(content, (list, tuple)):
        items = [_changed(value, entry) for value in content]
        return content if all(new is old for new, old in zip(items, content, strict=True)) else type(content)(items)
    if not isinstance(content, Mapping):
        return content
    changed = {key: _changed(value, entry) for key, value in content.items()}
    if isinstance(changed.get(_WRAPPER), Mapping):
        changed |= changed.pop(_WRAPPER)
    for number in _NUMBERS:
        held = (changed.get(f"{name}{number}") for name in ("state", "qmap", "absmax"))
        codes, table, largest = (each if isinstance(each, Tensor) else None for each in held)
        if codes is not None and table is not None and largest is not None and codes.dtype == torch.uint8:
            changed[f"state{number}"] = entry(codes, table, largest, _block_size(codes, largest))
            del changed[f"qmap{number}"], changed[f"absmax{number}"]
    same = changed.keys() == content.keys() and all(changed[key] is value for key, value in content.items())
    return content if same else changed if type(content) is dict else type(content)(changed)  # type: ignore[call-arg]


def _block_size(codes: Tensor, largest: Tensor) -> int:
    for block in _BLOCKS:
        if -(-codes.numel() // block) == largest.numel():
            return block
    raise CheckpointError(
        f"an 8-bit entry of {codes.numel()} elements has {largest.numel()} scales, as only bitsandbytes' AdEMAMix has",
        hint="omit the state with `--optimizer none`",
    )


def _values(codes: Tensor, table: Tensor, largest: Tensor, block: int, first: int = 0) -> Tensor:
    """Return consecutive elements from number `first` on, whose blocks begin with the first of `largest`."""
    blocks = torch.arange(first, first + len(codes), device=codes.device) // block - first // block
    return table[codes.long()] * largest[blocks]


def _named(tensor: ReadableTensor, place: Place) -> ReadableTensor:
    named: ReadableTensor = replace(tensor, spec=replace(tensor.spec, name=place_name(place)))  # type: ignore[type-var]
    return named
