"""Draft a recipe for an architecture whose widths are lists with one entry per stage, as in image models.

All stages grow together, as one axis whose size varies. Each dimension that doubles when all widths are doubled is
this axis. Its position tells whether the layer sums over it, and widening a random model proves the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mupscale_cli.architecture.loading import read_draft
from mupscale_cli.infer.architecture import Shapes, TransformersArchitecture
from mupscale_cli.infer.errors import InferError, TinyError
from mupscale_cli.infer.proof import ProofModel
from mupscale_cli.infer.tiny import Task, TinyModel, build, tiny_model
from mupscale_cli.infer.tiny_configs import config_class
from mupscale_cli.infer.vocabulary import LOOKED_UP, NO_WIDTHS, QUERY, module_of
from mupscale_cli.text import starred

_SMALLEST = 8  # the smallest width of a tiny model, and of what may be a width


def infer_stages(model_type: str, task: Task, flags: Mapping[str, Any] | None, version: str) -> tuple[str, float]:
    """Draft and prove a recipe for an architecture whose widths are lists.

    Args:
        model_type: the model type, as in config.json.
        task: the task, which selects the model's head.
        flags: a config.json whose flags are kept.
        version: the library that has the architecture, with its version.

    Returns:
        The recipe's text, and the largest relative difference of its proof.

    Raises:
        MupscaleError: the model cannot be built, or no layout is exact.
    """
    tiny = _small_model(model_type, task, flags)
    architecture = TransformersArchitecture(model_type, task, tiny.config)
    shapes = architecture.shapes(architecture.config)
    keys = [key for key in tiny.config if _is_width(architecture, shapes, key)]
    if not keys:
        raise InferError(f"no key of the config of `{model_type}` makes its tensors wider")
    wide = architecture.shapes(_doubled(architecture.config, keys))
    head = type(tiny.model).__name__
    model = ProofModel.of(architecture)
    for with_queries in (False, True):
        body = _recipe_text(model_type, head, keys, dict(_layouts(shapes, wide, with_queries=with_queries)))
        errors = [model.widen(read_draft(body, model_type), {"c": factor}) for factor in (2, 3)]
        worst = max((error for error in errors if isinstance(error, float)), default=0.0)
        if not any(isinstance(error, str) for error in errors):
            return _header(model_type, head, version, worst) + body, worst
    raise InferError(
        f"`{model_type}` does not widen exactly when all stages grow together",
        hint="write a recipe by hand; `recipes/resnet.yaml` is an example of this kind",
    )


def _small_model(model_type: str, task: Task, flags: Mapping[str, Any] | None) -> TinyModel:
    """Build a tiny model, or one with default sizes and small stages if the tiny sizes do not fit together."""
    small = _small_stages(model_type)
    try:
        return tiny_model(model_type, task, flags=flags, overrides=small)
    except TinyError:
        try:
            return build(model_type, task, small)
        except Exception as error:  # transformers raises anything
            raise TinyError(f"cannot build `{model_type}`: {error}") from error


def _small_stages(model_type: str) -> dict[str, Any]:
    """Divide lists of widths so that their smallest entry is small."""
    stages = {}
    for key, value in config_class(model_type)().to_dict().items():
        if _is_list_of_sizes(value) and not NO_WIDTHS.fullmatch(key):
            divisor = min(value) // _SMALLEST
            if divisor > 1 and all(size % divisor == 0 for size in value):
                stages[key] = [size // divisor for size in value]
    return stages


def _is_list_of_sizes(value: object) -> bool:
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(type(size) is int and size >= _SMALLEST for size in value)


def _is_width(architecture: TransformersArchitecture, shapes: Shapes, key: str) -> bool:
    """Return whether doubling a key widens tensors, keeps their names, and leaves kernels over an image alone."""
    value = architecture.config[key]
    if NO_WIDTHS.fullmatch(key) or not (_is_list_of_sizes(value) or (type(value) is int and value >= _SMALLEST)):
        return False
    try:
        wide = architecture.shapes(_doubled(architecture.config, [key]))
    except Exception:  # noqa: BLE001 (architectures raise anything)
        return _is_list_of_sizes(value)  # such a list may only move together with others
    changed = [(before, wide[name]) for name, before in shapes.items() if name in wide and wide[name] != before]
    return (
        wide.keys() == shapes.keys()
        and bool(changed)
        and all(before[2:] == after[2:] or len(before) < 4 or before[:2] == (1, 1) for before, after in changed)
    )


def _doubled(config: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    def twice(value: Any) -> Any:
        return [2 * size for size in value] if isinstance(value, (list, tuple)) else 2 * value

    return {**config, **{key: twice(config[key]) for key in keys}}


def _layouts(narrow: Shapes, wide: Shapes, *, with_queries: bool) -> Iterator[tuple[str, str]]:
    """Yield each tensor's layout: dimensions that double are `c`, or `/c` for the inputs of a weight.

    Args:
        narrow: shapes of the tiny model.
        wide: shapes with all widths doubled.
        with_queries: scale queries for heads that grow.

    Raises:
        InferError: a tensor changes in another way than by doubling dimensions.
    """
    for name, shape in narrow.items():
        target = wide.get(name, ())
        ratios = [b // a if a and b % a == 0 else 0 for a, b in zip(shape, target, strict=False)]
        if len(target) != len(shape) or not set(ratios) <= {1, 2}:
            raise InferError(f"`{name}` has the shape {shape}, and {target} when all widths are doubled")
        is_weight = len(shape) > 1 and not LOOKED_UP.fullmatch(name) and name.endswith("weight")
        dims = [
            ("/c" if is_weight and place == 1 else "c") if ratio == 2 else "." for place, ratio in enumerate(ratios)
        ]
        scale = " | c^-0.5" if with_queries and QUERY.fullmatch(module_of(name)) and ratios and ratios[0] == 2 else ""
        yield name, ", ".join(dims) + scale if dims else "keep"


def _recipe_text(model_type: str, head: str, keys: list[str], layouts: Mapping[str, str]) -> str:
    lines = [
        f"about: drafted for {model_type} ({head}); the widths of all stages grow together",
        *("", "match:", f"  model_type: [{model_type}]", ""),
        *("axes:", "  c: {size: varies, about: widths of every stage}", "", "widen: [c]", ""),
        *("config:", *(f"  {key}: {key} | c" for key in keys), "", "tensors:"),
    ]
    choices: dict[str, set[str]] = {}
    for name, layout in layouts.items():
        choices.setdefault(starred(name), set()).add(layout)
    rules: dict[str, str] = {}
    for name, layout in layouts.items():
        pattern = starred(name)
        # Layers of different kinds may share a pattern; their tensors are listed by name.
        rules.setdefault(pattern if len(choices[pattern]) == 1 else name, layout)
    lines += (
        f'  "{pattern}?": ' + (layout if layout == "keep" else f'"{layout}"') for pattern, layout in rules.items()
    )
    return "\n".join(lines) + "\n"


def _header(model_type: str, head: str, version: str, error: float) -> str:
    return (
        f"# Drafted by `mupscale recipes infer` for {model_type} ({head}) and verified on a random model in\n"
        f"# float64 with {version}: largest relative difference {error:.1e} for c x2, c x3.\n"
    )
