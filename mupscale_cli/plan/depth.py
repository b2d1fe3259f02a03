"""Making a stack of blocks deeper: the tensors and the config of the deeper network, before it is widened.

The deeper network is planned like any other checkpoint, so width and depth grow in one pass. Its tensors read those of
the source. In a new block, what writes to the residual stream is zero, so the block is the identity (page `theory`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mupscale_cli.architecture.expressions import look_up, parse_expression
from mupscale_cli.architecture.patterns import FIRST, LAST
from mupscale_cli.architecture.types import Choice, DepthRule, Recipe
from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.blocks import BlockMap, place_blocks
from mupscale_cli.plan.conditions import Values, environment, evaluate_located
from mupscale_cli.plan.config import with_changes
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.request import Amount, Request, Size, grown
from mupscale_cli.plan.types import Block, ConfigChange, TensorPlan
from mupscale_cli.plan.units import map_units, rewrite_units
from mupscale_cli.text import counted, listed, shown


@dataclass(frozen=True)
class BlockNames:
    """The tensors of the deeper network that are in blocks.

    Attributes:
        places: the name of the stack and the number of the block that each tensor belongs to.
        reads: the tensor of the source that each tensor reads, where the name differs.
        new: the tensors of new blocks.
    """

    places: Mapping[str, tuple[str, int]]
    reads: Mapping[str, str]
    new: frozenset[str]

    def parameters(self, recipe: Recipe) -> tuple[BlockNames, dict[str, Choice[Any]]]:
        """Return the same for the parameters that the checkpoint stores in another form, and their layouts."""
        places, reads, layouts, new = {}, {}, {}, set()
        for name, place in self.places.items() if any(rule.dims for rule in recipe.parameters) else ():
            found, read = tuple(recipe.other_parameters(name)), self.reads.get(name, name)
            sources = found if read == name else recipe.other_parameters(read)
            for (parameter, layout, _), (source, _, _) in zip(found, sources, strict=True):
                places[parameter], reads[parameter], layouts[parameter] = place, source, layout
                if name in self.new:
                    new.add(parameter)
        return BlockNames(places, reads, frozenset(new)), layouts

    def place(self, tensor: TensorPlan, name: str, writers: frozenset[str], *, adds_identity: bool) -> TensorPlan:
        """Make the plan of a tensor read the source, and mark its block.

        Args:
            tensor: its plan.
            name: its name in the deeper network before widening.
            writers: the tensors of blocks that write to the residual stream.
            adds_identity: whether new blocks are the identity.
        """
        if name not in self.places:
            return tensor
        is_new = name in self.new
        stack, position = self.places[name]
        fill = float(-tensor.offset) if is_new and name in writers and adds_identity else None
        read = self.reads.get(name, name)
        source = tensor.source if tensor.source.name == read else replace(tensor.source, name=read)
        placed = tensor.renamed(source, tensor.target.name, block=Block(stack, is_new, name in writers, position))
        return placed if fill is None else replace(placed, noise=None, fill=fill)


@dataclass(frozen=True)
class Deeper:
    """The deeper network, still as narrow as the source.

    Attributes:
        specs: its tensors, in the order of the source, those of a block followed by those of its copies.
        config: its config; None if the checkpoint has none.
        changes: differences between the source's config and its own.
        names: its tensors in blocks.
    """

    specs: tuple[TensorSpec, ...]
    config: Mapping[str, Any] | None
    changes: tuple[ConfigChange, ...]
    names: BlockNames


def stack_sizes(recipe: Recipe, names: Sequence[str], config: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the number of blocks of every stack that the checkpoint has.

    Args:
        recipe: recipe of the architecture.
        names: names of the checkpoint's tensors.
        config: config.json; if it does not give a number, the blocks are counted.
    """
    values = environment(recipe, config or {}, names)
    sizes = {}
    for rule in recipe.depths:
        numbers = block_numbers(recipe, rule, names)
        stated = evaluate_located(rule.size, values, rule.text.error)
        if numbers:
            sizes[rule.name] = stated if isinstance(stated, int) and stated > 0 else max(numbers) + 1
    return sizes


