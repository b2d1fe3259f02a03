"""Complete recipes, axes, checkpoints and tensors in the shell. Reads only headers of local files.

A shell shows whatever is printed, so errors become empty completions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import typer

from mupscale_cli.architecture.layouts import AxisRef, Layout, axis_refs
from mupscale_cli.architecture.loading import load_recipe, matched_values, recipe_files
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.fates import RECORD
from mupscale_cli.checkpoints.libraries import CONFIGS
from mupscale_cli.checkpoints.reading import INDICES, SUFFIXES, TORCH_SUFFIXES, open_checkpoint
from mupscale_cli.errors import MupscaleError

_FACTORS = (2, 3, 4, 8)  # offered once the axis is complete
_MAX_ENTRIES = 1000  # read per folder
_CHECKPOINT_PARAMETERS = ("checkpoint", "narrow", "wide")


def complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Complete built-in recipes (with their descriptions), model types, and local recipe files."""
    known = {**dict.fromkeys(sorted(matched_values()), "model type"), **{f.stem: _about(f) for f in recipe_files()}}
    files = _paths(incomplete, lambda path: path.suffix in (".yaml", ".yml"))
    matching = ((name, about) for name, about in sorted(known.items()) if name.startswith(incomplete))
    return [*matching, *((path, "") for path in files)]


def _about(file: Path) -> str:
    """Return the value of a recipe's `about:` line without parsing the file."""
    with open(file, encoding="utf-8") as lines:
        return next((line[len("about:") :].strip() for line in lines if line.startswith("about:")), "")


def complete_checkpoint(incomplete: str) -> list[str]:
    """Complete local model directories and safetensors files."""
    return list(_paths(incomplete, is_checkpoint))


def complete_widened(incomplete: str) -> list[str]:
    """Complete local model directories and files that mupscale wrote, and safetensors files."""
    return list(_paths(incomplete, _may_be_widened))


def _may_be_widened(path: Path) -> bool:
    beside = path.with_name(f"{path.stem}.{RECORD}")
    return path.suffix == ".safetensors" or (path / RECORD).is_file() or (path != beside and beside.is_file())


def complete_axis(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete the axes of the recipe or checkpoint on the command line, then factors."""
    recipe = _recipe(context)
    if recipe is None:
        return []
    about = {
        axis.name: axis.about for axis in recipe.axes if axis.name not in recipe.fixed and _is_used(recipe, axis.name)
    }
    about |= {name: f"all of {', '.join(members)}" for name, members in recipe.groups.items()}
    name, chosen, _ = incomplete.partition("=")
    matching = {axis: words for axis, words in about.items() if axis.startswith(name)}
    if name in about and (chosen or len(matching) == 1):
        matching = {name: about[name]}
    if len(matching) == 1:  # the shell would add a space after a lone `NAME=`, so offer whole values
        ((axis, words),) = matching.items()
        return [(f"{axis}={factor}", words) for factor in _FACTORS if f"{axis}={factor}".startswith(incomplete)]
    return [(f"{axis}=", words) for axis, words in matching.items()]


def complete_tensor(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the short names of a checkpoint's tensors, such as `q_proj`, or their full names if none matches."""
    path = _checkpoint(context)
    try:
        names = list(open_checkpoint(path).tensors) if path is not None else []
    except (MupscaleError, OSError):
        return []
    short_names = sorted({_short_name(name) for name in names})
    matching = [name for name in short_names if name.startswith(incomplete)]
    return matching or [name for name in names if name.startswith(incomplete)]


def _short_name(name: str) -> str:
    """Return the end of a tensor's name that identifies its kind: `q_proj`, `q_proj.bias`."""
    parts = name.removesuffix(".weight").split(".")
    return ".".join(parts[-2:] if parts[-1] == "bias" else parts[-1:])


def _is_used(recipe: Recipe, name: str) -> bool:
    """Tell whether a rule of the recipe uses the axis."""
    for rule in recipe.tensors:
        if any(name in part.names for part in rule.pattern.axes):
            return True
        for choice in rule.choices:
            refs = axis_refs(choice.value) if isinstance(choice.value, Layout) else ()
            if any(isinstance(ref, AxisRef) and ref.name == name for ref in refs):
                return True
    return False


def _recipe(context: typer.Context) -> Recipe | None:
    from mupscale_cli.tasks.planning import choose_recipe  # for completing axes alone

    name, path = context.params.get("recipe"), _checkpoint(context)
    try:
        if path is None:
            return load_recipe(name) if name else None
        return choose_recipe(open_checkpoint(path), name, infer=False)
    except (MupscaleError, OSError):
        return None


def _checkpoint(context: typer.Context) -> Path | None:
    """Return the local checkpoint on the command line, if any, without asking the Hub."""
    parsed = [context.params.get(name) for name in _CHECKPOINT_PARAMETERS]
    words = [*parsed, *context.args]  # args holds the words that are not parsed yet
    paths = (Path(str(word)).expanduser() for word in words if word)
    return next((path for path in paths if path.exists() and is_checkpoint(path)), None)


def is_checkpoint(path: Path) -> bool:
    """Tell whether a path looks like a checkpoint, by the file's suffix or the folder's file names."""
    if path.suffix in (*SUFFIXES, *TORCH_SUFFIXES):
        return path.is_file()
    names = (entry.name for entry in _entries(path))
    return any(name in (*CONFIGS, RECORD, *INDICES) or name.endswith(SUFFIXES) for name in names)


def _paths(incomplete: str, is_wanted: Callable[[Path], bool]) -> Iterator[str]:
    """Yield matching entries of the typed folder, and those one level below its other folders."""
    folder, slash, start = incomplete.rpartition("/")
    base = Path(os.path.expanduser(f"{folder}{slash}") or ".")  # noqa: PTH111 (keeps the text as typed)
    for entry in _entries(base):
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
            continue
        typed, path = f"{folder}{slash}{entry.name}", base / entry.name
        if is_wanted(path):
            yield typed
        elif entry.is_dir() and not is_checkpoint(path):
            inside = (inner for inner in _entries(path) if not inner.name.startswith("."))
            yield from (f"{typed}/{inner.name}" for inner in inside if is_wanted(path / inner.name))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return a folder's entries by name, or none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(islice(entries, _MAX_ENTRIES), key=lambda entry: entry.name)
    except OSError:
        return []
