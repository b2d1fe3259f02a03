"""Find the tensors and rules that a name means, or a part of one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches

from mupscale_cli.architecture.patterns import Alternatives, Pattern, Prefix
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.errors import PlanError
from mupscale_cli.text import listed, starred

_MAX_KINDS = 4  # kinds of tensors to explain at once


def matching_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that a text matches: an equal name, or else those that contain it between dots.

    Numbers match any number if the text as written matches nothing. A text that matches a weight and its bias means
    the weight.

    Raises:
        PlanError: no name matches.
    """
    names = list(known)
    if name in names:
        return [name]
    for text, of in ((name, lambda each: each), (starred(name), starred)):
        wanted = ".".join("[^.]+" if part == "*" else re.escape(part) for part in text.split("."))
        regex = re.compile(rf"(?:^|.*\.){wanted}(?:\.(.*))?$")
        rests = {each: match.group(1) for each in names if (match := regex.match(of(each)))}
        for wanted_rest in (None, "weight"):
            if exact := [each for each, rest in rests.items() if rest == wanted_rest]:
                return exact
        if rests:
            return list(rests)
    lasts = {part: each for each in names for part in (each, each.removesuffix(".weight").rpartition(".")[2])}
    near = get_close_matches(name, lasts, n=3)
    raise PlanError(
        f"no tensor is named `{name}`",
        hint=f"did you mean {' or '.join(f'`{each}`' for each in near)}?"
        if near
        else "give a name from the tree or its end, such as `q_proj.weight`",
    )


def sample_names(pattern: Pattern, recipe: Recipe) -> Iterator[str]:
    """Yield names that a pattern matches, with `*` for numbers."""
    for prefixes in recipe.prefixes:
        choices: list[tuple[str, ...]] = []
        for part in pattern.parts:
            match part:
                case str():
                    choices.append((part,))
                case Alternatives():
                    choices.append(part.texts)
                case Prefix():
                    choices.append((prefixes[part.word],))
                case _:
                    choices.append(("*",))
        yield from map("".join, itertools.product(*choices))


def check_count(name: str, kinds: Sequence[str]) -> None:
    """Refuse a name that means more kinds of tensors than one wants to read about.

    Raises:
        PlanError: it does.
    """
    if len(kinds) > _MAX_KINDS:
        raise PlanError(
            f"`--tensor {name}` matches {len(kinds)} kinds of tensors",
            hint=f"give more of the name: {listed(kinds[:6])}, ...",
        )