def block_numbers(recipe: Recipe, rule: DepthRule, names: Iterable[str]) -> set[int]:
    """Return the numbers of the blocks of a stack that have tensors."""
    return {block.number for block in _blocks(recipe, rule, names)}


def map_blocks(
    recipe: Recipe,
    names: Sequence[str],
    config: Mapping[str, Any] | None,
    request: Request,
    *,
    stacked: bool = False,
) -> Mapping[str, BlockMap]:
    """Choose the positions of the new blocks of every stack that grows.

    Args:
        recipe: recipe of the architecture.
        names: names of the checkpoint's tensors.
        config: config.json; None if the checkpoint has none.
        request: what to grow.
        stacked: whether new blocks repeat the whole stack; they then go to its end unless the request says otherwise.

    Raises:
        PlanError: a stack would shrink, or new blocks cannot be there.
    """
    if request.blocks:
        return request.blocks
    values = environment(recipe, config or {}, names)
    place = request.layers_at or ("end" if stacked else "interleaved")
    maps = {}
    sizes = stack_sizes(recipe, names, config) if _mentions_stacks(recipe, request) else {}
    for name, wide_size in _wide_sizes(recipe, request, sizes).items():
        if name in recipe.fixed and not stacked:
            raise PlanError(
                f"cannot add blocks to `{name}` of `{recipe.name}`: {recipe.fixed[name]}",
                hint="`--method stack` repeats blocks as they are, which computes another function",
            )
        unit = math.lcm(*(period for period, _ in _periods(_rule(recipe, name), values)))
        maps[name] = place_blocks(sizes[name], wide_size, place, unit, stacked=stacked and place == "end")
        _check_unmoved(_rule(recipe, name), maps[name], values)
    if request.layers_at and not maps:
        raise PlanError("`--layers-at` adds no blocks by itself", hint="say how many: `--layers N`")
    return maps


def stack_axes(recipe: Recipe, sizes: Mapping[str, int], maps: Mapping[str, BlockMap]) -> dict[str, Axis]:
    """Return the stacks as axes, for the expressions and powers of the config.

    Args:
        recipe: recipe of the architecture.
        sizes: as `stack_sizes` returns them.
        maps: the block map of every stack that grows.
    """
    new = {rule.name: len(maps[rule.name].new) if rule.name in maps else 0 for rule in recipe.depths}
    return {name: Axis(name, sizes.get(name), fresh=fresh) for name, fresh in new.items()}


def without_stacks(recipe: Recipe, request: Request) -> Request:
    """Return a request without what it asks of stacks of blocks."""
    stacks = _named_stacks(recipe)
    axes = {name: amount for name, amount in request.axes.items() if name not in stacks}
    return replace(request, axes=axes, sizes={n: size for n, size in request.sizes.items() if n not in stacks})


def only_stacks(recipe: Recipe, request: Request) -> Request:
    """Return what a request asks of stacks of blocks, without the rest."""
    axes = {name: amount for name, amount in request.axes.items() if name in _named_stacks(recipe)}
    return Request(axes=axes, layers=request.layers, layers_at=request.layers_at)


def _named_stacks(recipe: Recipe) -> dict[str, str]:
    """Return the stacks by the names that users can give them: their own and that of their config key."""
    return {name: rule.name for rule in recipe.depths for name in (rule.key, rule.name)}


def _mentions_stacks(recipe: Recipe, request: Request) -> bool:
    is_named = bool(_named_stacks(recipe).keys() & {*request.axes, *request.sizes})
    return is_named or request.layers is not None


