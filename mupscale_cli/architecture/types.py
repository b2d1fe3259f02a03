"""A recipe as frozen values: the axes of an architecture, and how every tensor and config key depends on them."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Generic, Literal, TypeVar

from mupscale_cli.architecture.document import Text
from mupscale_cli.architecture.expressions import Expression, names_in
from mupscale_cli.architecture.layouts import Layout, Power
from mupscale_cli.architecture.patterns import Pattern, Prefix
from mupscale_cli.architecture.units import Template, units_in

T = TypeVar("T")
TIES = ("fold", "config", "untie")
SINUSOIDAL = ("halves", "pairs")
ROTARY = (*SINUSOIDAL, "none")
NORMS = ("rms", "layer")
ORDERS = ("interleaved", "tiled", "adjacent")
Keep = Literal["keep"]
Omit = Literal["omit"]


@dataclass(frozen=True, slots=True)
class Choice(Generic[T]):
    """One alternative, used if its condition holds or if it has none.

    Attributes:
        when: the condition, None if it always holds.
        value: the value of this alternative.
        text: the value as written.
        condition: the condition as written.
    """

    when: Expression | None
    value: T
    text: Text
    condition: Text | None = None


@dataclass(frozen=True, slots=True)
class AxisRule:
    """An axis and the number of its units.

    Attributes:
        name: the axis.
        size: an expression over the config, `shapes` (one size, read from the tensors) or
            `varies` (the size differs from place to place; only the factor is common).
        about: a description for people.
        text: the size as written.
        uneven: whether some units may be copied more often than others, because no layer averages over the axis.
        eps: the config keys of the eps of the norms over the axis, or its value if the code fixes it; None if the
            recipe does not say.
        rotary: a key of `ROTARY` if attention multiplies queries and keys over the axis: rotary positions turn unit i
            with i + size / 2 (`halves`) or with its neighbor (`pairs`), or there are none; else None.
        norm: a key of `NORMS` if the axis is a residual stream that no norm with a gain reads; else None.
        sinusoidal: a key of `SINUSOIDAL` if the model computes the units: sines and cosines of frequencies that depend
            on their number, all sines first (`halves`) or each beside its cosine (`pairs`); else None.
        order: a key of `ORDERS`: whether the copies of a unit may stand beside it (`interleaved`), or must
            (`adjacent`), since the model joins tensors of several widths end to end; or whether they must come behind
            all old units (`tiled`), since a layer reads some of these by their number.
    """

    name: str
    size: Expression | Literal["shapes", "varies"]
    about: str
    text: Text
    uneven: bool = False
    eps: tuple[str, ...] | float | None = None
    rotary: str | None = None
    norm: str | None = None
    sinusoidal: str | None = None
    order: Literal["interleaved", "tiled", "adjacent"] = "interleaved"

    @property
    def is_spread(self) -> bool:
        """Whether fresh units lie between the old ones, which then keep their frequencies."""
        return bool(self.sinusoidal) or self.rotary in SINUSOIDAL


@dataclass(frozen=True, slots=True)
class MeasuredDefault:
    """The default of a config key that the shapes of the tensors show.

    Attributes:
        pattern: matches one tensor or, with a `*` that is a number, several.
        dim: the dimension whose size is the value; the value is a list of sizes if the pattern has a `*`.
    """

    pattern: Pattern
    dim: int


@dataclass(frozen=True, slots=True)
class TensorRule:
    """The layout of the tensors that a pattern matches, or whether to `keep` or `omit` them."""

    pattern: Pattern
    choices: tuple[Choice[Layout | Keep | Omit], ...]
    text: Text


@dataclass(frozen=True, slots=True)
class ConfigRule:
    """The value of a key in the widened config; an optional key is written only if the narrow config has it."""

    key: str
    optional: bool
    choices: tuple[Choice[tuple[Expression, tuple[Power, ...]]], ...]
    text: Text

    @property
    def names(self) -> frozenset[str]:
        """The axes and config keys that the value depends on."""
        return frozenset(name.name for choice in self.choices for name in names_in(choice.value[0]))


@dataclass(frozen=True, slots=True)
class Link:
    """A link such as `embed = h * d`: the config derives one axis from others, so their factors multiply."""

    axis: str
    product: tuple[str, ...]
    text: Text


@dataclass(frozen=True, slots=True)
class Requirement:
    """A condition on the config, and the sentence that a user reads: the reason for a refusal, or a note."""

    condition: Expression
    reason: str
    text: Text


@dataclass(frozen=True, slots=True)
class DepthRule:
    """A stack of blocks.

    Attributes:
        name: the name of the stack, which users type like that of an axis.
        size: the number of blocks, an expression over the config; its first name is the key that holds the number.
        blocks: matches the beginning of a block's tensor names; its `*` is the number of the block.
        about: a description for people.
        every: periods of the properties that the model derives from a block's number.
        unmoved: a condition under which the model computes with the number itself, so that old blocks must keep theirs.
        text: the name as written.
    """

    name: str
    size: Expression
    blocks: Pattern
    about: str
    every: tuple[tuple[Expression, Text], ...]
    unmoved: Text | None
    text: Text

    @property
    def key(self) -> str:
        """The config key that holds the number of blocks."""
        return next(names_in(self.size)).name


@dataclass(frozen=True, slots=True)
class UnitsRule:
    """A key whose value names units of axes or blocks of stacks.

    Attributes:
        key: the key, dotted within sections.
        file: the JSON file that has it; None for config.json.
        template: what the value names.
        text: the template as written.
    """

    key: str
    file: str | None
    template: Template
    text: Text

    @property
    def names(self) -> frozenset[str]:
        """The axes and stacks that the value names."""
        return frozenset(unit.name for unit in units_in(self.template))


@dataclass(frozen=True, slots=True)
class ParameterRule:
    """A parameter that the reference model saves under another name, split or merged.

    Attributes:
        pattern: matches the saved tensors; several tensors may form one parameter, or one tensor several.
        template: the parameter's name, with `{_0}`, `{_1}` for what the pattern's `*` matched.
        dims: the parameter's own layout; None if the parameter is the tensor under another name.
        share: which of how many equal runs of the tensors, in the order of the numbers in their names, it consists of.
    """

    pattern: Pattern
    template: str
    dims: Choice[Layout | Keep | Omit] | None
    share: tuple[int, int] = (0, 1)


@dataclass(frozen=True, slots=True)
class TieRule:
    """How to treat a readout that shares the embedding's tensor, which cannot be divided by k for the readout alone.

    Attributes:
        when: a condition on the config that tells whether the readout is tied.
        ways: the supported ways, the default first: `fold` the factor into the norm before the readout,
            put it into a key of the `config`, or `untie` the two.
        shares: pairs of a tensor and the tensor whose data it shares; all of them are written when untied.
        text: the condition as written.
    """

    when: Expression
    ways: tuple[str, ...]
    shares: tuple[tuple[str, str], ...]
    text: Text


class _PartialValues(dict[str, str]):
    """Values for `str.format_map` that leave unknown placeholders unchanged."""

    def __missing__(self, key: str) -> str:
        return f"{{{key}}}"


_ParameterPattern = tuple[ParameterRule, re.Pattern[str], str]  # with the template of the parameter's name


def _parameters_of(tensor: str, patterns: Iterable[_ParameterPattern]) -> Iterator[tuple[str, ParameterRule]]:
    seen = set()
    for rule, regex, template in patterns:
        if id(rule) in seen or not rule.pattern.may_match(tensor):
            continue
        match = regex.fullmatch(tensor)
        if match is None:
            continue
        seen.add(id(rule))
        named = set(regex.groupindex.values())
        stars = (text for index, text in enumerate(match.groups(), 1) if index not in named)
        yield template.format(**{f"_{i}": text for i, text in enumerate(stars)}), rule


@dataclass(frozen=True)
class Recipe:
    """An architecture: its axes, and how every tensor and config key depends on them.

    Attributes:
        name: the file's name without its suffix.
        file: the file that it was read from, for messages.
        path: the file of a user's recipe, None for any other.
        text: the whole text of a drafted recipe, which may be in no file; None for any other.
        digest: SHA-256 of the text of the file, of the files that it extends and of its parts.
        about: a one-sentence description for people.
        keys: config keys, and the values or wildcards for them, by which the recipe is chosen; all of them must match.
        condition: a further condition on the config; a recipe with one is tried before a recipe without.
        tensor_patterns: tensor names that identify a checkpoint without config.json; all of them must match.
        prefixes: the values that `{prefix}`, or each of several such words, can take.
        defaults: the values that the architecture uses for absent config keys.
        measured: the defaults that are read off the shapes of the tensors.
        definitions: named expressions.
        axes: the axes, in the order of the file.
        widen: the axes that a bare factor widens.
        groups: for each part of a composite model, the axes that the part's factor widens.
        fixed: the axes that must not be widened, each with the reason.
        links: axes that the config derives from others.
        depths: the stacks of blocks that can become deeper.
        config: the values of the widened config.
        units: the keys of JSON files whose values name units.
        covers: conditions that the source's config must satisfy, whatever grows.
        requires: conditions that the widened config must satisfy.
        notes: what a user should know about the widened model, each with the condition under which it is so.
        tensors: the rules for tensors; each tensor follows one of them.
        implied: rules that no recipe has to state; see `implied`.
        parameters: the names and shapes that the reference model gives to tensors that it saves in another form.
        tie: how to treat a readout that shares the embedding's tensor, None if it never does.
    """

    name: str
    file: str
    digest: str
    about: str = ""
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tensor_patterns: tuple[Pattern, ...] = ()
    prefixes: tuple[dict[str, str], ...] = ({"prefix": ""},)
    defaults: dict[str, object] = field(default_factory=dict)
    measured: dict[str, MeasuredDefault] = field(default_factory=dict)
    definitions: tuple[tuple[str, Expression, Text], ...] = ()
    axes: tuple[AxisRule, ...] = ()
    widen: tuple[str, ...] = ()
    fixed: dict[str, str] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    depths: tuple[DepthRule, ...] = ()
    config: tuple[ConfigRule, ...] = ()
    units: tuple[UnitsRule, ...] = ()
    covers: tuple[Requirement, ...] = ()
    requires: tuple[Requirement, ...] = ()
    notes: tuple[Requirement, ...] = ()
    tensors: tuple[TensorRule, ...] = ()
    implied: tuple[TensorRule, ...] = ()
    parameters: tuple[ParameterRule, ...] = ()
    tie: TieRule | None = None
    condition: Expression | None = None
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    path: Path | None = None
    text: str | None = None

    @property
    def model_types(self) -> tuple[str, ...]:
        """The values of `model_type` in config.json by which the recipe is chosen."""
        return self.keys.get("model_type", ())

    @property
    def axis_names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)

    @property
    def side_files(self) -> frozenset[str]:
        """The JSON files beside config.json whose values name units."""
        return frozenset(rule.file for rule in self.units if rule.file is not None)

    def units_of(self, file: str | None) -> tuple[UnitsRule, ...]:
        """Return the rules of one JSON file; None for config.json."""
        return tuple(rule for rule in self.units if rule.file == file)

    @cached_property
    def _renaming(self) -> tuple[_ParameterPattern, ...]:
        return self._patterns(rule for rule in self.parameters if rule.dims is None)

    @cached_property
    def _reshaping(self) -> tuple[_ParameterPattern, ...]:
        return self._patterns(rule for rule in self.parameters if rule.dims is not None)

    def _patterns(self, rules: Iterable[ParameterRule]) -> tuple[_ParameterPattern, ...]:
        """Compile patterns, those with the fewest wildcards and the longest prefixes first, since they win."""

        def width(pair: tuple[ParameterRule, Mapping[str, str]]) -> tuple[int, int]:
            rule, prefixes = pair
            words = (part.word for part in rule.pattern.parts if isinstance(part, Prefix))
            return rule.pattern.num_wildcards, -sum(len(prefixes[word]) for word in words)

        return tuple(
            (rule, rule.pattern.regex(prefixes), rule.template.format_map(_PartialValues(prefixes)))
            for rule, prefixes in sorted(itertools.product(tuple(rules), self.prefixes), key=width)
        )

    @cached_property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Names of tensors that can replace one another if embedding and readout share their data, one a prefix."""
        pairs = self.tie.shares if self.tie else ()
        aliases: dict[str, dict[str, None]] = defaultdict(dict)
        for prefixes in self.prefixes:
            for name, source in pairs:
                one, other = name.format_map(prefixes), source.format_map(prefixes)
                aliases[one][other] = aliases[other][one] = None
        return {name: tuple(others) for name, others in aliases.items()}

    @cached_property
    def sharing(self) -> frozenset[str]:
        """Names of tensors that share the data of another one if the readout is tied."""
        pairs = self.tie.shares if self.tie else ()
        return frozenset(name.format_map(prefixes) for name, _ in pairs for prefixes in self.prefixes)

    def knows(self, tensor: str) -> bool:
        """Return whether any rule is for a tensor of this name, with any prefix."""
        return any(self._rules_for(tensor))

    def follows(self, tensor: str, rule: TensorRule) -> bool:
        """Return whether a rule is for a tensor of this name, with any prefix."""
        # Most rules end otherwise, which spares compiling their expressions.
        return rule.pattern.may_match(tensor) and any(
            rule.pattern.regex(prefixes).fullmatch(tensor) for prefixes in self.prefixes
        )

    def is_optional(self, tensor: str) -> bool:
        """Return whether a checkpoint without a tensor may be complete: every rule for its name is optional."""
        return self.knows(tensor) and all(rule.pattern.optional for rule in self._rules_for(tensor))

    def _rules_for(self, tensor: str) -> Iterator[TensorRule]:
        return (rule for rule in (*self.tensors, *self.implied) if self.follows(tensor, rule))

    def parameter_name(self, tensor: str) -> str:
        """Return the reference model's name for a tensor of the checkpoint."""
        return next((name for name, _ in _parameters_of(tensor, self._renaming)), tensor)

    def other_parameters(self, tensor: str) -> Iterator[tuple[str, Choice[Layout | Keep | Omit], tuple[int, int]]]:
        """Yield the parameters of other shapes that a tensor of the checkpoint may belong to, with layout and share."""
        for name, rule in _parameters_of(tensor, self._reshaping):
            if rule.dims is not None:
                yield name, rule.dims, rule.share
