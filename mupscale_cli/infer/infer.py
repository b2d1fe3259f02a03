"""From an architecture to a recipe that is proved: build tiny, find axes, search, write, widen and verify."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.architecture.expressions import evaluate, names_in, parse_expression
from mupscale_cli.checkpoints.json_files import parse_json
from mupscale_cli.engine.threads import one_thread
from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.architecture import Architecture, Own, Reference, random_model
from mupscale_cli.infer.axes import Axes, find_axes
from mupscale_cli.infer.candidates import Group, find_groups
from mupscale_cli.infer.derived import derived_size
from mupscale_cli.infer.search import (
    DEFAULT_BUDGET,
    Budget,
    Found,
    Search,
    initial_state,
    is_tied,
    last_norm,
    split_last,
)
from mupscale_cli.infer.shapes import InferError, Measure, Monomial
from mupscale_cli.infer.stages import infer_stages
from mupscale_cli.infer.tiny import Task, TinyError, config_class, task_of, tiny_model
from mupscale_cli.infer.trials import TOLERANCE, Laboratory, Outcome, State
from mupscale_cli.infer.write import Draft, Variant, mentioned_axes, recipe_text
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.models import load_user_module
from mupscale_cli.verification.transformers import import_transformers

Note = Callable[[str], None]
_POSITIONS = ("d", "rope")


@dataclass(frozen=True)
class Inferred:
    """A drafted recipe and its proof.

    Attributes:
        text: the recipe.
        draft: what it was written from; None where the widths of all stages are one axis.
        errors: largest relative difference for each set of factors, from disk to disk in float64.
        fixed: axes that do not move, with the reason.
        notes: what the reader should know.
    """

    text: str
    draft: Draft | None
    errors: dict[str, float]
    fixed: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        return max(self.errors.values(), default=float("nan"))


@dataclass
class _Solved:
    """One variant of an architecture, solved."""

    architecture: Architecture
    axes: Axes
    laboratory: Laboratory
    groups: tuple[Group, ...]
    found: Found
    tied: bool

    @property
    def variant(self) -> Variant:
        return Variant(self.groups, self.found.state)


def infer_target(
    target: str,
    task: Task | None = None,
    config: Path | None = None,
    *,
    budget: Budget = DEFAULT_BUDGET,
    note: Note = lambda _text: None,
) -> Inferred:
    """Draft and prove a recipe for what a user names.

    Args:
        target: a model type, a config.json or a folder with one, or `path/model.py:build`.
        task: which head the models have; by the config's `architectures`, or the first there is, if not given.
        config: a JSON file with the config for a user's function.
        budget: of the search for each axis.
        note: told what is found.

    Raises:
        MupscaleError: there is no such thing, it cannot be built, or nothing of it can be widened exactly.
    """
    path = Path(target)
    if path.is_dir():
        path /= "config.json"
    if path.is_file() and path.suffix == ".json":
        flags = _read_config(path)
        model_type = flags.get("model_type")
        if not isinstance(model_type, str):
            raise InferError(f"`{path}` has no `model_type`")
        chosen = task or task_of(model_type, flags.get("architectures"))
        return infer(model_type, chosen, flags=flags, budget=budget, note=note)
    if ":" in target:
        return infer_own(target, None if config is None else _read_config(config), budget=budget, note=note)
    return infer(target, task or task_of(target), budget=budget, note=note)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InferError(f"cannot read `{path}` as JSON: {error}") from error
    if not isinstance(found, dict):
        raise InferError(f"`{path}` is not a JSON object")
    return found


def infer(
    model_type: str,
    task: Task = "causal-lm",
    *,
    flags: Mapping[str, Any] | None = None,
    budget: Budget = DEFAULT_BUDGET,
    note: Note = lambda _text: None,
) -> Inferred:
    """Draft and prove a recipe for a model type of transformers.

    Args:
        model_type: as in config.json.
        task: which head the models have.
        flags: a config.json whose flags are kept; its sizes are made small.
        budget: of the search for each axis.
        note: told what is found.

    Raises:
        MupscaleError: it cannot be built, or nothing of it can be widened exactly.
    """
    version = f"transformers {import_transformers().__version__}"
    try:
        tiny = tiny_model(model_type, task, flags=flags)
        architecture = Reference(model_type, task, tiny.config)
        head = type(tiny.model).__name__
        name = f"{model_type} ({head})"
        defaults = _defaults(model_type, tiny.config)
        return _infer(architecture, name, (model_type,), defaults, _pattern_of(head), version, budget, note)
    except (InferError, TinyError) as error:
        if task != "image-classification":
            raise
        note(f"{error.message}; trying the widths of all stages together")
    with one_thread():
        text, worst = infer_stages(model_type, task, flags, version)
    return Inferred(text, None, {"c x2, c x3": worst}, {})


def infer_own(
    reference: str,
    config: Mapping[str, Any] | None = None,
    *,
    budget: Budget = DEFAULT_BUDGET,
    note: Note = lambda _: None,
) -> Inferred:
    """Draft and prove a recipe for a model that the user's function builds.

    Args:
        reference: `path/model.py:build`, a function from a config to a module.
        config: of a small model; the module's `config` if not given.
        budget: of the search for each axis.
        note: told what is found.

    Raises:
        MupscaleError: it cannot be built, or nothing of it can be widened exactly.
    """
    module, make = load_user_module(reference)
    found = config if config is not None else getattr(module, "config", None)
    if not isinstance(found, Mapping):
        raise InferError(
            f"`{reference}` needs a config to build from",
            hint="give one with `--config FILE`, or define a dict `config` in the module",
        )
    architecture = Own(reference, module, make, dict(found))
    try:
        architecture.run(random_model(architecture))
    except Exception as error:  # the user's own code may do anything
        raise InferError(f"`{reference}` cannot be built or run with its config: {error!r}") from error
    types = (str(found["model_type"]),) if "model_type" in found else ()
    return _infer(architecture, reference, types, {}, "", f"torch {torch.__version__}", budget, note)


def _defaults(model_type: str, tiny: Mapping[str, Any]) -> dict[str, Any]:
    """What the config class gives to absent keys, without what it computes from other keys."""
    made = config_class(model_type)
    try:
        defaults = made().to_dict()
    except Exception:  # noqa: BLE001 (a config that has no defaults has none to tell)
        return {}
    found = {}
    for key, value in defaults.items():
        if key in tiny and isinstance(value, (int, float)) and tiny[key] != value:
            try:
                absent = made.from_dict({name: v for name, v in tiny.items() if name != key}).to_dict().get(key)
            except Exception:  # noqa: BLE001 (the default does not fit the tiny model: it is no result of it)
                absent = value
            if absent != value:
                continue
        found[key] = value
    return found


def _pattern_of(head: str) -> str:
    for marker in ("For", "LMHead", "WithLM"):
        if marker in head:
            return f"*{head[head.index(marker) :]}"
    return head


@one_thread()
def _infer(
    architecture: Architecture,
    name: str,
    model_types: tuple[str, ...],
    defaults: dict[str, Any],
    head: str,
    version: str,
    budget: Budget,
    note: Note,
) -> Inferred:
    started = time.monotonic()
    solved = _solve(architecture, budget, note)
    if not solved.found.solved:
        raise _nothing(solved)
    other = _other_tie(solved, budget, note)
    by_tie = {item.tied: item.variant for item in (solved, other) if item is not None}
    fixed = {axis: _reason(solved, axis, outcome) for axis, outcome in solved.found.unsolved.items()}
    if other is not None:
        for axis in other.found.unsolved:
            fixed.setdefault(axis, _reason(other, axis, other.found.unsolved[axis]))
    axes = _mentioned_only(_with_derived_sizes(solved), [item.variant for item in (solved, other) if item])
    for alias, product in axes.aliases.items():
        if all(part in fixed for part in product):
            fixed[alias] = fixed[product[0]]
    draft = Draft(
        name, model_types, axes, fixed, architecture.config, defaults, by_tie.get(True), by_tie.get(False), head
    )
    draft, errors = _prove(draft, [item for item in (solved, other) if item is not None], version, note)
    note(f"done in {time.monotonic() - started:.0f} s")
    return Inferred(recipe_text(draft), draft, errors, draft.fixed)


def _solve(architecture: Architecture, budget: Budget, note: Note) -> _Solved:
    axes = find_axes(architecture)
    if not axes.ideas:
        raise InferError(f"no key of the config of `{architecture.name}` makes its tensors wider")
    note("axes to try: " + ", ".join(f"{idea.name} ({', '.join(key for key, _ in idea.keys)})" for idea in axes.ideas))
    model = random_model(architecture)
    axes, groups = _group(architecture, axes, model, note)
    laboratory = Laboratory(architecture, axes, groups, model)
    if not bool(torch.isfinite(laboratory.logits).all()):
        raise InferError(f"the random tiny `{architecture.name}` computes values that are not finite")
    last = last_norm(groups, laboratory.narrow.order)
    laboratory.groups = groups = split_last(groups, last)
    tied = is_tied(model)
    state = initial_state(groups, tied, last, axes.ideas, architecture.config)
    found = Search(laboratory, tied, last, budget, note).run(state)
    return _Solved(architecture, axes, laboratory, groups, found, tied)


def _group(
    architecture: Architecture, axes: Axes, model: torch.nn.Module, note: Note
) -> tuple[Axes, tuple[Group, ...]]:
    """Groups of tensors; axes under which sizes are not sums of products are given up."""
    while True:
        measure = Measure(architecture, axes.ideas)
        order = list(architecture.stored(model))
        try:
            return axes, find_groups(measure, axes, model, order)
        except InferError as error:
            culprit = next((idea.name for idea in reversed(axes.ideas) if idea.name in error.axes), None)
            if culprit is None:
                raise
            # What the config ties to the residual stream goes with it.
            alias = next((alias for alias, product in axes.aliases.items() if culprit in product), None)
            gone = {culprit, *(axes.aliases[alias] if alias else ())}
            note(f"{', '.join(sorted(gone))}: given up: {error.message}")
            ideas = tuple(idea for idea in axes.ideas if idea.name not in gone)
            if not ideas:
                raise
            refused = {idea.key: error.message for idea in axes.ideas if idea.name in gone}
            aliases = {name: product for name, product in axes.aliases.items() if name != alias}
            axes = replace(axes, ideas=ideas, aliases=aliases, given_up={**axes.given_up, **refused})


def _mentioned_only(axes: Axes, variants: list[Variant]) -> Axes:
    """Without what no layout mentions: where nothing is laid out by head, heads have no size that could move."""
    mentioned = mentioned_axes(variants)
    aliases = {
        alias: tuple(part for part in product if part in mentioned)
        for alias, product in axes.aliases.items()
        if any(part in mentioned for part in product)
    }
    return replace(axes, ideas=tuple(idea for idea in axes.ideas if idea.name in mentioned), aliases=aliases)


def _with_derived_sizes(solved: _Solved) -> Axes:
    """The axes, with sizes that say what an absent key means."""
    architecture, axes = solved.architecture, solved.axes
    keys = list(dict.fromkeys(key for idea in axes.ideas for key, _ in idea.keys))
    sizes = dict(axes.sizes)
    for idea in axes.ideas:
        if sizes[idea.name] != idea.key:
            continue
        place = next(
            (
                (group.names[0], dim, dimension.polynomial[0])
                for group in solved.groups
                for dim, dimension in enumerate(group.dims)
                if len(dimension.polynomial) == 1 and idea.name in dimension.polynomial[0].axes
            ),
            None,
        )
        if place is None:
            continue
        name, dim, monomial = place

        def measure(
            config: Mapping[str, Any],
            name: str = name,
            dim: int = dim,
            monomial: Monomial = monomial,
            axis: str = idea.name,
        ) -> int:
            size = architecture.shapes(config)[name][dim]
            known: dict[str, Any] = dict(config)
            for other in monomial.axes:
                if other != axis:
                    size //= _size_of(other, axes, known)
            return size // monomial.count

        found = derived_size(measure, architecture.config, idea.key, keys)
        if found is not None:
            sizes[idea.name] = f"{idea.key} or {found}"
    return replace(axes, sizes=sizes)


def _size_of(axis: str, axes: Axes, config: dict[str, Any]) -> int:
    """The size of an axis under a config, by its expression and those of the axes that it mentions."""
    expression = parse_expression(axes.sizes[axis])
    for name in names_in(expression):
        if name.name in axes.sizes and name.name not in config:
            config[name.name] = _size_of(name.name, axes, config)
    size = evaluate(expression, config)
    if type(size) is not int:
        raise InferError(f"the size of the axis `{axis}` cannot be computed", axes=frozenset({axis}))
    return size


def _other_tie(solved: _Solved, budget: Budget, note: Note) -> _Solved | None:
    """The same architecture with the readout tied where it was not, or untied where it was."""
    config = solved.architecture.config
    if not isinstance(solved.architecture, Reference) or "tie_word_embeddings" not in config:
        return None
    changed = {**config, "tie_word_embeddings": not solved.tied}
    try:
        architecture = Reference(solved.architecture.name, solved.architecture.task, changed)
        model = random_model(architecture)
        if is_tied(model) == solved.tied:
            return None
        measure = Measure(architecture, solved.axes.ideas)
        groups = find_groups(measure, solved.axes, model, list(architecture.stored(model)))
        laboratory = Laboratory(architecture, solved.axes, groups, model)
    except Exception as error:  # noqa: BLE001 (whatever the architecture refuses it with)
        note(f"the other setting of tie_word_embeddings cannot be built: {error}")
        return None
    last = last_norm(groups, laboratory.narrow.order)
    laboratory.groups = groups = split_last(groups, last)
    tied = not solved.tied
    note(f"and with tie_word_embeddings: {str(tied).lower()}")
    start = initial_state(groups, tied, last, solved.axes.ideas, changed)
    known = {group.pattern: choice for group, choice in zip(solved.groups, solved.found.state.choices, strict=True)}
    choices = []
    for group, choice in zip(groups, start.choices, strict=True):
        before = known.get(group.pattern)
        if before is None or len(before.forms) != len(choice.forms):
            choices.append(choice)
        elif group.owner == last:
            choices.append(replace(before, powers=choice.powers, offset=choice.offset))
        else:
            choices.append(before)
    state = State(tuple(choices), solved.found.state.keys)
    search = Search(laboratory, tied, last, budget, note)
    search.only = solved.found.solved
    found = search.run(state)
    if not set(solved.found.solved) <= set(found.solved):
        if not found.solved:
            return None
        if len(found.solved) < len(solved.found.solved):
            note("the other setting holds for fewer axes and is left out")
            return None
    return _Solved(architecture, solved.axes, laboratory, groups, found, tied)


def _reason(solved: _Solved, axis: str, outcome: Outcome) -> str:
    """Why an axis stays, in words as far as they can be told."""
    if outcome.problem:
        return f"no layout was found: the wide model is refused ({outcome.problem[:150]})"
    where = f"`{outcome.first}` computes something else" if outcome.first else "the output differs"
    if outcome.progress == 0 and axis != "experts":
        where += ", the first after the embeddings: positions may be computed from the width"
    rotary = any("rotary" in name or "rope" in name for name in solved.laboratory.narrow.order) or any(
        "rope" in key or "rotary" in key for key in solved.architecture.config
    )
    if axis in _POSITIONS and rotary:
        return "rotary frequencies are a function of the size of a head, so copies would turn at other speeds"
    if any("alibi" in key for key in solved.architecture.config) and axis in ("h", "kv", "g"):
        return f"no layout was found under which it is exact; with ALiBi the slopes depend on the number of heads ({where})"  # noqa: E501
    return f"no layout was found under which widening it is exact: {where}"


def _nothing(solved: _Solved) -> InferError:
    parts = [f"{axis}: {_reason(solved, axis, outcome)}" for axis, outcome in solved.found.unsolved.items()]
    return InferError(
        f"no axis of `{solved.architecture.name}` can be widened exactly",
        excerpt="\n".join(f"  {part}" for part in parts),
    )


# The proof -----------------------------------------------------------------------------------------


def _prove(draft: Draft, solved: list[_Solved], version: str, note: Note) -> tuple[Draft, dict[str, float]]:
    """Widen from disk to disk by all axes and by each alone; what does not hold is fixed, and tried again."""
    while True:
        with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
            file = Path(folder) / "recipe.yaml"
            file.write_text(recipe_text(draft), encoding="utf-8")
            errors: dict[str, float] = {}
            culprit: tuple[str, str] | None = None
            for number, item in enumerate(solved):
                source = item.architecture.save(
                    random_model(item.architecture), item.architecture.config, Path(folder) / f"narrow{number}"
                )
                tie = f"{'tied' if item.tied else 'untied'}, " if len(solved) > 1 else ""
                sets = _factor_sets(draft)
                for what, factors in sets if not number else [some for some in sets if _is_about_ties(some[1])]:
                    error = _widen_once(item, source, file, factors, Path(folder) / "wide")
                    if isinstance(error, str):
                        culprit = (what, error)
                        break
                    errors[tie + what] = error
                if culprit:
                    break
        if culprit is None:
            header = _header(draft, errors, version)
            return replace(draft, header=header), errors
        what, problem = culprit
        axis = what.partition(" ")[0] if not what.startswith("all") else _odd_one(draft, item, note)
        movable = [idea.name for idea in draft.axes.ideas if idea.name not in draft.fixed]
        if axis not in movable or len(movable) == 1:
            raise InferError(
                f"the drafted recipe of `{draft.name}` does not hold for {what}: {problem}", excerpt=recipe_text(draft)
            )
        note(f"axis {axis} does not hold from disk to disk and is fixed: {problem}")
        fixed = {**draft.fixed, axis: f"no layout was found that holds from disk to disk: {problem[:200]}"}
        for alias, product in draft.axes.aliases.items():
            if all(part in fixed for part in product):
                fixed[alias] = fixed[axis]
        draft = replace(draft, fixed=fixed)


def _odd_one(draft: Draft, item: _Solved, note: Note) -> str:
    """Of axes that hold alone and not together, one without which the others do; empty if there is no such."""
    movable = [idea.name for idea in draft.axes.ideas if idea.name not in draft.fixed]
    note("the axes hold alone, but not together: looking for the one that is in the way")
    with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(recipe_text(draft), encoding="utf-8")
        source = item.architecture.save(
            random_model(item.architecture), item.architecture.config, Path(folder) / "narrow"
        )
        for axis in sorted(movable, key=lambda name: name in draft.widen):
            factors = _with_aliases(draft.axes, {name: 2 for name in movable if name != axis})
            if factors and isinstance(_widen_once(item, source, file, factors, Path(folder) / "wide"), float):
                return axis
    return ""


def _factor_sets(draft: Draft) -> list[tuple[str, dict[str, int]]]:
    movable = [idea.name for idea in draft.axes.ideas if idea.name not in draft.fixed]
    sets = [(f"{name} x2", {name: 2}) for name in movable]
    if len(movable) > 1:
        sets += [("all axes x2", dict.fromkeys(movable, 2)), ("all axes x3", dict.fromkeys(movable, 3))]
    else:
        sets += [(f"{movable[0]} x3", {movable[0]: 3})]
    return [(what, _with_aliases(draft.axes, factors)) for what, factors in sets]


def _is_about_ties(factors: Mapping[str, int]) -> bool:
    """Whether a widening tells tied and untied readouts apart."""
    return "embed" in factors


def _with_aliases(axes: Axes, factors: Mapping[str, int]) -> dict[str, int]:
    result = dict(factors)
    for alias, product in axes.aliases.items():
        factor = 1
        for part in product:
            factor *= factors.get(part, 1)
        if factor > 1:
            result[alias] = factor
    return result


def _widen_once(item: _Solved, source: Path, recipe: Path, factors: Mapping[str, int], output: Path) -> float | str:
    """The error of one widening from disk to disk, or what went wrong."""
    own = item.architecture.name if isinstance(item.architecture, Own) else None
    try:
        result = widen(
            source,
            output,
            axes=factors,
            recipe=recipe,
            overwrite=True,
            dtype="float64",
            device="cpu",
            model=own,
        )
    except MupscaleError as error:
        return str(error)
    if result.verification is None:
        return f"it was not verified: {result.skipped}"
    worst = max((comparison.max_rel for comparison in result.verification.comparisons), default=float("inf"))
    if not worst < TOLERANCE:
        return f"the outputs differ by {worst:.1e}"
    return worst


def _header(draft: Draft, errors: Mapping[str, float], version: str) -> tuple[str, ...]:
    worst = max(errors.values(), default=0.0)
    tried = list(dict.fromkeys(what.rpartition(", ")[2] for what in errors))
    both = " tied and untied," if draft.tied and draft.untied else ""
    text = (
        f"Drafted by `mupscale recipes infer` for {draft.name} and verified on random tiny models,{both} from disk to "
        f"disk in float64 with {version}: largest relative difference {worst:.1e} for {', '.join(tried)}. "
        "Comments mark what was found by trial."
    )
    given_up = dict.fromkeys(draft.axes.given_up)
    if given_up:
        text += f" Left as they are, since no axis describes them: {', '.join(given_up)}."
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) > 114:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return (*lines, line)
