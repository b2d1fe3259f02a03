"""What a layout says: in which file or folder, and under which keys, a trainer keeps what. No torch.

A layout is one module next to this one and one entry of `table.LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.containers.base import Container, Contents
from mupscale_cli.checkpoints.containers.kinds import TORCH_FILE
from mupscale_cli.checkpoints.containers.places import Place, find_place, replace_at, value_at
from mupscale_cli.checkpoints.fates import Decision
from mupscale_cli.checkpoints.libraries import Library

_PROGRESS = "progress of training"
USUAL_WEIGHTS = ("model", "state_dict", "model_state_dict", "module", "")


@dataclass(frozen=True)
class Layout:
    """Where a trainer keeps what.

    Attributes:
        name: its name for `--layout` and in records.
        title: the trainer.
        container: the kind of container that holds the weights.
        patterns: what the container is called in a checkpoint's folder, best first: patterns of paths, with `/`.
        marks: dotted keys that its content has, by which a file is recognized; a tuple stands for any one of them.
        weights: dotted keys that may lead to the weights; the first one that exists does.
        state: dotted keys that may lead to the optimizer's state in the same container.
        optimizers: returns the names of the optimizers of a state, given its place and the content of the file with the
            sizes; none if the groups of the state tell.
        config: where the sizes of the model are; None if a `config.json` beside the weights may have them.
        state_files: the optimizer's state, if it is in files of its own; None if it is not.
        carried: patterns of the files that hold the progress of training, which go along unchanged.
        schedules: patterns of the JSON files that hold the progress of training with a scheduler's rates of each group.
        recipe: the recipe of its models; None if the config tells it.
        library: how a reference model is built; None if the config tells it.
        own_code: for a trainer whose models no library builds, where a file has to be that imports them.
        about: what is widened of the container.
        refusal: why its checkpoints are not widened; None if they are.
        pointers: text files beside the container that name it, by file name, given its name.
        next_lines: how to continue, given the path of the wide checkpoint.
    """

    name: str
    title: str
    container: Container = TORCH_FILE
    patterns: tuple[str, ...] = ()
    marks: tuple[str | tuple[str, ...], ...] = ()
    weights: tuple[str, ...] = USUAL_WEIGHTS
    state: tuple[str, ...] = ()
    optimizers: Callable[[Place, Mapping[str, Any]], tuple[str, ...]] = lambda *_: ()
    config: ConfigPlace | None = None
    state_files: StateFiles | None = None
    carried: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()
    recipe: str | None = None
    library: Library | None = None
    own_code: str | None = None
    about: str = "weights"
    refusal: Refusal | None = None
    pointers: Callable[[str], Mapping[str, str]] = lambda _: {}
    next_lines: Callable[[str], Sequence[str]] | None = None

    def finds(self, name: str) -> bool:
        """Return whether a path in a checkpoint's folder is its container."""
        return _matches(name, self.patterns)

    def progress_files(self, names: Iterable[str]) -> dict[str, Decision]:
        """Return what becomes of the files that hold the progress of training, by name."""
        decided = {name: Decision("carried", _PROGRESS) for name in names if _matches(name, self.carried)}
        return decided | dict.fromkeys(self.schedule_files(names), Decision("rewritten", _PROGRESS))

    def schedule_files(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the files that hold the progress of training with a scheduler's rates."""
        return tuple(sorted(name for name in names if _matches(name, self.schedules)))

    def recognizes(self, contents: Contents) -> bool:
        """Return whether content is this trainer's."""
        return self.lacks(contents) is None

    def lacks(self, contents: Contents) -> str | None:
        """Return the first mark that content does not have; None if it has them all."""
        for mark in self.marks:
            places = (find_place(contents.content, key) for key in _each(mark))
            if all(value_at(contents.content, place) is None for place in places):
                return " or ".join(f"`{key}`" for key in _each(mark))
        return None

    def weights_place(self, contents: Contents, key: str | None = None) -> Place | None:
        """Return the place of the mapping of weights; None if there is none.

        Args:
            contents: the content of the container.
            key: dotted keys that lead to it, if the user gives them.
        """
        for each in self.weights if key is None else (key,):
            place = find_place(contents.content, each)
            if any(tensor[:-1] == place and isinstance(tensor[-1], str) for tensor in contents.tensors):
                return place
        return None


@dataclass(frozen=True)
class Refusal:
    """Why the checkpoints of a trainer are not widened.

    Attributes:
        reason: a relative clause about its checkpoint.
        hint: what to do instead.
    """

    reason: str
    hint: str


@dataclass(frozen=True)
class StateFiles:
    """Files of the optimizer's state beside those of the weights.

    Attributes:
        name: returns the name of the first of them, given that of the container of the weights.
        container: returns the kind of container that they are, given the first one and the shapes of the weights.
        marks: keys that only they have, if they could be taken for the state of another trainer.
    """

    name: Callable[[str], str]
    container: Callable[[Path, Mapping[str, tuple[int, ...]]], Container]
    marks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ConfigPlace:
    """Where the sizes of the model are.

    Attributes:
        file: pattern of the name of a JSON or YAML file beside the container; None if they are in the container.
        key: dotted keys that lead to them; empty for the whole file.
        mark: a key that only they have, if they may lie deeper, or among other values.
    """

    file: str | None = None
    key: str = ""
    mark: str | None = None

    def place(self, content: Any) -> Place:
        """Return their place in the content of the file or the container."""
        outer = find_place(content, self.key)
        marked = self.mark is not None and _place_with(value_at(content, outer), self.mark)
        return (*outer, *(marked or ()))

    def read(self, content: Any) -> dict[str, Any] | None:
        """Return the sizes in the content of the file or the container; None if there are none."""
        found = value_at(content, self.place(content))
        return dict(found) if isinstance(found, Mapping) else None

    def replaced(self, content: Any, config: Mapping[str, Any]) -> Any:
        """Return the content with other sizes."""
        return replace_at(content, self.place(content), config)


def _place_with(content: Any, key: str) -> Place | None:
    """Return the place of the first mapping in nested ones that has a key; None if there is none."""
    if not isinstance(content, Mapping) or key in content:
        return () if isinstance(content, Mapping) else None
    inner = ((name, _place_with(value, key)) for name, value in content.items())
    return next(((name, *place) for name, place in inner if place is not None), None)


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(name.count("/") == each.count("/") and fnmatchcase(name, each) for each in patterns)


def _each(mark: str | tuple[str, ...]) -> tuple[str, ...]:
    return (mark,) if isinstance(mark, str) else mark
