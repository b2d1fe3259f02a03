"""Find recipes by name, model type or file, and load them with the recipes that they extend and their parts.

`load_recipe` turns a YAML file into a frozen `Recipe`. Nothing here knows a checkpoint.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from mupscale_cli.architecture import composite
from mupscale_cli.architecture.document import MAX_BYTES, Entries, Node, Text, parse_document
from mupscale_cli.architecture.expressions import Expression, evaluate, look_up
from mupscale_cli.architecture.parsing import parse_match, parse_prefixes, parse_recipe
from mupscale_cli.architecture.patterns import Pattern, parse_pattern
from mupscale_cli.architecture.syntax import LanguageError
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.errors import RecipeError
from mupscale_cli.files import read_errors, read_text
from mupscale_cli.text import suggest

_MAX_EXTENDS = 20  # length of a chain of recipes that extend one another
_PACKAGED = Path(__file__).parent.parent / "recipes"  # in a wheel
_CHECKOUT = Path(__file__).parent.parent.parent / "recipes"  # in an editable install
BUILT_IN = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT

_SECTION = re.compile(r"^(\w+):.*\n(?:[ \t#].*\n|\n)*", re.MULTILINE)  # a section ends at the next key without indent
_HEADING = ("about", "match", "extends", "parts", "axes")
_NAMING = ("extends", "parts", "prefix", "tensors")
_OF_WORDS = (
    "axes",
    "depth",
)  # sections whose entries are words with values; `ffn: SIZE` is short for `ffn: {size: SIZE}`

FORMAT_VERSION = 1  # version of the recipe format, and the default of a recipe without a version


@dataclass(frozen=True, slots=True)
class Heading:
    """What a recipe is for; see the fields of `Recipe`."""

    name: str
    about: str
    keys: Mapping[str, tuple[str, ...]]
    axis_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Match:
    """What a built-in recipe is chosen by; see the fields of `Recipe`."""

    recipe: str
    keys: Mapping[str, tuple[str, ...]]
    condition: Expression | None
    tensor_patterns: tuple[Pattern, ...]


def recipe_files() -> tuple[Path, ...]:
    """Return the built-in recipe files, sorted by name."""
    return tuple(sorted(BUILT_IN.glob("*.yaml")))


def load_recipe(name_or_file: str | Path, config: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe by its built-in name (`llama`), a model type (`mistral`) or from a file (`./mine.yaml`).

    Args:
        name_or_file: a built-in recipe, a model type or a file.
        config: config.json, which selects the recipes of a composite recipe's parts.

    Raises:
        RecipeError: the recipe does not exist or is invalid.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return replace(_load_file(path, config), path=path)
    built_in = BUILT_IN / f"{name_or_file}.yaml"
    if not built_in.is_file():
        built_in_name = recipe_for({**(config or {}), "model_type": str(name_or_file)})
        if built_in_name is None:
            known = [*(file.stem for file in recipe_files()), *matched_values()]
            near = suggest(str(name_or_file), known)
            raise RecipeError(
                f"unknown recipe `{name_or_file}`",
                hint=f"{near + ' ' if near else ''}run `mupscale recipes list` to see the built-in recipes",
            )
        built_in = BUILT_IN / f"{built_in_name}.yaml"
    return _load_file(built_in, config)


def read_headings() -> tuple[Heading, ...]:
    """Read what every built-in recipe is for, without its rules, which take most of the time of loading it."""
    return tuple(map(_read_heading, recipe_files()))


def _read_heading(path: Path) -> Heading:
    document, digest = _read(path, (), _HEADING)
    chosen = tuple(_Chosen(part.recipe.value, part.sections[0]) for part in composite.read_parts(document))
    document, _, _ = _join_parts(path, digest, chosen, _HEADING)
    keys, _, _ = parse_match(document.get("match"))
    about, axes = document.get("about"), document.get("axes")
    names = tuple(key.value for key, _ in axes) if isinstance(axes, Entries) else ()
    return Heading(path.stem, about.value if isinstance(about, Text) else "", keys, names)


def read_draft(text: str, name: str) -> Recipe:
    """Read the text of a drafted recipe, which neither extends another recipe nor has parts.

    Args:
        text: the recipe in YAML.
        name: the recipe's name, also in messages.

    Raises:
        RecipeError: the recipe is invalid.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    recipe = parse_recipe(name, f"the draft for {name}", digest, _strip_version(parse_document(text, name)), {})
    return replace(recipe, text=text)


def recipe_for(config: Mapping[str, Any]) -> str | None:
    """Return the name of the built-in recipe for a config, by the keys and the condition in its section `match`.

    A recipe with a condition precedes one without, and longer values precede shorter ones with wildcards.
    """
    fitting = [
        (match.condition is None, -length, match.recipe)
        for match in _match_sections()
        if (length := _matched_length(match.keys, config))
        and (match.condition is None or _holds(match.condition, config))
    ]
    return min(fitting)[-1] if fitting else None


