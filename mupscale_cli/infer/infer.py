"""Draft a recipe from an architecture and prove it: build it tiny, find axes, search, write, widen and verify."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.checkpoints.json_files import parse_json
from mupscale_cli.checkpoints.libraries import TRANSFORMERS, Library, library_of
from mupscale_cli.engine.defaults import plain_defaults
from mupscale_cli.engine.threads import one_thread
from mupscale_cli.files import read_errors, read_text
from mupscale_cli.infer.architecture import (
    Architecture,
    LibraryArchitecture,
    TransformersArchitecture,
    UserArchitecture,
    flat_config,
    flat_parts,
    nested_config,
    random_model,
    shared_names,
)
from mupscale_cli.infer.draft import Draft, without_unused_axes
from mupscale_cli.infer.errors import InferError, TinyError
from mupscale_cli.infer.growth import with_words
from mupscale_cli.infer.proof import header, prove
from mupscale_cli.infer.search import DEFAULT_BUDGET, Budget, Note
from mupscale_cli.infer.solving import solve, solve_other_tie, with_derived_sizes
from mupscale_cli.infer.stages import infer_stages
from mupscale_cli.infer.tiny import Task, model_class, task_of, tiny_model
from mupscale_cli.infer.tiny_configs import config_class
from mupscale_cli.infer.vocabulary import ABOUT
from mupscale_cli.infer.write import recipe_text
from mupscale_cli.verification.transformers import import_transformers
from mupscale_cli.verification.user_models import load_user_module


@dataclass(frozen=True)
class InferredRecipe:
    """A drafted recipe and its proof.

    Attributes:
        text: the recipe in YAML.
        draft: the content of the recipe; None if the widths of all stages are one axis.
        errors: the largest relative difference of each proving widening, in float64.
        fixed: axes that cannot be widened, with the reason.
    """

    text: str
    draft: Draft | None
    errors: dict[str, float]
    fixed: dict[str, str]

    @property
    def worst(self) -> float:
        return max(self.errors.values(), default=float("nan"))

    @property
    def bare_factor(self) -> str:
        """What a factor without the name of an axis widens."""
        if self.draft is None:
            return "the widths of all stages together"
        draft, parts = self.draft, {}
        for alias in draft.axes.aliases:
            if part := draft.grown_by(alias):
                parts[part] = f"{alias} through {part} ({ABOUT.get(part) or f'units of {part}'})"
        linked = [*parts, *draft.axes.aliases]
        alone = [f"{name} ({draft.axes.sizes[name]})" for name in draft.widen if name not in linked]
        return ", ".join([*parts.values(), *alone]) or "nothing: name an axis"


def infer_target(
    target: str,
    task: Task | None = None,
    config: Path | None = None,
    *,
    budget: Budget = DEFAULT_BUDGET,
    note: Note = lambda _text: None,
) -> InferredRecipe:
    """Draft and prove a recipe for a model type, a config or a function.

    Args:
        target: a model type, a config.json or its folder, or `path/model.py:build`. A config of another library must be
            that of a small model and contain its sizes.
        task: the task, which selects the head. Default: the task of the config's `architectures`, or else the model
            type's first task.
        config: a JSON file with the config for a user's function.
        budget: limits of the search.
        note: receives progress messages.

    Raises:
        MupscaleError: the target does not exist, it cannot be built, or no axis can be widened exactly.
    """
    path = Path(target)
    if path.is_dir():
        path /= "config.json"
    if path.is_file() and path.suffix == ".json":
        flags = _read_config(path)
        if (library := library_of(flags)) is not TRANSFORMERS:
            return infer_library_model(library, flags, budget=budget, note=note)
        model_type = flags.get("model_type")
        if not isinstance(model_type, str):
            raise InferError(f"`{path}` has no `model_type`")
        chosen = task or task_of(model_type, flags.get("architectures"))
        return infer(model_type, chosen, flags=flags, budget=budget, note=note)
    if ":" in target:
        return infer_user_model(target, None if config is None else _read_config(config), budget=budget, note=note)
    return infer(target, task or task_of(target), budget=budget, note=note)


def _read_config(path: Path) -> dict[str, Any]:
    with read_errors(path, InferError):
        text = read_text(path)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise InferError(f"cannot read `{path}` as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InferError(f"`{path}` is not a JSON object")
    return content


@plain_defaults()
def infer(
    model_type: str,
    task: Task = "causal-lm",
    *,
    flags: Mapping[str, Any] | None = None,
    budget: Budget = DEFAULT_BUDGET,
    note: Note = lambda _text: None,
) -> InferredRecipe:
    """Draft and prove a recipe for a model type of transformers.

    Args:
        model_type: the model type, as in config.json.
        task: the task, which selects the model's head.
        flags: a config.json; its flags are kept and its sizes replaced by small ones.
        budget: limits of the search.
        note: receives progress messages.

    Raises:
        MupscaleError: the model cannot be built, or no axis can be widened exactly.
    """
    version = f"transformers {import_transformers().__version__}"
    try:
        tiny = tiny_model(model_type, task, flags=flags)
        architecture = TransformersArchitecture(model_type, task, tiny.config)
        head = type(tiny.model).__name__
        defaults = _independent_defaults(model_type, architecture.config)
        name, pattern = f"{model_type} ({head})", _head_pattern(head)
        return _infer(architecture, name, {"model_type": (model_type,)}, defaults, pattern, version, budget, note)
    except (InferError, TinyError) as error:
        if getattr(model_class(model_type, task), "main_input_name", "") != "pixel_values":
            raise
        note(f"{error.message}; trying to widen all stages together")
    with one_thread():
        text, worst = infer_stages(model_type, task, flags, version)
    return InferredRecipe(text, None, {"c x2, c x3": worst}, {})


@plain_defaults()
def infer_user_model(
    reference: str,
    config: Mapping[str, Any] | None = None,
    *,
    budget: Budget = DEFAULT_BUDGET,
    note: Note = lambda _text: None,
) -> InferredRecipe:
    """Draft and prove a recipe for a model that the user's function builds.

    Args:
        reference: `path/model.py:build`, a function from a config to a module.
        config: the config of a small model. Default: `config` in the function's module.
        budget: limits of the search.
        note: receives progress messages.

    Raises:
        MupscaleError: the model cannot be built, or no axis can be widened exactly.
    """
    module, build_model = load_user_module(reference)
    small = config if config is not None else getattr(module, "config", None)
    if not isinstance(small, Mapping):
        raise InferError(
            f"`{reference}` needs a config to build a model",
            hint="pass one with `--config FILE`, or define a dict `config` in the module",
        )
    architecture = UserArchitecture(reference, module, build_model, dict(small))
    try:
        architecture.run(random_model(architecture))
    except Exception as error:  # the user's code raises anything
        raise InferError(f"cannot build and run `{reference}` with its config: {error!r}") from error
    match = {"model_type": (str(small["model_type"]),)} if "model_type" in small else {}
    return _infer(architecture, reference, match, {}, "", f"torch {torch.__version__}", budget, note)


@plain_defaults()
def infer_library_model(
    library: Library, config: Mapping[str, Any], *, budget: Budget = DEFAULT_BUDGET, note: Note = lambda _text: None
) -> InferredRecipe:
    """Draft and prove a recipe for a model that a library builds from its own kind of config.

    Args:
        library: the library.
        config: the config of a small model, in which each size that is to become an axis is written.
        budget: limits of the search.
        note: receives progress messages.

    Raises:
        MupscaleError: the library is not installed, the model cannot be built, or no axis can be widened exactly.
    """
    try:
        package = library.package()
    except ImportError as error:
        raise InferError(f"{library.name} is not installed", hint=library.install) from error
    value = config[library.key]
    name = value if isinstance(value, str) else library.name
    architecture = LibraryArchitecture(name, package, library, flat_config(config))
    try:
        architecture.run(random_model(architecture))
    except Exception as error:  # the library raises anything
        raise InferError(f"{library.name} cannot build and run `{name}` with this config: {error!r}") from error
    match = {library.key: (name if isinstance(value, str) else '"*"',)}
    return _infer(architecture, name, match, {}, "", f"{library.name} {package.__version__}", budget, note)


def _independent_defaults(model_type: str, tiny: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config class' defaults, without those that it computes from other keys."""
    config = config_class(model_type)
    try:
        types = {key: value for key, value in tiny.items() if key.endswith(".model_type")}
        defaults = flat_parts(config(**nested_config(types)).to_dict())
    except Exception:  # noqa: BLE001 (some config classes require arguments)
        return {}
    independent = {}
    for key, value in defaults.items():
        if key in tiny and isinstance(value, (int, float)) and tiny[key] != value:
            try:
                others = nested_config({name: v for name, v in tiny.items() if name != key})
                absent = flat_parts(config.from_dict(others).to_dict()).get(key)
            except Exception:  # noqa: BLE001 (the default does not fit the tiny config, so it is not computed from it)
                absent = value
            if absent != value:
                continue
        independent[key] = value
    return independent


