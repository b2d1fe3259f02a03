"""Recipes: an architecture described as data, exactly enough to compute with.

`load_recipe` turns a YAML file (design: axes, tensors, config keys) into a frozen `Recipe`, or
raises a `RecipeError` that points at the line and the token. Nothing here knows a checkpoint.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from mupscale_cli.architecture import composite, language
from mupscale_cli.architecture.document import MAX_BYTES, Entries, Items, Node, Text, parse_document
from mupscale_cli.architecture.language import Expression, LanguageError, Layout, Pattern, Power, suggest
from mupscale_cli.errors import RecipeError

T = TypeVar("T")
_MAX_EXTENDS = 20  # recipes in a row
TIES = ("fold", "config", "untie")
_PACKAGED = Path(__file__).parent.parent / "recipes"  # in a wheel
_CHECKOUT = Path(__file__).parent.parent.parent / "recipes"  # in an editable install
BUILT_IN = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT

FORMAT_VERSION = 1  # of recipes; one that says none has it

Keep = Literal["keep"]
Omit = Literal["omit"]
_SECTIONS = (
    "about",
    "extends",
    "match",
    "parts",
    "prefix",
    "defaults",
    "define",
    "axes",
    "widen",
    "fixed",
    "linked",
    "config",
    "tensors",
    "parameters",
    "tie",
)


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


# Finding --------------------------------------------------------------------------------------


def recipe_files() -> tuple[Path, ...]:
    """The built-in recipe files, by name."""
    return tuple(sorted(BUILT_IN.glob("*.yaml")))


def load_recipe(name_or_file: str | Path, config: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe by its built-in name (`llama`), a model type (`mistral`) or from a file (`./mine.yaml`).

    Args:
        name_or_file: which.
        config: config.json; a composite recipe chooses the recipes of its parts by it.

    Raises:
        RecipeError: there is none of that name, or it is not a valid recipe.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return replace(_load_file(path, config), path=path)
    built_in = BUILT_IN / f"{name_or_file}.yaml"
    if not built_in.is_file():
        found = recipe_for({**(config or {}), "model_type": str(name_or_file)})
        if found is None:
            known = [*(file.stem for file in recipe_files()), *model_types()]
            near = suggest(str(name_or_file), known)
            raise RecipeError(
                f"there is no recipe `{name_or_file}`",
                hint=f"{near + ' ' if near else ''}`mupscale recipes list` shows those that there are",
            )
        built_in = BUILT_IN / f"{found}.yaml"
    return _load_file(built_in, config)


def recipe_for(config: Mapping[str, Any]) -> str | None:
    """The built-in recipe for a config, by its `model_type` and the recipes' conditions."""
    model_type = str(config.get("model_type"))
    for condition, name in model_types(model_type).get(model_type, ()):
        if condition is None or _holds(condition, config):
            return name
    return None


def _holds(condition: Expression, config: Mapping[str, Any]) -> bool:
    """Whether a condition holds; one that cannot be evaluated for a config is not about such configs."""
    try:
        return bool(language.evaluate(condition, config))
    except LanguageError:
        return False


def _load_file(path: Path, config: Mapping[str, Any] | None = None) -> Recipe:
    document, digest = _read(path, seen=())
    chosen = []
    for part in composite.read_parts(document):
        section = composite.section_of(part, config or {})
        own = (config or {}).get(section) if section else None
        named = recipe_for(own) if isinstance(own, Mapping) else None
        chosen.append((named or part.recipe.value, section))
    return _load_parts(path, digest, tuple(chosen))


@lru_cache(maxsize=256)
def _load_parts(path: Path, digest: str, chosen: tuple[tuple[str, str], ...]) -> Recipe:
    """A recipe, with for each of its parts a recipe's name and the section of the config."""
    document, _ = _read(path, seen=())
    groups, documents = {}, []
    for part, (name, section) in zip(composite.read_parts(document), chosen, strict=True):
        file = _beside(path, name)
        if file is None:
            raise part.recipe.error(f"there is no recipe `{name}`")
        inner, inner_digest = _read(file, seen=(path,))
        renamed, groups[part.name] = composite.as_part(inner, part, section)
        documents.append(renamed)
        digest = hashlib.sha256((digest + inner_digest).encode()).hexdigest()
    if documents:
        document = composite.join(documents, document, _merge)
    return _recipe(path.stem, _shown(path), digest, document, groups)


