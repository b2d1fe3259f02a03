"""Training checkpoints in files of torch.save: an optimizer's state alone, or together with the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mupscale_cli.checkpoints.digests import tensor_digests
from mupscale_cli.checkpoints.header import Stored
from mupscale_cli.optimizers.content import locate_optimizer, widen_content
from mupscale_cli.optimizers.files import StateFile, WideState, Writing, read_digest
from mupscale_cli.optimizers.formats.torch_reading import Place, place_name, read_torch_file, walk
from mupscale_cli.optimizers.formats.torch_writing import Blank, blank_file, fill
from mupscale_cli.optimizers.order import names_by_order
from mupscale_cli.optimizers.state_plan import Policy
from mupscale_cli.plan import Plan


@dataclass(frozen=True)
class TreeState:
    """Nested mappings and sequences with an optimizer's state dict somewhere, in files of torch.save.

    Attributes:
        path: the file or folder.
        kind: one file, or a folder of torch.distributed.checkpoint.
        content: what it holds, with blank tensors.
        stored: where the data of each tensor are, by its place.
        root: where the optimizer's state dict is.
        config: config.json of the weights.
        write_blank: writes such a file or folder without data, and tells where each tensor goes.
    """

    path: Path
    kind: Literal["torch", "distributed"]
    content: Any
    stored: Mapping[str, Stored]
    root: Place
    config: Mapping[str, Any] | None
    write_blank: Callable[[Path, Any], Mapping[str, Blank]]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.spec.num_bytes for tensor in self.stored.values())

    def digest(self) -> str:
        return read_digest(self.stored, tensor_digests(tensor.spec for tensor in self.stored.values()))

    def widen(self, plan: Plan, policy: Policy, max_shard_bytes: int | None) -> WideState:  # noqa: ARG002 (one file is one file)
        """Plan the widened file.

        Raises:
            MupscaleError: it does not belong to the weights, or has entries that are not understood.
        """
        specs = {id(tensor): self.stored[place_name(place)].spec for place, tensor in walk(self.content)}
        wide = widen_content(
            self.content,
            specs,
            self.root,
            plan,
            policy,
            self.config,
            lambda groups, states: names_by_order(self.config, groups, states),
        )

        def write(how: Writing) -> StateFile | None:
            path = how.directory / how.name
            known = tensor_digests(tensor.source for tensor in wide.tensors)
            filled = fill(wide.tensors, self.stored, known, how, lambda: self.write_blank(path, wide.content))
            if filled is None:
                return None
            return StateFile(how.name, filled.nonfinite, read_digest(self.stored, known), filled.digest)

        groups = tuple((group.source, group.multipliers.lr) for group in wide.groups)
        about = {"format": self.kind}
        return WideState(wide.tensors, self.stored, write, about, groups, wide.copied, wide.content)


def open_torch_state(path: Path, config: Mapping[str, Any] | None, key: str | None) -> TreeState:
    """Read the structure of a training checkpoint of torch.save.

    Raises:
        CheckpointError: it cannot be read safely, or holds no optimizer's state.
    """
    file = read_torch_file(path)
    stored = {tensor.spec.name: tensor for tensor in file.tensors.values()}
    root = locate_optimizer(file.content, key, str(path))
    return TreeState(path, "torch", file.content, stored, root, config, blank_file)
