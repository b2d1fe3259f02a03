"""A recipe as frozen values: an architecture's axes, and what every tensor and config key has to do with them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Generic, Literal, TypeVar

from mupscale_cli.architecture.document import Text
from mupscale_cli.architecture.expressions import Expression
from mupscale_cli.architecture.layouts import Layout, Power
from mupscale_cli.architecture.patterns import Pattern

T = TypeVar("T")
TIES = ("fold", "config", "untie")
Keep = Literal["keep"]
Omit = Literal["omit"]


@dataclass(frozen=True, slots=True)
class Choice(Generic[T]):
    """One alternative: taken when its condition holds; without a condition, always.

    Attributes:
        when: the condition.
        value: what is taken.
        text: the value as written.
        condition: the condition as written.
    """

    when: Expression | None
    value: T
    text: Text
    condition: Text | None = None


@dataclass(frozen=True, slots=True)
class AxisRule:
    """How many units an axis has.

    Attributes:
        name: the axis.
        size: an expression over the config, `shapes` (one size, read off the tensors) or
            `varies` (each place has a size of its own; only the factor is common).
        about: what the axis is, for people.
        uneven: whether nothing averages over it, so that some units may be copied more often than others.
    """

    name: str
    size: Expression | Literal["shapes", "varies"]
    about: str
    text: Text
    uneven: bool = False


@dataclass(frozen=True, slots=True)
class TensorRule:
    """What the tensors that a pattern matches are made of: a layout, or `keep` or `omit` them."""

    pattern: Pattern
    choices: tuple[Choice[Layout | Keep | Omit], ...]
    text: Text


@dataclass(frozen=True, slots=True)
class ConfigRule:
    """What the widened config says under a key; an optional one is written only where it stood."""

    key: str
    optional: bool
    choices: tuple[Choice[tuple[Expression, tuple[Power, ...]]], ...]
    text: Text


@dataclass(frozen=True, slots=True)
class Link:
    """`embed = h * d`: the config derives one axis from others, so their factors multiply."""

    axis: str
    product: tuple[str, ...]
    text: Text


@dataclass(frozen=True, slots=True)
class ParameterRule:
    """A parameter of the reference model that it saves under other names, or in other parts.

    Attributes:
        pattern: of the tensors that are saved; several may make one parameter, or one several.
        template: the parameter's name, with `{_0}`, `{_1}` for what the pattern's `*` matched.
        dims: the parameter's own layout; None where it is just a tensor under another name.
    """

    pattern: Pattern
    template: str
    dims: Choice[Layout | Keep | Omit] | None


@dataclass(frozen=True, slots=True)
class TieRule:
    """A readout that shares the embedding's tensor, which cannot be divided by k for the readout alone.

    Attributes:
        when: whether it does, with this config.
        ways: what to do, the first unless asked otherwise: `fold` the factor into the norm before
            it, let a key of the `config` take it, or `untie` the two.
        shares: tensors, and those whose data they share; all are written when untied.
        text: of the condition.
    """

    when: Expression
    ways: tuple[str, ...]
    shares: tuple[tuple[str, str], ...]
    text: Text


class _Keeping(dict[str, str]):
    """Values for `str.format_map` that leaves what they do not have as it is."""

    def __missing__(self, key: str) -> str:
        return f"{{{key}}}"


@dataclass(frozen=True)
class Recipe:
    """An architecture: its axes, and what every tensor and config key has to do with them.

    Attributes:
        name: file name without its ending.
        file: where it was read, for messages.
        path: its file, None if it is built in.
        digest: sha256 of the text of the file and of those that it extends.
        about: one sentence for people.
        model_types: values of `model_type` in config.json that it is for.
        condition: what else must hold of the config; such a recipe goes before one without.
        tensor_patterns: for checkpoints without config.json, names that must all be there.
        prefixes: what `{prefix}`, or each of several such words, may stand for.
        defaults: config keys with the value that the architecture gives them when absent.
        definitions: names for expressions.
        axes: in the order of the file.
        widen: axes that a bare factor widens.
        groups: for the parts of a composite model, the axes that a factor of the part widens.
        fixed: axes that must not move, with the reason.
        links: axes that the config ties together.
        config: what the widened config says.
        tensors: one rule for every tensor.
        parameters: what the reference model makes of tensors that it saves in another form.
        tie: what can be done about a readout that shares the embedding, None if it never does.
    """

    name: str
    file: str
    digest: str
    about: str = ""
    model_types: tuple[str, ...] = ()
    tensor_patterns: tuple[Pattern, ...] = ()
    prefixes: tuple[dict[str, str], ...] = ({"prefix": ""},)
    defaults: dict[str, object] = field(default_factory=dict)
    definitions: tuple[tuple[str, Expression, Text], ...] = ()
    axes: tuple[AxisRule, ...] = ()
    widen: tuple[str, ...] = ()
    fixed: dict[str, str] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    config: tuple[ConfigRule, ...] = ()
    tensors: tuple[TensorRule, ...] = ()
    parameters: tuple[ParameterRule, ...] = ()
    tie: TieRule | None = None
    condition: Expression | None = None
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    path: Path | None = None

    @property
    def axis_names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)

    @cached_property
    def _parameter_patterns(self) -> tuple[tuple[re.Pattern[str], str, ParameterRule], ...]:
        return tuple(
            (rule.pattern.regex(prefixes), rule.template.format_map(_Keeping(prefixes)), rule)
            for rule in self.parameters
            for prefixes in self.prefixes
        )

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Names of tensors that may stand for one another where embedding and readout are one."""
        pairs = self.tie.shares if self.tie else ()
        found = {}
        for prefixes in self.prefixes:
            for name, source in pairs:
                found[name.format_map(prefixes)] = source.format_map(prefixes)
                found.setdefault(source.format_map(prefixes), name.format_map(prefixes))
        return found

    def parameter_name(self, tensor: str) -> str:
        """What the reference model calls a tensor of the checkpoint."""
        return next((name for name, rule in self._parameters_of(tensor) if rule.dims is None), tensor)

    def other_parameters(self, tensor: str) -> Iterator[tuple[str, Choice[Layout | Keep | Omit]]]:
        """The parameters of other shapes that a tensor of the checkpoint is a part or all of, with their layouts."""
        for name, rule in self._parameters_of(tensor):
            if rule.dims is not None:
                yield name, rule.dims

    def _parameters_of(self, tensor: str) -> Iterator[tuple[str, ParameterRule]]:
        seen = set()
        for regex, template, rule in self._parameter_patterns:
            match = regex.fullmatch(tensor)
            if match is None or (id(rule) in seen):
                continue
            seen.add(id(rule))
            named = set(regex.groupindex.values())
            stars = (text for index, text in enumerate(match.groups(), 1) if index not in named)
            yield template.format(**{f"_{i}": text for i, text in enumerate(stars)}), rule