def _matched_length(keys: Mapping[str, tuple[str, ...]], config: Mapping[str, Any]) -> int:
    """Return how many characters of a recipe's values match a config; 0 if a key does not match, or if there is none.

    `*` matches any value, also one that is no text, and counts as a character.
    """
    total = 0
    for key, patterns in keys.items():
        value = look_up(key, config)
        text = value if isinstance(value, str) else ""
        lengths = [len(pattern) for pattern in patterns if value is not None and fnmatchcase(text, pattern)]
        if not lengths:
            return 0
        total += max(lengths)
    return total


def _holds(condition: Expression, config: Mapping[str, Any]) -> bool:
    """Tell whether a condition holds; a condition that cannot be evaluated for a config does not."""
    try:
        return bool(evaluate(condition, config))
    except LanguageError:
        return False


def read_patterns(path: Path, config: Mapping[str, Any] | None = None) -> tuple[Pattern, ...]:
    """Read the patterns of a recipe's rules for tensors, without their layouts, which take most of the time of loading.

    Args:
        path: the recipe's file.
        config: as for `load_recipe`.

    Raises:
        RecipeError: the recipe is invalid.
    """
    document, _ = _read(path, (), _NAMING)
    tensors = document.get("tensors")
    texts = [key for key, _ in tensors] if isinstance(tensors, Entries) else []
    for part, (name, *_) in zip(composite.read_parts(document), _choose_parts(document, config), strict=True):
        inner, _ = _read_part(path, part, name, _NAMING)
        texts += composite.patterns_as_part(inner, part)
    words = parse_prefixes(document.get("prefix"))[0]
    return tuple(text.parse(lambda value: parse_pattern(value, words)) for text in texts)


def _load_file(path: Path, config: Mapping[str, Any] | None = None) -> Recipe:
    document, digest = _read(path, ())
    return _load_parts(path, digest, _choose_parts(document, config))


class _Chosen(NamedTuple):
    """The recipe of a part by name, its section of the config, and whether the model may lack the part."""

    name: str
    section: str
    is_optional: bool = False


def _choose_parts(document: Entries, config: Mapping[str, Any] | None) -> tuple[_Chosen, ...]:
    """Choose the recipe of each part; a model whose config has no section for a part may lack the part."""
    chosen = []
    for part in composite.read_parts(document):
        section = composite.find_section(part, config or {})
        part_config = look_up(section, config or {}) if section else config
        name = recipe_for(part_config) if section and isinstance(part_config, Mapping) else None
        is_optional = bool(config) and not isinstance(part_config, Mapping)
        chosen.append(_Chosen(name or part.recipe.value, section, is_optional))
    return tuple(chosen)


@lru_cache(maxsize=256)
def _load_parts(path: Path, digest: str, chosen: tuple[_Chosen, ...]) -> Recipe:
    """Load a recipe with what was chosen for each of its parts."""
    document, digest, groups = _join_parts(path, digest, chosen)
    return parse_recipe(path.stem, _display_name(path), digest, document, groups)


def _join_parts(
    path: Path, digest: str, chosen: tuple[_Chosen, ...], only: tuple[str, ...] = ()
) -> tuple[Entries, str, dict[str, tuple[str, ...]]]:
    """Join the document of a recipe with those of its parts.

    Args:
        path: the recipe's file.
        digest: the hash of its text.
        chosen: as for `_load_parts`.
        only: the sections to read. Default: all.

    Returns:
        The joined document, the hash of all the text, and for each part the axes that its factor widens.
    """
    document, _ = _read(path, (), only)
    groups, documents, optional = {}, [], set[str]()
    for part, (name, section, is_optional) in zip(composite.read_parts(document), chosen, strict=True):
        inner, inner_digest = _read_part(path, part, name, only)
        renamed, groups[part.name] = composite.rename_as_part(inner, part, section, document)
        documents.append(renamed)
        optional |= {part.prefix} if is_optional else set()
        digest = hashlib.sha256((digest + inner_digest).encode()).hexdigest()
    if documents:
        document = composite.with_optional(composite.join_parts(documents, document, _merge), optional)
    return document, digest, groups


def _read_part(path: Path, part: composite.Part, name: str, only: tuple[str, ...]) -> tuple[Entries, str]:
    """Read the recipe of a part by name."""
    file = _find_file(path.parent, name)
    if file is None:
        raise part.recipe.error(f"unknown recipe `{name}`")
    return _read(file, (path,), only)


def _find_file(folder: Path, name: str) -> Path | None:
    """Find a recipe by name in a folder, then among the built-in recipes."""
    if re.fullmatch(r"\w[\w.-]*", name) is None:  # a path is refused: a recipe may come from anywhere
        return None
    files = (folder / f"{name}.yaml", BUILT_IN / f"{name}.yaml")
    return next((file for file in files if file.is_file()), None)


def _display_name(path: Path) -> str:
    return f"recipes/{path.name}" if path.parent == BUILT_IN else str(path)


