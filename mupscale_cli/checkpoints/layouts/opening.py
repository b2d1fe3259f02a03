"""Open the checkpoint of a trainer: find its layout, its weights and the sizes of its model. Reads no tensor data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.containers.base import Contents
from mupscale_cli.checkpoints.containers.places import Place, find_place, value_at
from mupscale_cli.checkpoints.header import ReadableTensor
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout
from mupscale_cli.checkpoints.layouts.table import LAYOUTS, layout_called
from mupscale_cli.checkpoints.yaml_files import read_yaml
from mupscale_cli.errors import CheckpointError
from mupscale_cli.text import listed

_NUMBER = re.compile(r"\d+")
_MAX_KEYS = 8  # of a file's content in a message


@dataclass(frozen=True)
class Choice:
    """What the user says about the form of a checkpoint.

    Attributes:
        layout: the name of its layout; None to find it.
        weights_key: dotted keys that lead to its weights; None for the usual ones.
    """

    layout: str | None = None
    weights_key: str | None = None

    @property
    def said(self) -> dict[str, str]:
        """What the user says, by option."""
        options = {"layout": self.layout, "weights_key": self.weights_key}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def is_made(self) -> bool:
        """Whether the user says anything."""
        return bool(self.said)


USUAL = Choice()


class _RefusedError(CheckpointError):
    """The layout is known, and cannot be widened."""


@dataclass(frozen=True)
class Trained:
    """The checkpoint of a trainer, opened by its layout.

    Attributes:
        layout: its layout.
        contents: the content of the container that holds the weights.
        places: the place of each weight in the container, by its name.
        config_file: the file with the sizes of the model; None if they are in the container, or nowhere.
        choice: what the user said.
    """

    layout: Layout
    contents: Contents
    places: Mapping[str, Place]
    config_file: Path | None = None
    choice: Choice = USUAL

    @property
    def path(self) -> Path:
        """The file or folder of the container."""
        return self.contents.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the container."""
        return tuple(sorted(self.layout.container.files(self.path)))

    @property
    def tensors(self) -> dict[str, ReadableTensor]:
        """The weights, by name."""
        return {name: _renamed(self.contents.tensors[place], name) for name, place in self.places.items()}

    @property
    def shared(self) -> dict[str, str]:
        """The first name of each weight that shares its bytes with others, by each of their names."""
        first: dict[ReadableTensor, str] = {}
        return {name: first.setdefault(_renamed(tensor, ""), name) for name, tensor in self.tensors.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight, in the order of the container; shared ones count once."""
        return {name: self.tensors[name].spec.shape for name in dict.fromkeys(self.shared.values())}

    @property
    def config(self) -> dict[str, Any] | None:
        """The sizes of the model; None if the trainer did not save them."""
        where = self.layout.config
        if where is None:
            return None
        return where.read(self.contents.content if self.config_file is None else read_sizes(self.config_file))

    def optimizers(self, state: Place) -> tuple[str, ...]:
        """Return the names of the optimizers of the state at a place; none if the trainer's files do not give them."""
        return self.layout.optimizers(state, {} if self.config_file is None else read_sizes(self.config_file))

    @property
    def state_file(self) -> Path | None:
        """The first file of an optimizer's state beside the container; None if there is none."""
        beside = self.layout.state_files
        file = None if beside is None else self.path.with_name(beside.name(self.path.name))
        return file if file is not None and file.is_file() else None

    @property
    def sizes(self) -> ConfigPlace | None:
        """Where the sizes of the model are; None if a `config.json` beside the weights may have them."""
        return None if self.config is None else self.layout.config

    @property
    def state(self) -> Place | None:
        """The place of the optimizer's state in the container; None if it has none."""
        content = self.contents.content
        places = (find_place(content, key) for key in self.layout.state)
        return next((place for place in places if value_at(content, place) not in (None, [], {})), None)


def _renamed(tensor: Any, name: str) -> ReadableTensor:
    renamed: ReadableTensor = replace(tensor, spec=replace(tensor.spec, name=name))
    return renamed


def read_sizes(file: Path) -> dict[str, Any]:
    """Read a JSON or YAML file with the sizes of a model.

    Raises:
        CheckpointError: it cannot be read.
    """
    return read_yaml(file) if file.suffix in (".yaml", ".yml") else read_json(file)


def open_file(path: Path, choice: Choice) -> Trained | None:
    """Open a single file that a trainer wrote; return None if it is of no kind that a layout reads.

    Raises:
        CheckpointError: the file cannot be read without running code, or has no weights at the usual keys.
    """
    layouts = _layouts(choice)
    container = next((each.container for each in layouts if each.container.recognizes(path)), None)
    if container is None:
        return None
    if len(parts := container.files(path)) > 1:
        raise CheckpointError(
            f"`{path}` is one of {len(parts)} files of a checkpoint", hint=f"pass the folder: `{path.parent}`"
        )
    contents = container.read(path)
    names = [file.name for file in path.parent.iterdir()]
    return _trained([each for each in layouts if each.container is container], contents, names, path.parent, choice)


def open_folder(path: Path, names: Collection[str], choice: Choice) -> Trained | None:
    """Open a folder that a trainer wrote; return None if none of its layouts fits.

    Args:
        path: the folder.
        names: the paths of all files in it.
        choice: what the user says.

    Raises:
        CheckpointError: its files cannot be read without running code, or have no weights at the usual keys.
    """
    unread: CheckpointError | None = None
    unrecognized: CheckpointError | None = None  # says less: one file of several may be all that a layout looked at
    damaged: set[Path] = set()
    for layout, name in _found(_layouts(choice), names):
        found = layout.container.root(path / name)
        if found in damaged or not layout.container.recognizes(found):
            continue
        try:
            contents = layout.container.read(found)
        except CheckpointError as error:  # another file of the folder may hold the weights, but no part of this one
            unread = unread or error
            damaged |= {found, *layout.container.files(found)}
            continue
        try:
            return _trained((layout,), contents, names, path, choice)
        except _RefusedError:  # no other layout may read it
            raise
        except CheckpointError as error:
            unrecognized = unrecognized or error
    if problem := unread or unrecognized:
        raise problem
    return None


def _layouts(choice: Choice) -> tuple[Layout, ...]:
    return LAYOUTS if choice.layout is None else (layout_called(choice.layout),)


def _found(layouts: Collection[Layout], names: Collection[str]) -> Iterator[tuple[Layout, str]]:
    """Yield layouts with the name of a container that each finds; of several with one pattern, the latest step."""
    for layout in layouts:
        for pattern in layout.patterns:
            found = [name for name in names if name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)]
            if found:
                yield layout, max(found, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers by their value: `step-900` comes before `step-1000`."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", name)]


