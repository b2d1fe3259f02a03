"""Widen a trainer's checkpoint in kind: weights, optimizer state and sizes in one container, as they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.containers.places import Place, find_place, place_name, value_at
from mupscale_cli.checkpoints.digests import files_digest
from mupscale_cli.checkpoints.layouts.opening import Trained
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.shards import WrittenShards
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.carrying import CarriedState
from mupscale_cli.optimizers.content import OwnContent
from mupscale_cli.optimizers.finding import open_optimizer
from mupscale_cli.optimizers.formats.base import OptimizerSource, StateFile, WideState, WriteOptions
from mupscale_cli.optimizers.formats.tree_state import TreeState
from mupscale_cli.optimizers.options import StateOptions
from mupscale_cli.optimizers.quantized import dequantized_contents
from mupscale_cli.optimizers.state_plan import Policy
from mupscale_cli.optimizers.tree import optimizer_places
from mupscale_cli.plan import Plan


@dataclass(frozen=True)
class InKind:
    """A planned container with the weights and whatever else is in it.

    Attributes:
        source: the narrow container, and its optimizer's state if that is widened.
        name: the path of the container in the output's folder; empty for the folder itself.
        state: the planned content, weights included.
        key: dotted keys that lead to the optimizer's state; None if it is not widened.
        policy: how the state is widened.
        weights: the name of each wide weight, by its name in the container.
        named: optimizers that the user says the state belongs to.
    """

    source: TreeState
    name: str
    state: WideState
    key: str | None
    policy: Policy
    weights: dict[str, str]
    named: tuple[str, ...] = ()

    def write(self, options: WriteOptions) -> tuple[WrittenShards, dict[str, Any] | None] | None:
        """Write the container into a staged output.

        Returns:
            What is known of the weights, and the record's entry for the optimizer's state; None except in the first
            process.
        """
        written = self.state.write(options)
        if written is None:
            return None
        stds = {self.weights[name]: std for name, std in written.stds.items() if name in self.weights}
        digests = {file.relative_to(options.directory).as_posix(): each for file, each in written.digests.items()}
        overflowed = tuple(self.weights.get(name, name) for name in written.overflowed)
        shards = WrittenShards(stds, digests, written.nonfinite, overflowed)
        return shards, None if self.key is None else self._record(written)

    @property
    def carried(self) -> CarriedState:
        """The state as one that lies beside the weights, for comparisons."""
        return CarriedState(self.source, self.name, self.state, self.policy, (), (), self.key)

    def _record(self, written: StateFile) -> dict[str, Any]:
        copied = {"copied": list(self.state.copied)} if self.state.copied else {}
        named = {"named": list(self.named)} if self.named else {}
        hashes = {"source_digest": files_digest(self.source.files), "digest": written.digest}
        return {
            "file": None,
            "key": self.key,
            **self.state.about,
            **named,
            "policy": self.policy,
            **copied,
            **hashes,
        }


def plan_in_kind(source: Checkpoint, trained: Trained, plan: Plan, options: StateOptions) -> InKind:
    """Plan the widening of a container that holds weights.

    Args:
        source: the checkpoint.
        trained: how its trainer lays it out.
        plan: the plan of the weights.
        options: which optimizer state to widen, and how.

    Raises:
        MupscaleError: state and weights do not belong together, or the state cannot be widened.
    """
    content = trained.contents.content
    place = state_place(trained, options)
    own = OwnContent(trained.places, _sizes(trained, plan), _dropped(trained, place, options))
    tree = _tree(trained, place, source.config, options.kinds, own)
    state = tree.widen(plan, options.policy)
    weights = {
        place_name((*trained.places[tensor.source.name][:-1], tensor.target.name)): tensor.target.name
        for tensor in plan.tensors
    }
    name = trained.path.name if source.is_file else trained.path.relative_to(source.path).as_posix()
    key = None if place is None else ".".join(map(str, place))
    assert key is None or value_at(content, find_place(content, key)) is not None
    return InKind(tree, "" if name == "." else name, state, key, options.policy, weights, options.kinds)


def open_state(checkpoint: Checkpoint, path: Path, key: str | None, kinds: Sequence[str] = ()) -> OptimizerSource:
    """Open the optimizer state of a checkpoint, which may be in the container of its weights.

    Raises:
        CheckpointError: the path has no known format, or is invalid.
    """
    trained = checkpoint.trained
    if trained is None or path != trained.path:
        return open_optimizer(path, checkpoint.config, key=key, kinds=kinds, trained=trained)
    place = state_place(trained, StateOptions(key=key))
    own = OwnContent(trained.places)
    return _tree(trained, place, checkpoint.config, kinds, own)


def _tree(
    trained: Trained, place: Place | None, config: Mapping[str, Any] | None, kinds: Sequence[str], own: OwnContent
) -> TreeState:
    """Return the container with its state, whose optimizers the layout names if the user does not."""
    named = trained.optimizers(place) if place is not None and not kinds else tuple(kinds)
    contents = dequantized_contents(trained.contents)
    return TreeState(trained.layout.container, contents, place, config, named, own)


def state_place(trained: Trained, options: StateOptions) -> Place | None:
    """Return the place of the optimizer's state to widen in the container of the weights; None if there is none.

    Raises:
        CheckpointError: the user names a key that does not exist.
    """
    if options.optimizer == "none" or (options.optimizer != "auto" and Path(options.optimizer) != trained.path):
        return None
    if options.key is None:
        return trained.state
    place = find_place(trained.contents.content, options.key)
    if value_at(trained.contents.content, place) is None:
        raise CheckpointError(
            f"`{trained.path}` has nothing at `{options.key}`", hint="name the state's key with `--key`"
        )
    return place


def _sizes(trained: Trained, plan: Plan) -> dict[Place, Any]:
    """Return the wide sizes, by their place in the container; nothing if they are in another file."""
    where = trained.sizes
    if where is None or where.file is not None or plan.config is None:
        return {}
    place = where.place(trained.contents.content)
    return {place: type(value_at(trained.contents.content, place))(plan.config)}


def _dropped(trained: Trained, place: Place | None, options: StateOptions) -> frozenset[Place]:
    """Return the places of the states that the user does not want, under whatever key they are."""
    if place is not None or options.optimizer == "auto":
        return frozenset()
    weights = {each[:-1] for each in trained.places.values()}
    return frozenset(optimizer_places(trained.contents.content)) - weights