def _head_pattern(head: str) -> str:
    """Return a pattern of class names with the same head: `*ForCausalLM`."""
    for marker in ("For", "LMHead", "WithLM"):
        if marker in head:
            return f"*{head[head.index(marker) :]}"
    return head


@one_thread()
def _infer(
    architecture: Architecture,
    name: str,
    match: Mapping[str, tuple[str, ...]],
    defaults: dict[str, Any],
    head: str,
    version: str,
    budget: Budget,
    note: Note,
) -> InferredRecipe:
    started = time.monotonic()
    first = solve(architecture, budget, note)
    other = solve_other_tie(first, budget, note)
    solutions = [first, other] if other else [first]
    variants = {solution.tied: solution.variant for solution in solutions}
    draft = Draft(
        name,
        match,
        without_unused_axes(with_derived_sizes(first), variants.values()),
        {},
        architecture.config,
        defaults,
        variants.get(True),
        variants.get(False),
        head,
        shared_names(architecture.reusable(architecture.config)) if not head else {},
        covers=first.runner.axes.equal_counts(architecture.config),
    ).with_fixed(first.runner.axes.still | {axis: first.reason(axis) for axis in first.result.unsolved})
    draft, errors = prove(draft, solutions, note)
    draft, grown = with_words(draft, solutions, note)
    errors |= grown
    draft = replace(draft, header=header(draft, errors, version))
    note(f"done in {time.monotonic() - started:.0f} s")
    return InferredRecipe(recipe_text(draft), draft, errors, draft.fixed)
