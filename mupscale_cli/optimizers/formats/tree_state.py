"""Widen training checkpoints that torch saves: optimizer state, alone or together with weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.containers.base import Container, Contents
from mupscale_cli.checkpoints.containers.nested import walk
from mupscale_cli.checkpoints.containers.places import Place, place_name, value_at
from mupscale_cli.checkpoints.containers.torch_file import StridedTensorError
from mupscale_cli.checkpoints.digests import files_digest, segments_digest
from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.engine.filling import fill
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.content import NOTHING, OwnContent, locate_optimizer, widen_content
from mupscale_cli.optimizers.formats.base import OpenOptions, StateFile, WideState, WriteOptions
from mupscale_cli.optimizers.narrow_run import recorded_groups
from mupscale_cli.optimizers.order import names_by_order
from mupscale_cli.optimizers.quantized import dequantized, dequantized_contents
from mupscale_cli.optimizers.state_plan import Policy
from mupscale_cli.optimizers.tree import Groups, OptimizerTree, joined, optimizers_at, parse_tree, refuse_for_good
from mupscale_cli.plan import Plan


@dataclass(frozen=True)
class TreeState:
    """A container that holds an optimizer's state dict.

    Attributes:
        container: its kind.
        contents: its structure.
        root: the place of the optimizer's state dict; None if it is not widened.
        config: config.json of the weights.
        kinds: the optimizers that it belongs to, if the user or the trainer's layout names them; empty to let it tell.
        own: what of the content belongs to the checkpoint itself.
        weights: the shape of each weight in another file, in the order of the model.
    """

    container: Container
    contents: Contents
    root: Place | None
    config: Mapping[str, Any] | None
    kinds: tuple[str, ...] = ()
    own: OwnContent = NOTHING
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.contents.path

    @property
    def content(self) -> Any:
        return self.contents.content

    @cached_property
    def stored(self) -> Mapping[str, ReadableTensor]:
        return {place_name(place): tensor for place, tensor in self.contents.tensors.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        return self.container.files(self.path)

    def load(self) -> OptimizerTree:
        assert self.root is not None
        content = dequantized(self.container.load(self.contents))
        places = optimizers_at(content, self.root) or (self.root,)
        tree = joined([parse_tree(value_at(content, place), self._names) for place in places])
        return replace(tree, kinds=self.kinds)

    def widen(self, plan: Plan, policy: Policy) -> WideState:
        stored = {id(tensor): self.contents.tensors[place] for place, tensor in walk(self.content)}
        specs = {key: tensor.spec for key, tensor in stored.items()}
        own = replace(self.own, stored={key: _unnamed(tensor) for key, tensor in stored.items()})
        with _naming(self.path):
            wide = widen_content(
                self.content, specs, self.root, plan, policy, self.config, self._names, self.kinds, own
            )
        self._wide_container(plan).shares(wide.content)  # refuses what it cannot hold, before anything is written

        def write(options: WriteOptions) -> StateFile | None:
            path, container = options.directory / options.name, self._wide_container(plan)
            filled = fill(
                wide.tensors,
                self.stored,
                lambda: container.write_blank(path, wide.content),
                container.shares(wide.content),
                progress=options.progress,
                ranks=options.ranks,
                allow_nonfinite=options.allow_nonfinite,
            )
            if filled is None:
                return None
            files = container.files(path)
            digests = {file: segments_digest(file, filled.segments.get(file, {})) for file in files}
            digest = files_digest(files, digests.__getitem__)
            return StateFile(options.name, filled.nonfinite, digest, filled.stds, filled.overflowed, digests)

        groups = tuple((group.source, group.multipliers.lr) for group in wide.groups)
        about = {"format": self.container.name, "groups": recorded_groups(wide.groups), "kinds": list(wide.kinds)}
        return WideState(wide.tensors, self.stored, write, about, groups, wide.copied, wide.content)

    def _wide_container(self, plan: Plan) -> Container:
        return self.container.resized({tensor.target.name: tensor.target.shape for tensor in plan.tensors})

    def _names(self, groups: Groups, states: Mapping[Any, Any]) -> dict[int, str]:
        return names_by_order(self.config, groups, states, self.weights or self._weights)

    @property
    def _weights(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight in the same container; shared ones count once."""
        stored = {name: self.contents.tensors[place] for name, place in self.own.weights.items()}
        first: dict[ReadableTensor, str] = {}
        for name, tensor in stored.items():
            first.setdefault(_unnamed(tensor), name)
        return {name: stored[name].spec.shape for name in first.values()}


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors about what it holds."""
    try:
        yield
    except PlanError as error:
        if path.name in error.message:
            raise
        raise PlanError(f"`{path}`: {error.message}", hint=error.hint) from error


def _unnamed(tensor: Any) -> ReadableTensor:
    unnamed: ReadableTensor = replace(tensor, spec=replace(tensor.spec, name=""))
    return unnamed


def open_tree(container: Container, options: OpenOptions) -> TreeState:
    """Read the structure of a training checkpoint.

    Raises:
        CheckpointError: the container cannot be read safely, or holds no optimizer state.
    """
    try:
        contents = dequantized_contents(container.read(options.path))
    except StridedTensorError as error:
        with _naming(options.path):
            refuse_for_good(error.content)
        raise
    root = locate_optimizer(contents.content, options.key, str(options.path))
    return TreeState(container, contents, root, options.config, options.kinds, weights=options.weights)
