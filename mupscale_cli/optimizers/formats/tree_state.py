"""Widen training checkpoints that torch saves: optimizer state, alone or together with weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.digests import files_digest, segments_digest
from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.optimizers.content import widen_content
from mupscale_cli.optimizers.formats.base import StateFile, WideState, WriteOptions
from mupscale_cli.optimizers.formats.torch_writing import TensorSlot, fill
from mupscale_cli.optimizers.nested import Place, place_name, value_at, walk
from mupscale_cli.optimizers.order import names_by_order
from mupscale_cli.optimizers.state_plan import Policy
from mupscale_cli.optimizers.tree import Groups, OptimizerTree, parse_tree
from mupscale_cli.plan import Plan


@dataclass(frozen=True)
class TreeState:
    """Nested mappings and sequences that contain an optimizer's state dict.

    Attributes:
        path: the file or folder.
        format: `torch` for one file, `distributed` for a folder of torch.distributed.checkpoint.
        content: the content, with blank tensors.
        stored: the tensors and where their bytes are, by place.
        root: the place of the optimizer's state dict.
        config: config.json of the weights.
        write_blank: writes a file or folder of the same format without data; returns the slot of each tensor.
        load_whole: loads the content with its tensors.
    """

    path: Path
    format: str
    content: Any
    stored: Mapping[str, ReadableTensor]
    root: Place
    config: Mapping[str, Any] | None
    write_blank: Callable[[Path, Any], Mapping[str, TensorSlot]]
    load_whole: Callable[[], Any]

    @property
    def files(self) -> tuple[Path, ...]:
        return _files(self.path)

    def load(self) -> OptimizerTree:
        return parse_tree(value_at(self.load_whole(), self.root), self._names)

    def widen(self, plan: Plan, policy: Policy) -> WideState:
        specs = {id(tensor): self.stored[place_name(place)].spec for place, tensor in walk(self.content)}
        wide = widen_content(self.content, specs, self.root, plan, policy, self.config, self._names)

        def write(options: WriteOptions) -> StateFile | None:
            path = options.directory / options.name
            filled = fill(wide.tensors, self.stored, options, lambda: self.write_blank(path, wide.content))
            if filled is None:
                return None
            digest = files_digest(_files(path), lambda file: segments_digest(file, filled.segments.get(file, {})))
            return StateFile(options.name, filled.nonfinite, digest)

        groups = tuple((group.source, group.multipliers.lr) for group in wide.groups)
        about = {"format": self.format}
        return WideState(wide.tensors, self.stored, write, about, groups, wide.copied, wide.content)

    def _names(self, groups: Groups, states: Mapping[Any, Any]) -> dict[int, str]:
        return names_by_order(self.config, groups, states)


def _files(path: Path) -> tuple[Path, ...]:
    """Return the file itself, or all files of a folder."""
    return (path,) if path.is_file() else tuple(file for file in path.rglob("*") if file.is_file())
