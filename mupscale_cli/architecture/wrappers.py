"""Names of tensors as training leaves them: DDP, FSDP, `torch.compile` and modules around the model add parts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mupscale_cli.architecture.types import Recipe

# `torch.compile`, FSDP and FairScale, activation checkpointing, Lightning Fabric.
_WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"}
)
_DDP = "module"  # a wrapper in front of a name or beside another wrapper; elsewhere it may be the model's own

_MAY_BE_WRAPPED = re.compile("|".join((*sorted(_WRAPPERS), _DDP)))


def strip_wrappers(name: str) -> str:
    """Strip the parts that DDP, FSDP, compilation and activation checkpointing add to a parameter's name."""
    if _MAY_BE_WRAPPED.search(name) is None:
        return name
    return ".".join(part for part, is_wrapper in _marked(name) if not is_wrapper)


def _marked(name: str) -> Iterator[tuple[str, bool]]:
    """Yield each part of a name, and whether it is a wrapper's."""
    parts = name.split(".")
    before = True
    for part, after in itertools.zip_longest(parts, parts[1:]):
        before = part in _WRAPPERS or (part == _DDP and (before or after in _WRAPPERS))
        yield part, before


@dataclass(frozen=True)
class Wrapping:
    """What the names of a checkpoint's tensors have in addition to the names that its recipe knows.

    Attributes:
        recipe: recipe of the checkpoint.
        outer: prefix of all names, apart from wrappers: the attribute of a module that holds the model, with a dot.
        is_stripped: whether the output has the plain names.
    """

    recipe: Recipe
    outer: str = ""
    is_stripped: bool = False

    def plain(self, name: str) -> str:
        """Return a tensor's name without wrappers and without the outer prefix."""
        name = strip_wrappers(name)
        return name if not self.outer or self.recipe.knows(name) else name.removeprefix(self.outer)

    def wrap(self, plain: str, like: str) -> str:
        """Add to a plain name what another tensor's stored name has in the same places.

        A name of another length has no such places except in front. The name stays plain if the output is stripped.
        """
        if self.is_stripped or (not self.outer and _MAY_BE_WRAPPED.search(like) is None):
            return plain
        added: dict[int, list[str]] = {}
        place, outer = 0, self.outer.count(".")
        for part, is_wrapper in _marked(like):
            if is_wrapper or outer:
                added.setdefault(place, []).append(part)
                outer -= not is_wrapper
            else:
                place += 1
        parts = plain.split(".")
        if len(parts) != place:
            added = {0: added.get(0, [])}
        return ".".join(
            itertools.chain.from_iterable((*added.get(place, ()), part) for place, part in enumerate(parts))
        )


def find_wrapping(recipe: Recipe, names: Iterable[str], *, is_stripped: bool = False) -> Wrapping:
    """Find the prefix that the names of all tensors share and that no rule of a recipe knows."""
    plain = [strip_wrappers(name) for name in names]
    outer = ""
    while plain and not recipe.knows(plain[0].removeprefix(outer)):
        part, dot, _ = plain[0].removeprefix(outer).partition(".")
        outer += part + dot
        if not dot or not all(name.startswith(outer) for name in plain):
            outer = ""  # nothing explains these names
            break
    return Wrapping(recipe, outer, is_stripped)
