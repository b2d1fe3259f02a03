"""Read the YAML job file of `mupscale run`: steps with the options of their commands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from mupscale_cli.architecture.document import MAX_BYTES, Entries, Items, Node, Text, parse_document
from mupscale_cli.checkpoints.hub.ids import parse_hub_id
from mupscale_cli.errors import MupscaleError, RunError
from mupscale_cli.files import read_errors, read_text
from mupscale_cli.plan import Size
from mupscale_cli.tasks.effects import idle_options, refuse_idle_fields
from mupscale_cli.tasks.jobs import PushStep, Step, VerifyStep, WidenStep
from mupscale_cli.tasks.options import (
    WidenOptions,
    option_name,
    parse_axes,
    parse_count,
    parse_factor,
    parse_settings,
    parse_size,
)
from mupscale_cli.tasks.push import PushOptions
from mupscale_cli.text import suggest
from mupscale_cli.verification.options import VerifyOptions

VERSION = 1
_TOP = ("version", "defaults", "steps")
_TRUTH = {"true": True, "false": False}
Read = Callable[[Node, Path], Any]


def read_job(file: Path) -> tuple[Step, ...]:
    """Read the steps of a job file; relative paths in it are relative to its folder.

    Raises:
        RunError: the file cannot be read or has a mistake, shown with file, line and caret.
    """
    with read_errors(file, RunError):
        text = read_text(file, MAX_BYTES)
    document = parse_document(text, str(file), RunError)
    _check_keys(document, _TOP, "a job file")
    if (version := document.get("version")) is not None and _text(version, file.parent) != str(VERSION):
        raise version.error(f"this mupscale reads version {VERSION} of job files", hint="upgrade mupscale")
    defaults = _defaults(document.get("defaults"), file.parent)
    steps = document.get("steps")
    if not isinstance(steps, Items) or not steps.nodes:
        where = document if steps is None else steps
        raise where.error("a job file needs a list of `steps`", hint="add `steps:`, then `- widen: CKPT`")
    paths = _JobPaths(file.parent, set())
    read: list[Step] = []
    mistakes: list[RunError] = []
    for node in steps.nodes:
        try:
            read.append(_step(node, defaults, paths))
        except RunError as error:
            mistakes.append(error)
    if mistakes:
        raise _together(mistakes)
    return tuple(read)


def _together(mistakes: Sequence[RunError]) -> RunError:
    """Return one error about the mistakes of several steps, which shows each with its place and hint."""
    first, *others = mistakes
    if not others:
        return first
    parts = [first.excerpt, *([f"    hint: {first.hint}"] if first.hint else [])]
    for each in others:
        parts += [each.message, each.excerpt, *([f"    hint: {each.hint}"] if each.hint else [])]
    return RunError(first.message, excerpt="\n".join(filter(None, parts)))


@dataclass(frozen=True)
class _JobPaths:
    """Resolve the paths of a job file.

    Attributes:
        folder: the folder of the file.
        written: folders that earlier steps write to.
    """

    folder: Path
    written: set[Path]

    def locate(self, name: str) -> str:
        """Return the path of a checkpoint, relative to the current folder; return a Hub id unchanged."""
        path = self.folder / name
        is_here = path.exists() or path.parent in self.written or path.parent.is_dir()
        return str(path) if is_here or parse_hub_id(name) is None else name


# Values ----------------------------------------------------------------------------------------


def _text(node: Node, _folder: Path) -> str:
    if not isinstance(node, Text) or node.is_null:
        raise node.error("expected text")
    return node.value


def _texts(node: Node, folder: Path) -> tuple[str, ...]:
    """Read a text, or a list of texts."""
    return tuple(_text(text, folder) for text in (node.nodes if isinstance(node, Items) else (node,)))


def _flag(node: Node, folder: Path) -> bool:
    value = _text(node, folder)
    if value not in _TRUTH:
        raise node.error(f"`{value}` is neither `true` nor `false`")
    return _TRUTH[value]


def _number(node: Node, folder: Path) -> float:
    value = _text(node, folder)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise node.error(f"`{value}` is not a number")
    return number


def _count(node: Node, folder: Path) -> int:
    value = _text(node, folder)
    if not value.isdecimal():
        raise node.error(f"`{value}` is not a whole number of at least 0")
    return int(value)


def _settings(node: Node, folder: Path) -> dict[str, Any]:
    return parse_settings(_texts(node, folder))


def _factor(node: Node, folder: Path) -> int | Fraction:
    return parse_factor(_text(node, folder), "factor")


def _axes(node: Node, folder: Path) -> dict[str, int | Fraction | Size]:
    """Read factors as `{ffn: 4}`, or factors and sizes as `ffn=4`, `ffn:8192` or a list of these."""
    if isinstance(node, Entries):
        return parse_axes([f"{key.value}={_text(value, folder)}" for key, value in node])
    texts = node.nodes if isinstance(node, Items) else (node,)
    return parse_axes([_text(text, folder) for text in texts])


def _size(node: Node, folder: Path) -> int:
    return parse_size(_text(node, folder))


def _parameters(node: Node, folder: Path) -> float:
    return parse_count(_text(node, folder), "params")


def _path(node: Node, folder: Path) -> Path:
    return folder / _text(node, folder)


def _paths(node: Node, folder: Path) -> tuple[Path, ...]:
    return tuple(folder / text for text in _texts(node, folder))


def _recipe(node: Node, folder: Path) -> str:
    """Read the path of a recipe file, or the name of a built-in recipe."""
    text = _text(node, folder)
    return str(folder / text) if text.endswith((".yaml", ".yml")) or (folder / text).is_file() else text


def _target(node: Node, folder: Path) -> str:
    """Read the path of a model or of its config, or a Hub id."""
    text = _text(node, folder)
    return text if parse_hub_id(text) is not None and not (folder / text).exists() else str(folder / text)


def _state(node: Node, folder: Path) -> str:
    text = _text(node, folder)
    return text if text in ("auto", "none") else str(folder / text)


def _model(node: Node, folder: Path) -> str:
    place, _, _ = _text(node, folder).rpartition(":")
    return str(folder / _text(node, folder)) if place.endswith(".py") else _text(node, folder)


# Steps -----------------------------------------------------------------------------------------

# The options of each kind of step, by the field that they set, and how to read them.
_COMPARING: Mapping[str, Read] = {"dtype": _text, "device": _text, "model": _model}
_FIELDS: Mapping[str, Mapping[str, Read]] = {
    "widen": {
        "output": _path,
        "factor": _factor,
        "axes": _axes,
        "to": _target,
        "layers": _count,
        "layers_at": _text,
        "params": _parameters,
        "recipe": _recipe,
        "infer": _flag,
        "settings": _settings,
        "tie": _text,
        "clean_names": _flag,
        "method": _text,
        "noise": _number,
        "noise_mode": _text,
        "noise_scale": _text,
        "noise_on": _texts,
        "seed": _count,
        "fresh": _text,
        "spread": _text,
        "shrink": _number,
        "snr": _number,
        "adapter": _paths,
        "layout": _text,
        "weights_key": _text,
        "optimizer": _state,
        "optimizer_kind": _texts,
        "optimizer_policy": _text,
        "key": _text,
        "max_shard_size": _size,
        "overwrite": _flag,
        "allow_large_factor": _flag,
        "allow_nonfinite": _flag,
        "verify": _flag,
        **_COMPARING,
    },
    "verify": {
        "narrow": _text,
        "only": _texts,
        "recipe": _recipe,
        "seed": _count,
        "steps": _count,
        "optimizer": _path,
        **_COMPARING,
    },
    "push": {
        "to": _text,
        "private": _flag,
        "revision": _text,
        "create_pr": _flag,
        "commit_message": _text,
        "with_optimizer": _flag,
    },
}
_CLASSES = {"widen": WidenOptions, "verify": VerifyOptions, "push": PushOptions}
OPTIONS = {kind: {option_name(field): field for field in fields} for kind, fields in _FIELDS.items()}


def _check_keys(entries: Entries, known: tuple[str, ...], what: str) -> None:
    for key, _ in entries:
        if key.value not in known:
            raise key.error(
                f"unknown key `{key.value}` in {what}", hint=suggest(key.value.lstrip("-").replace("_", "-"), known)
            )


def _defaults(node: Node | None, folder: Path) -> dict[str, dict[str, Any]]:
    """Read the default options of each kind of step."""
    if node is None:
        return {}
    if not isinstance(node, Entries):
        raise node.error("`defaults` needs options by kind of step", hint="for instance `widen: {noise: 0.1}`")
    _check_keys(node, tuple(OPTIONS), "`defaults`")
    defaults = {}
    for kind, options in node:
        if not isinstance(options, Entries):
            raise options.error(f"expected options of `{kind.value}`", hint="for instance `{noise: 0.1}`")
        defaults[kind.value] = _values(options, kind.value, folder)
    return defaults


def _values(entries: Entries, kind: str, folder: Path) -> dict[str, Any]:
    """Read the options of a step, by field."""
    _check_keys(entries, tuple(OPTIONS[kind]), f"`{kind}`")
    fields = ((OPTIONS[kind][key.value], node) for key, node in entries)
    return {field: _read(_FIELDS[kind][field], node, folder) for field, node in fields}


def _read(read: Read, node: Node, folder: Path) -> Any:
    """Read a value; report errors with its place."""
    try:
        return read(node, folder)
    except RunError:
        raise
    except MupscaleError as error:
        raise node.error(error.message, hint=error.hint) from error


def _step(node: Node, defaults: Mapping[str, Mapping[str, Any]], paths: _JobPaths) -> Step:
    folder = paths.folder
    if not isinstance(node, Entries):
        raise node.error("this step has no action", hint=f"write `- widen: CKPT`; known actions: {', '.join(OPTIONS)}")
    kinds = [key for key, _ in node if key.value in OPTIONS]
    # `verify` is both a step and an option of `widen`; in the latter case, `widen` is the step.
    kind = next((key for key in kinds if key.value != "verify"), kinds[0] if kinds else None)
    if kind is None:
        raise node.error("this step has no action", hint=f"known actions: {', '.join(OPTIONS)}")
    subject = node.get(kind.value)
    assert subject is not None
    rest = Entries(tuple(pair for pair in node if pair[0] is not kind), node.origin)
    own = _values(rest, kind.value, folder)
    shared = defaults.get(kind.value, {})
    usual = {field.name: field.default for field in fields(_CLASSES[kind.value])}
    idle = {option for option, _ in idle_options(kind.value, shared.keys() - own, {**usual, **shared, **own})}
    given = {**{name: value for name, value in shared.items() if name not in idle}, **own}
    name = paths.locate(_text(subject, folder))
    try:
        if kind.value == "widen":
            step = _widen(name, given, folder)
            paths.written.add(Path(step.options.output or name).parent)
            return step
        return _verify(name, given, paths) if kind.value == "verify" else _push(name, given)
    except RunError:
        raise
    except MupscaleError as error:
        raise kind.error(error.message, hint=error.hint) from error


def _widen(checkpoint: str, given: Mapping[str, Any], folder: Path) -> WidenStep:
    return WidenStep(checkpoint, WidenOptions(**given), folder)


def _verify(wide: str, given: Mapping[str, Any], paths: _JobPaths) -> VerifyStep:
    narrow = {"narrow": paths.locate(given["narrow"])} if "narrow" in given else {}
    options = VerifyOptions(**{**given, **narrow})
    refuse_idle_fields("verify", options)
    return VerifyStep(wide, options)


def _push(wide: str, given: Mapping[str, Any]) -> PushStep:
    if "to" not in given:
        raise MupscaleError("`push` has no destination", hint="add `to: ORG/NAME`")
    chosen = {name: value for name, value in given.items() if name != "to"}
    return PushStep(wide, given["to"], PushOptions(**chosen))