def _wide_sizes(recipe: Recipe, request: Request, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the number of blocks of every stack that changes."""
    stacks = _named_stacks(recipe)
    asked: dict[str, tuple[Amount, str]] = {
        name: (Size(size), "--to") for name, size in request.sizes.items() if name in sizes
    }
    if request.layers is not None:
        if len(sizes) != 1:
            raise PlanError(
                f"the model has {len(sizes)} stacks of blocks" if sizes else f"`{recipe.name}` has no stack of blocks",
                hint=f"name one: `--axis {next(iter(sizes))}:N`; known: {listed(sizes)}" if sizes else None,
            )
        asked |= dict.fromkeys(sizes, (request.layers, "--layers"))
    for name, amount in request.axes.items():
        if name in stacks:
            if stacks[name] not in sizes:
                raise PlanError(f"no tensor of the checkpoint is in a block of the stack `{stacks[name]}`")
            asked[stacks[name]] = amount, f"--axis {name}"
    wide_sizes = {name: grown(f"the stack `{name}`", sizes[name], *one) for name, one in asked.items()}
    return {name: wide_size for name, wide_size in wide_sizes.items() if wide_size != sizes[name]}


def deepen(
    recipe: Recipe, specs: Sequence[TensorSpec], config: Mapping[str, Any] | None, maps: Mapping[str, BlockMap]
) -> Deeper:
    """Return the deeper network.

    Args:
        recipe: recipe of the architecture.
        specs: every tensor of the checkpoint, in the order of writing.
        config: config.json; None if the checkpoint has none.
        maps: the block map of every stack that grows.

    Raises:
        PlanError: the tensors or the config contradict the number of blocks, or the config cannot describe the
            deeper network.
    """
    names = [spec.name for spec in specs]
    blocks = {block.name: (rule, block) for rule in recipe.depths for block in _blocks(recipe, rule, names)}
    for name, units in maps.items():
        _check_numbers({block.number for rule, block in blocks.values() if rule.name == name}, name, units.size)
    pinned = _pinned(recipe, blocks)
    deeper, reads, places, new = [], {}, {}, set()
    for spec in specs:
        if spec.name not in blocks:
            deeper.append(spec)
            continue
        rule, block = blocks[spec.name]
        if rule.name not in maps:
            deeper.append(spec)
            places[spec.name] = rule.name, block.number
            continue
        units = maps[rule.name]
        positions = units.positions[block.number]
        if spec.name in pinned:
            positions = (0 if pinned[spec.name] == FIRST.word else units.wide_size - 1,)
        for position in positions:
            name = block.renamed(position)
            deeper.append(replace(spec, name=name))
            places[name] = rule.name, position
            if name != spec.name:
                reads[name] = spec.name
            if position in units.new and spec.name not in pinned:
                new.add(name)
    wide_config, changes = (config, ()) if config is None or not maps else _deepen_config(recipe, config, names, maps)
    return Deeper(tuple(deeper), wide_config, changes, BlockNames(places, reads, frozenset(new)))


# Names ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _BlockName:
    """The name of a tensor in a block, and where the block's number is in it."""

    name: str
    span: tuple[int, int]

    @property
    def number(self) -> int:
        return int(self.name[slice(*self.span)])

    def renamed(self, number: int) -> str:
        return f"{self.name[: self.span[0]]}{number}{self.name[self.span[1] :]}"


def _blocks(recipe: Recipe, rule: DepthRule, names: Iterable[str]) -> list[_BlockName]:
    """Return the tensors in the blocks of a stack, with the prefixes that fit most of them."""
    found: list[_BlockName] = []
    names = list(names)
    for prefixes in recipe.prefixes:
        regex = re.compile(rule.blocks.regex(prefixes).pattern + r"(?=\.)")
        matches = (regex.match(name) for name in names)
        blocks = [_BlockName(m.string, m.span(1)) for m in matches if m is not None and m[1].isdecimal()]
        found = max(found, blocks, key=len)
    return found


def _check_numbers(numbers: set[int], name: str, size: int) -> None:
    if numbers and numbers != set(range(size)):  # a training checkpoint may have weights outside of blocks only
        odd = min(numbers ^ set(range(size)))
        raise PlanError(
            f"the stack `{name}` has {counted(size, 'block')} according to the config, but the checkpoint has "
            f"{'tensors' if odd in numbers else 'no tensor'} of block {odd}",
            hint="check that config.json belongs to these tensors",
        )


def _pinned(recipe: Recipe, blocks: Mapping[str, tuple[DepthRule, _BlockName]]) -> dict[str, str]:
    """Return the tensors that only the first or the last block has, which stay with the position, with its word."""
    pinned: dict[str, str] = {}
    ends = [rule for rule in recipe.tensors if {FIRST, LAST} & set(rule.pattern.parts)]
    for prefixes in recipe.prefixes if ends else ():
        others = [rule.pattern.regex(prefixes) for rule in recipe.tensors if rule not in ends]
        for regex in (rule.pattern.regex(prefixes) for rule in ends):
            for name, (_, block) in blocks.items():
                match = regex.fullmatch(name)
                word = next((word for word in regex.groupindex if match and match.span(word) == block.span), None)
                if word is not None and not any(other.fullmatch(name) for other in others):
                    pinned[name] = word
    return pinned


# Config --------------------------------------------------------------------------------------------


def _rule(recipe: Recipe, name: str) -> DepthRule:
    return next(rule for rule in recipe.depths if rule.name == name)


def _periods(rule: DepthRule, values: Values) -> Iterator[tuple[int, str]]:
    """Yield the lengths of the patterns that the model derives from block numbers, with the text of each.

    The value of an expression is such a length, or the pattern itself.
    """
    for expression, text in rule.every:
        period = evaluate_located(expression, values, text.error)
        period = len(period) or None if isinstance(period, list) else period
        if period is not None and (type(period) is not int or period < 1):
            raise text.error(f"the period is {shown(period)}, expected a whole number above 0")
        yield period or 1, text.value


def _deepen_config(
    recipe: Recipe, config: Mapping[str, Any], names: Sequence[str], maps: Mapping[str, BlockMap]
) -> tuple[dict[str, Any], tuple[ConfigChange, ...]]:
    """Return the config of the deeper network and its changes."""
    values = environment(recipe, config, names)
    changes = []
    for name, units in maps.items():
        rule = _rule(recipe, name)
        for period, text in _periods(rule, values):
            _check_period(period, text, name, units)
        changes.append(_sized(rule, config, units.wide_size))
    changes += rewrite_units(recipe.units_of(None), config, map_units((), maps), CONFIG, values)
    after = environment(recipe, with_changes(config, changes), names)
    for rule in recipe.depths:  # a stack whose number of blocks defaults to that of another one keeps its own
        size = evaluate_located(rule.size, values, rule.text.error)
        if rule.name not in maps and evaluate_located(rule.size, after, rule.text.error) != size:
            changes.append(_sized(rule, config, size))
    return with_changes(config, changes), tuple(changes)


def _sized(rule: DepthRule, config: Mapping[str, Any], size: Any) -> ConfigChange:
    return ConfigChange(rule.key, look_up(rule.key, config), size)


def _check_unmoved(rule: DepthRule, units: BlockMap, values: Values) -> None:
    text = rule.unmoved
    if text is None or units.old == tuple(range(units.size)):
        return
    if evaluate_located(text.parse(parse_expression), values, text.error):
        raise PlanError(
            f"the blocks of `{rule.name}` compute with their own number (`{text.value}`), so they must keep it",
            hint="use `--layers-at end`",
        )


def _check_period(period: int, text: str, name: str, units: BlockMap) -> None:
    moved = [p for p, source in enumerate(units.sources) if p % period != source % period]
    if moved:
        raise PlanError(
            f"block {moved[0]} of `{name}` would be a copy of block {units.sources[moved[0]]}, but the model gives "
            f"every {period} blocks a pattern of their own (`{text}`)",
            hint=f"add a multiple of {period} blocks, such as "
            f"{units.size + period}, and in runs of {period} if you choose the positions",
        )
