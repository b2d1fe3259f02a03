"""What the shell offers when TAB is pressed: recipes, axes, checkpoints. Reads headers of what is here, nothing else.

A shell shows what is printed and hides what is wrong, so nothing is ever raised here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import typer

from mupscale_cli.architecture.layouts import AxisRef, Layout, axis_refs
from mupscale_cli.architecture.loading import load_recipe, model_types, recipe_files
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.reading import INDICES, RECORD, SUFFIXES, open_checkpoint
from mupscale_cli.errors import MupscaleError
from mupscale_cli.tasks.planning import choose_recipe

_FACTORS = (2, 3, 4, 8)  # that are offered once the axis is known
_MAX_ENTRIES = 1000  # of a folder that is looked into
_PLACES = ("checkpoint", "narrow", "wide")  # parameters that name a checkpoint


def complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Built-in recipes with what they are for, model types, and recipe files here."""
    found = {**dict.fromkeys(sorted(model_types()), "model type"), **{f.stem: _about(f) for f in recipe_files()}}
    files = _paths(incomplete, lambda path: path.suffix in (".yaml", ".yml"))
    fitting = ((name, about) for name, about in sorted(found.items()) if name.startswith(incomplete))
    return [*fitting, *((path, "") for path in files)]


def _about(file: Path) -> str:
    """The first line of a recipe that says what it is for, without parsing all of it."""
    with open(file, encoding="utf-8") as lines:
        return next((line[len("about:") :].strip() for line in lines if line.startswith("about:")), "")


def complete_checkpoint(incomplete: str) -> list[str]:
    """Model directories and safetensors files here."""
    return list(_paths(incomplete, is_checkpoint))


def complete_widened(incomplete: str) -> list[str]:
    """Model directories that mupscale wrote, and safetensors files."""
    return list(_paths(incomplete, lambda path: path.suffix == ".safetensors" or (path / RECORD).is_file()))


def complete_axis(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Axes of the recipe that is named on the command line, or that the checkpoint there has; then factors."""
    recipe = _recipe(context)
    if recipe is None:
        return []
    about = {
        axis.name: axis.about for axis in recipe.axes if axis.name not in recipe.fixed and _is_used(recipe, axis.name)
    }
    about |= {name: f"all of it: {', '.join(members)}" for name, members in recipe.groups.items()}
    name, chosen, _ = incomplete.partition("=")
    fitting = {axis: words for axis, words in about.items() if axis.startswith(name)}
    if name in about and (chosen or len(fitting) == 1):
        fitting = {name: about[name]}
    if len(fitting) == 1:  # a single name would be followed by a blank, where its factor is to stand
        ((axis, words),) = fitting.items()
        return [(f"{axis}={factor}", words) for factor in _FACTORS if f"{axis}={factor}".startswith(incomplete)]
    return [(f"{axis}=", words) for axis, words in fitting.items()]


def complete_tensor(context: typer.Context, incomplete: str) -> list[str]:
    """The ends of the names of a checkpoint's tensors: `q_proj`, `q_proj.bias`; else whole names."""
    path = _checkpoint(context)
    try:
        names = list(open_checkpoint(path).tensors) if path is not None else []
    except (MupscaleError, OSError):
        return []
    ends = set(map(_end, names))
    found = [end for end in sorted(ends) if end.startswith(incomplete)]
    return found or [name for name in names if name.startswith(incomplete)]


def _end(name: str) -> str:
    """By what a tensor's name is known: `q_proj`, `q_proj.bias`."""
    parts = name.removesuffix(".weight").split(".")
    return ".".join(parts[-2:] if parts[-1] == "bias" else parts[-1:])


def _is_used(recipe: Recipe, name: str) -> bool:
    """Whether a rule of the recipe has the axis."""
    for rule in recipe.tensors:
        if any(name in part.names for part in rule.pattern.axes):
            return True
        for choice in rule.choices:
            refs = axis_refs(choice.value) if isinstance(choice.value, Layout) else ()
            if any(isinstance(ref, AxisRef) and ref.name == name for ref in refs):
                return True
    return False


def _recipe(context: typer.Context) -> Recipe | None:
    named, path = context.params.get("recipe"), _checkpoint(context)
    try:
        if path is None:
            return load_recipe(named) if named else None
        return choose_recipe(open_checkpoint(path), named)
    except (MupscaleError, OSError):
        return None


def _checkpoint(context: typer.Context) -> Path | None:
    """The checkpoint on the command line, if it is one of this machine; the Hub is not asked."""
    named = [context.params.get(place) for place in _PLACES]
    given = (
        Path(str(place)).expanduser() for place in (*named, *context.args) if place
    )  # args: what is not yet parsed
    return next((path for path in given if path.exists() and is_checkpoint(path)), None)


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a checkpoint: by its name, or by the names in it."""
    if path.suffix in SUFFIXES:
        return path.is_file()
    names = (entry.name for entry in _entries(path))
    return any(name in (CONFIG, RECORD, *INDICES) or name.endswith(SUFFIXES) for name in names)


def _paths(incomplete: str, is_wanted: Callable[[Path], bool]) -> Iterator[str]:
    """What is wanted of a folder and, in place of folders that are not, what is wanted in these."""
    folder, slash, start = incomplete.rpartition("/")
    base = Path(os.path.expanduser(f"{folder}{slash}") or ".")  # noqa: PTH111 (what is typed stays as it is)
    for entry in _entries(base):
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
            continue
        written, path = f"{folder}{slash}{entry.name}", base / entry.name
        if is_wanted(path):
            yield written
        elif entry.is_dir() and not is_checkpoint(path):
            inside = (inner for inner in _entries(path) if not inner.name.startswith("."))
            yield from (f"{written}/{inner.name}" for inner in inside if is_wanted(path / inner.name))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; nothing if it is none or may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(islice(entries, _MAX_ENTRIES), key=lambda entry: entry.name)
    except OSError:
        return []