def _trained(
    layouts: Collection[Layout], contents: Contents, names: Collection[str], folder: Path, choice: Choice
) -> Trained:
    """Return the checkpoint as the first layout that recognizes its content reads it."""
    layout = next((each for each in layouts if each.recognizes(contents)), None)
    if layout is not None and layout.refusal is not None:
        raise _RefusedError(
            f"`{contents.path}` is a checkpoint of {layout.title}, {layout.refusal.reason}", hint=layout.refusal.hint
        )
    held = contents.content
    keys = listed(map(str, held), _MAX_KEYS) if isinstance(held, Mapping) else type(held).__name__
    if layout is None and choice.layout is not None:
        (insisted,) = layouts
        raise CheckpointError(
            f"`{contents.path}` is not a checkpoint of {insisted.title}: it has no {insisted.lacks(contents)}; "
            f"it holds {keys}",
            hint="omit `--layout`",
        )
    place = None if layout is None else layout.weights_place(contents, choice.weights_key)
    if layout is None or place is None:
        where = "the usual keys" if choice.weights_key is None else f"`{choice.weights_key}`"
        raise CheckpointError(
            f"`{contents.path}` has no weights at {where}; it holds {keys}",
            hint=f"name their key with `--weights-key`, such as {_likely_key(contents)}",
        )
    state = next((found for key in layout.state if (found := find_place(contents.content, key))), None)
    places = {
        str(tensor[-1]): tensor
        for tensor in contents.tensors
        if tensor[:-1] == place and (not state or tensor[: len(state)] != state)
    }
    return Trained(layout, contents, places, _config_file(layout, names, folder, contents.path.name), choice)


def _likely_key(contents: Contents) -> str:
    """Return the keys that lead to the most tensors, as an example."""
    places = Counter(tensor[:-1] for tensor in contents.tensors if tensor[:-1] and isinstance(tensor[-1], str))
    ((place, _),) = places.most_common(1) or [(("state", "model"), 0)]
    return f"`{'.'.join(map(str, place))}`"


def _config_file(layout: Layout, names: Collection[str], folder: Path, container: str) -> Path | None:
    """Return the file with the sizes: of several, the one with the number of the container, or the last by name."""
    pattern = None if layout.config is None else layout.config.file
    found = [name for name in names if pattern is not None and fnmatchcase(name, pattern)]
    numbered = [name for name in found if _NUMBER.findall(name) == _NUMBER.findall(container)]
    return folder / max(numbered or found) if found else None