def _beside(path: Path, name: str) -> Path | None:
    """The recipe of a name in the same folder, else the built-in one."""
    if re.fullmatch(r"\w[\w.-]*", name) is None:  # a path: a recipe may come from anywhere
        return None
    files = (path.parent / f"{name}.yaml", BUILT_IN / f"{name}.yaml")
    return next((file for file in files if file.is_file()), None)


def _shown(path: Path) -> str:
    return f"recipes/{path.name}" if path.parent == BUILT_IN else str(path)


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[Entries, str]:
    """The document of a file with those that it extends merged under it, and the hash of them all."""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device has no end
            raise RecipeError(f"cannot read the recipe `{path}`: it is not a file")
        with open(path, "rb") as stream:
            text = stream.read(MAX_BYTES + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise RecipeError(f"cannot read the recipe `{path}`: {why}") from error
    document = _of_known_version(parse_document(text, _shown(path)))
    digest = hashlib.sha256(text.encode()).hexdigest()
    base = document.get("extends")
    if base is None:
        return document, digest
    if not isinstance(base, Text):
        raise base.error("`extends` takes the name of one recipe")
    parent = _beside(path, base.value)
    if parent is None:
        known = [file.stem for file in recipe_files()]
        raise base.error(f"there is no recipe `{base.value}`", hint=suggest(base.value, known))
    if parent in (*seen, path) or len(seen) > _MAX_EXTENDS:
        raise base.error(f"`{path.stem}` extends itself")
    parent_document, parent_digest = _read(parent, (*seen, path))
    return _merge(parent_document, document), hashlib.sha256((digest + parent_digest).encode()).hexdigest()


def _of_known_version(document: Entries) -> Entries:
    """The document without its version, which is 1 if it says none.

    Raises:
        RecipeError: it is of a later version.
    """
    node = document.get("version")
    if node is not None and not (isinstance(node, Text) and node.value == str(FORMAT_VERSION)):
        raise node.error(f"this mupscale reads recipes of version {FORMAT_VERSION}", hint="upgrade mupscale")
    return Entries(tuple(pair for pair in document if pair[0].value != "version"), document.origin)


def _merge(parent: Entries, child: Entries) -> Entries:
    """Sections that are mappings are merged key by key; anything else the child says replaces it."""
    own = {key.value: (key, node) for key, node in child if key.value != "extends"}
    merged = []
    for key, node in parent:
        if key.value in ("about", "match"):
            continue
        if key.value not in own:
            merged.append((key, node))
            continue
        own_key, own_node = own.pop(key.value)
        if isinstance(node, Entries) and isinstance(own_node, Entries):
            own_node = _merge_section(node, own_node)
        merged.append((own_key, own_node))
    return Entries((*own.values(), *merged), child.origin)


def _merge_section(parent: Entries, child: Entries) -> Entries:
    own = {key.value.removesuffix("?"): (key, node) for key, node in child}
    inherited = [own.pop(key.value.removesuffix("?"), (key, node)) for key, node in parent]
    pairs = [(key, node) for key, node in (*inherited, *own.values()) if not (isinstance(node, Text) and node.is_null)]
    return Entries(tuple(pairs), child.origin)


@cache
def model_types(containing: str = "") -> dict[str, list[tuple[Expression | None, str]]]:
    """The built-in recipes for each `model_type` of config.json; those with a condition come first.

    Args:
        containing: read only recipes in whose text this occurs, which is a fraction of the time.
    """
    found: dict[str, list[tuple[Expression | None, str]]] = {}
    for file in recipe_files():
        text = file.read_text(encoding="utf-8")
        if containing not in text:
            continue
        types, condition, _ = _match(parse_document(text, _shown(file)).get("match"))
        for model_type in types:
            found.setdefault(model_type, []).append((condition, file.stem))
    for recipes in found.values():
        recipes.sort(key=lambda pair: pair[0] is None)
    return found


# Reading a document ---------------------------------------------------------------------------


def _recipe(name: str, file: str, digest: str, document: Entries, groups: dict[str, tuple[str, ...]]) -> Recipe:
    for key, _ in document:
        if key.value not in _SECTIONS:
            raise key.error(f"unknown section `{key.value}`", hint=suggest(key.value, _SECTIONS))
    sections = {key.value: node for key, node in document}
    for required in ("axes", "tensors"):
        if required not in sections:
            raise RecipeError(f"{file}: the section `{required}` is missing")
    model_types, condition, tensor_patterns = _match(sections.get("match"))
    prefixes = _prefixes(sections.get("prefix"))
    recipe = Recipe(
        name=name,
        file=file,
        digest=digest,
        about=_optional_text(sections.get("about")),
        model_types=model_types,
        tensor_patterns=tensor_patterns,
        condition=condition,
        parameters=tuple(
            rule
            for key, node in _entries(sections.get("parameters"))
            for rule in _parameter_rules(key, node, prefixes[0])
        ),
        tie=_tie(sections.get("tie"), prefixes[0]),
        prefixes=prefixes,
        groups=groups,
        defaults={key.value: _plain(node) for key, node in _entries(sections.get("defaults"))},
        definitions=tuple(_definition(key, node) for key, node in _entries(sections.get("define"))),
        axes=tuple(_axis(key, node) for key, node in _entries(sections["axes"])),
        widen=_widen(sections.get("widen"), groups),
        fixed={key.value: _text(node).value for key, node in _entries(sections.get("fixed"))},
        links=tuple(_link(key, node) for key, node in _entries(sections.get("linked"))),
        config=tuple(_config_rule(key, node) for key, node in _entries(sections.get("config"))),
        tensors=tuple(_tensor_rule(key, node, prefixes[0]) for key, node in _entries(sections["tensors"])),
    )
    _check_names(recipe, sections)
    return recipe


def _match(node: Node | None) -> tuple[tuple[str, ...], Expression | None, tuple[Pattern, ...]]:
    entries = {key.value: (key, value) for key, value in _entries(node)}
    for key, _ in entries.values():
        if key.value not in ("model_type", "when", "tensors"):
            raise key.error(f"unknown condition `{key.value}`", hint="`match` takes `model_type`, `when` and `tensors`")
    types = tuple(text.value for text in _texts(entries["model_type"][1])) if "model_type" in entries else ()
    when = _parse(language.parse_expression, _text(entries["when"][1])) if "when" in entries else None
    patterns = _texts(entries["tensors"][1]) if "tensors" in entries else ()
    return types, when, tuple(_parse(language.parse_pattern, text) for text in patterns)


def _prefixes(node: Node | None) -> tuple[dict[str, str], ...]:
    """`[a., b.]` for one word, `prefix`; a list of mappings for several, which belong together."""
    if node is None:
        return ({"prefix": ""},)
    nodes = node.nodes if isinstance(node, Items) else (node,)
    if not nodes:
        raise node.error("expected at least one prefix")
    found = []
    for item in nodes:
        pairs = item.pairs if isinstance(item, Entries) else ((None, item),)
        for key, _ in pairs:
            if key is not None:
                _check_identifier(key)
        found.append({key.value if key else "prefix": _text(text).value for key, text in pairs})
        if set(found[-1]) != set(found[0]):
            raise item.error(f"expected the words {', '.join(found[0])}, as in the first")
    return tuple(found)


def _widen(node: Node | None, groups: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    names = [text.value for text in _texts(node)] if node is not None else []
    return tuple(axis for name in names for axis in groups.get(name, (name,)))


def _definition(key: Text, node: Node) -> tuple[str, Expression, Text]:
    text = _text(node)
    return key.value, _parse(language.parse_expression, text), text


def _axis(key: Text, node: Node) -> AxisRule:
    if key.as_written:
        _check_identifier(key)
    if not isinstance(node, Entries):
        size, about, uneven = _text(node), "", False
    else:
        for name, _ in node:
            if name.value not in ("size", "about", "uneven"):
                raise name.error(f"unknown key `{name.value}`", hint="an axis has `size`, `about` and `uneven`")
        size_node = node.get("size")
        if size_node is None:
            raise key.error(f"the axis `{key.value}` has no `size`")
        size, about = _text(size_node), _optional_text(node.get("about"))
        uneven = _flag(node.get("uneven"))
    kind: Expression | Literal["shapes", "varies"]
    if size.value in ("from shapes", "varies"):
        kind = "shapes" if size.value == "from shapes" else "varies"
    else:
        kind = _parse(language.parse_expression, size)
    return AxisRule(key.value, kind, about, size, uneven)


def _flag(node: Node | None) -> bool:
    if node is None:
        return False
    text = _text(node)
    if text.value not in ("true", "false"):
        raise text.error(f"`{text.value}` is neither true nor false")
    return text.value == "true"


def _link(key: Text, node: Node) -> Link:
    text = _text(node)
    return Link(key.value, tuple(factor.strip() for factor in text.value.split("*")), text)


def _tie(node: Node | None, prefixes: Mapping[str, str]) -> TieRule | None:
    if node is None or (isinstance(node, Text) and node.is_null):
        return None
    found = dict.fromkeys(("when", "ways", "shares"))
    entries = {key.value: value for key, value in _entries(node)}
    for key, _ in _entries(node):
        if key.value not in found:
            raise key.error(f"unknown key `{key.value}`", hint="`tie` has `when`, `ways` and `shares`")
    if "when" not in entries or "ways" not in entries:
        raise node.error("`tie` needs both `when` and `ways`")
    when = _text(entries["when"])
    ways = _texts(entries["ways"])
    for way in ways:
        if way.value not in TIES:
            raise way.error(f"there is no way `{way.value}`", hint=f"known: {', '.join(TIES)}")
    pairs = []
    for key, source in _entries(entries.get("shares")):
        for text in (key, _text(source)):
            pattern = _parse(lambda text: language.parse_pattern(text, prefixes), text)
            if not all(isinstance(part, (str, language.Prefix)) for part in pattern.parts):
                raise text.error("expected the name of one tensor")
        pairs.append((key.value, _text(source).value))
    if any(way.value == "untie" for way in ways) and not pairs:
        raise node.error("to `untie`, `shares` must name the tensors that share another one's data")
    return TieRule(_parse(language.parse_expression, when), tuple(way.value for way in ways), tuple(pairs), when)


def _parameter_rules(key: Text, node: Node, prefixes: Mapping[str, str]) -> Iterator[ParameterRule]:
    """A pattern with another name, whose `*` stand for what the pattern's `*` or `**` matched, or several with dims."""
    pattern = _parse(lambda text: language.parse_pattern(text, prefixes), key)
    for item in node.nodes if isinstance(node, Items) else (node,):
        dims = None
        name = item
        if isinstance(item, Entries):
            entries = {key.value: value for key, value in item}
            if set(entries) != {"name", "dims"}:
                raise item.error("a parameter of another shape has `name` and `dims`")
            name = entries["name"]
            dims = _choice(entries["dims"], "dims", _layout)
        text = _text(name)
        wildcards = sum(part in (language.STAR, language.REST) for part in pattern.parts)
        yield ParameterRule(pattern, _template(text, prefixes, wildcards), dims)


def _template(text: Text, prefixes: Mapping[str, str], wildcards: int) -> str:
    """A name with prefixes and `*`, as a template in which the latter are numbered."""
    parts = _parse(lambda text: language.parse_pattern(text, prefixes), text).parts
    numbers = itertools.count()
    pieces = []
    for part in parts:
        if isinstance(part, str):
            pieces.append(part)
        elif isinstance(part, language.Prefix):
            pieces.append(f"{{{part.word}}}")
        elif part is language.STAR:
            pieces.append(f"{{_{next(numbers)}}}")
        else:
            raise text.error("a parameter's name is made of text, prefixes and `*`")
    if (found := next(numbers)) != wildcards:
        raise text.error(f"has {found} `*`, the name on the left has {wildcards}")
    return "".join(pieces)


def _tensor_rule(key: Text, node: Node, prefixes: Mapping[str, str]) -> TensorRule:
    pattern = _parse(lambda text: language.parse_pattern(text, prefixes), key)
    return TensorRule(pattern, _choices(node, "dims", _layout), key)


def _layout(text: Text) -> Layout | Keep | Omit:
    if text.value in ("keep", "omit"):
        return text.value  # type: ignore[return-value]
    return _parse(language.parse_layout, text)


def _config_rule(key: Text, node: Node) -> ConfigRule:
    name = key.value.removesuffix("?")
    choices = _choices(node, "value", lambda text: _parse(language.parse_scaled_expression, text))
    return ConfigRule(name, name != key.value, choices, key)


def _choices(node: Node, word: str, parse: Callable[[Text], T]) -> tuple[Choice[T], ...]:
    nodes = node.nodes if isinstance(node, Items) else (node,)
    if not nodes:
        raise node.error("expected at least one alternative")
    choices = tuple(_choice(item, word, parse) for item in nodes)
    for choice in choices[:-1]:
        if choice.when is None:
            raise choice.text.error("the alternatives below it are never taken", hint="put it last")
    return choices


def _choice(node: Node, word: str, parse: Callable[[Text], T]) -> Choice[T]:
    if not isinstance(node, Entries):
        text = _text(node)
        return Choice(None, parse(text), text)
    for key, _ in node:
        if key.value not in ("when", word):
            raise key.error(f"unknown key `{key.value}`", hint=f"an alternative has `when` and `{word}`")
    when, value = node.get("when"), node.get(word)
    if when is None or value is None:
        raise node.error(f"an alternative needs both `when` and `{word}`")
    text, condition = _text(value), _text(when)
    return Choice(_parse(language.parse_expression, condition), parse(text), text, condition)


# Names that must be known ---------------------------------------------------------------------


def _check_names(recipe: Recipe, sections: dict[str, Node]) -> None:
    axes = set(recipe.axis_names)

    def known(name: str, text: Text, span: tuple[int, int] | None = None) -> None:
        if name not in axes:
            raise text.error(f"unknown axis `{name}`", span, suggest(name, axes))

    if "widen" in sections:
        for text in _texts(sections["widen"]):
            if text.value in recipe.groups:
                continue
            known(text.value, text)
            if text.value in recipe.fixed:
                raise text.error(f"`{text.value}` is both widened and fixed")
    for key, _ in _entries(sections.get("fixed")):
        known(key.value, key)
    for key, _ in _entries(sections.get("linked")):
        known(key.value, key)
    for link in recipe.links:
        for name in link.product:
            known(name, link.text)
    mentioned = set()
    for text, axis, span in _axis_mentions(recipe):
        known(axis, text, span)
        mentioned.add(axis)
    for key, _ in _entries(sections["axes"]):
        if key.value not in mentioned:
            raise key.error(f"no tensor uses the axis `{key.value}`", hint="take it out, or use it in a tensor")


def _axis_mentions(recipe: Recipe) -> Iterator[tuple[Text, str, tuple[int, int]]]:
    for rule in recipe.tensors:
        for part in rule.pattern.axes:
            for name in part.names:
                yield rule.text, name, part.span
        for choice in rule.choices:
            if isinstance(choice.value, Layout):
                for ref in language.axis_refs(choice.value):
                    name = ref.axis if isinstance(ref, Power) else ref.name
                    yield choice.text, name, ref.span
    for config_rule in recipe.config:
        for config_choice in config_rule.choices:
            for power in config_choice.value[1]:
                yield config_choice.text, power.axis, power.span


# Nodes to values ------------------------------------------------------------------------------


def _parse(parse: Callable[[str], T], text: Text) -> T:
    """Parse a text; what is wrong with it is raised with file, line and caret."""
    try:
        return parse(text.value)
    except LanguageError as error:
        raise text.error(error.message, error.span, error.hint) from error


def _entries(node: Node | None) -> Entries | tuple[()]:
    if node is None or (isinstance(node, Text) and node.is_null):
        return ()
    if not isinstance(node, Entries):
        raise node.error("expected a mapping")
    return node


def _text(node: Node) -> Text:
    if not isinstance(node, Text):
        raise node.error("expected a text")
    return node


def _optional_text(node: Node | None) -> str:
    return "" if node is None else _text(node).value


def _texts(node: Node) -> tuple[Text, ...]:
    nodes = node.nodes if isinstance(node, Items) else (node,)
    return tuple(_text(item) for item in nodes)


def _check_identifier(text: Text) -> None:
    if not text.value.isidentifier():
        raise text.error(f"`{text.value}` cannot be a name", hint="letters, digits and `_`, not a digit first")


def _plain(node: Node) -> object:
    """A default as JSON would have it: null, true, false, numbers, texts and lists of them."""
    if isinstance(node, Items):
        return [_plain(item) for item in node.nodes]
    text = _text(node)
    if text.quoted:
        return text.value
    words: dict[str, object] = {"true": True, "false": False, "null": None, "~": None, "": None}
    if text.value in words:
        return words[text.value]
    for number in (int, float):
        try:
            return number(text.value)
        except ValueError:
            continue
    return text.value