def _read(path: Path, seen: tuple[Path, ...], only: tuple[str, ...] = ()) -> tuple[Entries, str]:
    """Read a file's document, merged with the recipes that it extends, and return it with the hash of all of them.

    Args:
        path: the file.
        seen: the files that extend it.
        only: the sections to read, whose lines in error messages count from the first of them. Default: all.
    """
    with read_errors(path, RecipeError):
        text = read_text(path, MAX_BYTES)
    document = _parsed(_cut(text, only) if only else text, _display_name(path))
    digest = hashlib.sha256(text.encode()).hexdigest()
    base = document.get("extends")
    if base is None:
        return document, digest
    if not isinstance(base, Text):
        raise base.error("`extends` takes the name of a single recipe")
    parent = _find_file(path.parent, base.value)
    if parent is None:
        known = [file.stem for file in recipe_files()]
        raise base.error(f"unknown recipe `{base.value}`", hint=suggest(base.value, known))
    if parent in (*seen, path) or len(seen) > _MAX_EXTENDS:
        raise base.error(f"`{path.stem}` extends itself")
    parent_document, parent_digest = _read(parent, (*seen, path), only)
    return _merge(parent_document, document), hashlib.sha256((digest + parent_digest).encode()).hexdigest()


def _cut(text: str, only: tuple[str, ...]) -> str:
    """Return only some sections of a document; parsing them takes a fraction of the time."""
    return "".join(section[0] for section in _SECTION.finditer(text) if section[1] in only)


@lru_cache(maxsize=2048)
def _parsed(text: str, name: str) -> Entries:
    """Parse the text of a file; recipes share parents and parts."""
    return _strip_version(parse_document(text, name))


def _strip_version(document: Entries) -> Entries:
    """Check a document's version, 1 if it is absent, and return the document without it.

    Raises:
        RecipeError: the version is not supported.
    """
    node = document.get("version")
    if node is not None and not (isinstance(node, Text) and node.value == str(FORMAT_VERSION)):
        raise node.error(
            f"unsupported recipe version: this mupscale reads version {FORMAT_VERSION}", hint="upgrade mupscale"
        )
    return Entries(tuple(pair for pair in document if pair[0].value != "version"), document.origin)


def _merge(parent: Entries, child: Entries) -> Entries:
    """Merge two documents: mappings key by key; any other section of the child replaces the parent's.

    An axis or a stack of the child inherits the words that it does not mention, since a lost one, such as the eps of
    the norms over an axis, would show only in some ways to grow.
    """
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
            own_node = _merge_section(node, own_node, _merge_words if key.value in _OF_WORDS else _replace)
        merged.append((own_key, own_node))
    return Entries((*own.values(), *merged), child.origin)


def _merge_section(parent: Entries, child: Entries, merge: Callable[[Node, Node], Node]) -> Entries:
    """Merge two mappings, whose keys may end in `?`; `~` removes a key.

    Args:
        parent: the inherited mapping.
        child: the mapping that overrides it.
        merge: merges two values of one key.
    """
    own = {key.value.removesuffix("?"): (key, node) for key, node in child}
    pairs = []
    for key, node in parent:
        own_key, own_node = own.pop(key.value.removesuffix("?"), (key, None))
        pairs.append((own_key, node if own_node is None else merge(node, own_node)))
    pairs += own.values()
    return Entries(tuple((key, node) for key, node in pairs if not _is_null(node)), child.origin)


def _merge_words(parent: Node, child: Node) -> Node:
    if _is_null(child):
        return child
    return _merge_section(_words(parent), _words(child), _replace)


def _replace(_parent: Node, child: Node) -> Node:
    return child


def _words(node: Node) -> Entries:
    """Return what is said of an axis as a mapping; a size alone may stand for it."""
    return node if isinstance(node, Entries) else Entries(((Text("size", node.origin), node),), node.origin)


def _is_null(node: Node) -> bool:
    return isinstance(node, Text) and node.is_null


@cache
def _match_sections() -> tuple[_Match, ...]:
    """Return the sections `match` of all built-in recipes that have one."""
    sections = []
    for file in recipe_files():
        if section := _cut(file.read_text(encoding="utf-8"), ("match",)):
            parsed = parse_match(parse_document(section, _display_name(file)).get("match"))
            sections.append(_Match(file.stem, *parsed))
    return tuple(sections)


@cache
def identifying_recipes() -> tuple[str, ...]:
    """Return the names of the built-in recipes that the names of tensors identify without a config."""
    return tuple(match.recipe for match in _match_sections() if match.tensor_patterns)


@cache
def matched_values(key: str = "model_type") -> dict[str, list[str]]:
    """Map each value of a config key, or wildcard for it, to its built-in recipes."""
    by_value: dict[str, list[str]] = {}
    for match in _match_sections():
        for value in match.keys.get(key, ()):
            by_value.setdefault(value, []).append(match.recipe)
    return by_value


@cache
def matched_keys() -> tuple[str, ...]:
    """Return the config keys by which built-in recipes are chosen, the most common one first."""
    counts = Counter(key for match in _match_sections() for key in match.keys)
    return tuple(key for key, _ in counts.most_common())
