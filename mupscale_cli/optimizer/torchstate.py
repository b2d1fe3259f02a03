"""Training checkpoints of torch.save: an optimizer's state alone, or together with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mupscale_cli.convert import write_tensors
from mupscale_cli.finite import NonFinite
from mupscale_cli.optimizer.content import locate_optimizer, widen_content
from mupscale_cli.optimizer.files import StateFile, WideState, Writing
from mupscale_cli.optimizer.order import names_by_order
from mupscale_cli.optimizer.torchfile import Place, TorchFile, TorchWriter, read_torch_file, walk
from mupscale_cli.plan import Plan
from mupscale_cli.state import Policy


@dataclass(frozen=True)
class TorchState:
    """A file of torch.save that holds an optimizer's state dict somewhere."""

    file: TorchFile
    root: Place
    config: Mapping[str, Any] | None

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def num_bytes(self) -> int:
        return sum(tensor.spec.num_bytes for tensor in self.file.tensors.values())

    def widen(self, plan: Plan, policy: Policy, max_shard_bytes: int | None) -> WideState:  # noqa: ARG002 (one file is one file)
        """Plan the widened file.

        Raises:
            MupscaleError: it does not belong to the weights, or has entries that are not understood.
        """
        specs = {id(tensor): self.file.tensors[place].spec for place, tensor in walk(self.file.content)}
        wide = widen_content(
            self.file.content, specs, self.root, plan, policy,
            self.config, lambda groups, states: names_by_order(self.config, groups, states),
        )  # fmt: skip
        stored = {tensor.spec.name: tensor for tensor in self.file.tensors.values()}

        def write(how: Writing) -> StateFile | None:
            if not how.ranks.is_first:
                return None
            nonfinite = NonFinite(is_allowed=how.allow_nonfinite)
            with TorchWriter(how.directory / how.name, wide.content) as writer:
                write_tensors(wide.tensors, stored, writer, progress=how.progress, nonfinite=nonfinite)
            return StateFile(how.name, nonfinite.counts)

        groups = tuple((group.source, group.multipliers.lr) for group in wide.groups)
        size = sum(tensor.target.num_bytes for tensor in wide.tensors)
        return WideState(size, write, {"format": "torch"}, groups, wide.copied)


def open_torch_state(path: Path, config: Mapping[str, Any] | None, key: str | None) -> TorchState:
    """Read the structure of a training checkpoint of torch.save.

    Raises:
        CheckpointError: it cannot be read safely, or holds no optimizer's state.
    """
    file = read_torch_file(path)
    return TorchState(file, locate_optimizer(file.content, key, str(path)), config)
