"""Architectures whose widths are lists, one entry a stage: all of them grow together, as one axis that varies.

Convolutional and hierarchical image models. Every dimension that doubles when all widths are doubled
is the axis; what is summed over follows from its place, and widening from disk to disk decides.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.architecture import Reference, random_model
from mupscale_cli.infer.shapes import InferError
from mupscale_cli.infer.tiny import Task, TinyError, TinyModel, build, config_class, tiny_model
from mupscale_cli.infer.vocabulary import LOOKED_UP, NO_WIDTHS, QUERY, module_of
from mupscale_cli.tasks.widen import widen
from mupscale_cli.text import starred

_SMALLEST = 8
_EXACT = 1e-9
Shapes = Mapping[str, tuple[int, ...]]


def infer_stages(model_type: str, task: Task, flags: Mapping[str, Any] | None, version: str) -> tuple[str, float]:
    """Draft and prove a recipe for an architecture whose widths are lists.

    Args:
        model_type: as in config.json.
        task: which head the models have.
        flags: a config.json whose flags are kept.
        version: of the library that has the architecture, for the header.

    Returns:
        The recipe's text, and the largest relative difference of its proof.

    Raises:
        MupscaleError: it cannot be built, or no layout holds.
    """
    tiny = _model(model_type, task, flags)
    architecture = Reference(model_type, task, tiny.config)
    shapes = architecture.shapes(architecture.config)
    keys = [key for key in tiny.config if _is_width(architecture, shapes, key)]
    if not keys:
        raise InferError(f"no key of the config of `{model_type}` makes its tensors wider")
    wide = architecture.shapes(_doubled(architecture.config, keys))
    head = type(tiny.model).__name__
    with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
        file = Path(folder) / "recipe.yaml"
        source = architecture.save(random_model(architecture), architecture.config, Path(folder) / "narrow")
        for with_queries in (False, True):
            body = _text(model_type, head, keys, dict(_layouts(shapes, wide, with_queries=with_queries)))
            file.write_text(body, encoding="utf-8")
            error = _prove(source, file, Path(folder))
            if error is not None:
                return _header(model_type, head, version, error) + body, error
    raise InferError(
        f"`{model_type}`: the widths of all stages together do not widen exactly",
        hint="write a recipe by hand; `recipes/resnet.yaml` is one of this kind",
    )


def _model(model_type: str, task: Task, flags: Mapping[str, Any] | None) -> TinyModel:
    """A tiny model, or one of the default size where sizes that are made small do not fit together."""
    small = _small_lists(model_type)
    try:
        return tiny_model(model_type, task, flags=flags, overrides=small)
    except TinyError:
        try:
            return build(model_type, task, small)
        except Exception as error:  # a config may ask for anything
            raise TinyError(f"`{model_type}` cannot be built: {error}") from error


def _small_lists(model_type: str) -> dict[str, Any]:
    """Widths in lists, divided so that the smallest is small."""
    found = {}
    for key, value in config_class(model_type)().to_dict().items():
        if _is_list_of_sizes(value) and not NO_WIDTHS.fullmatch(key):
            divisor = min(value) // _SMALLEST
            if divisor > 1 and all(size % divisor == 0 for size in value):
                found[key] = [size // divisor for size in value]
    return found


def _is_list_of_sizes(value: object) -> bool:
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(type(size) is int and size >= _SMALLEST for size in value)


def _is_width(architecture: Reference, shapes: Shapes, key: str) -> bool:
    """Whether doubling a key doubles dimensions, of the same tensors, and none that slides over an image."""
    value = architecture.config[key]
    if NO_WIDTHS.fullmatch(key) or not (_is_list_of_sizes(value) or (type(value) is int and value >= _SMALLEST)):
        return False
    try:
        wide = architecture.shapes(_doubled(architecture.config, [key]))
    except Exception:  # noqa: BLE001 (whatever a config makes of a size that it does not like)
        return _is_list_of_sizes(value)  # such lists may only move together with others
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
    """The layout of every tensor: `c` where it doubles, summed over where a weight has its inputs."""
    for name, shape in narrow.items():
        target = wide.get(name, ())
        ratios = [b // a if a and b % a == 0 else 0 for a, b in zip(shape, target, strict=False)]
        if len(target) != len(shape) or not set(ratios) <= {1, 2}:
            raise InferError(f"`{name}` has the shape {shape}, and {target} where all widths are doubled")
        is_weight = len(shape) > 1 and not LOOKED_UP.fullmatch(name) and name.endswith("weight")
        dims = [
            ("/c" if is_weight and place == 1 else "c") if ratio == 2 else "." for place, ratio in enumerate(ratios)
        ]
        scale = " | c^-0.5" if with_queries and QUERY.fullmatch(module_of(name)) and ratios and ratios[0] == 2 else ""
        yield name, ", ".join(dims) + scale if dims else "keep"


def _text(model_type: str, head: str, keys: list[str], layouts: Mapping[str, str]) -> str:
    lines = [
        f"about: drafted for {model_type} ({head}); the widths of all stages grow together",
        *("", "match:", f"  model_type: [{model_type}]", ""),
        *("axes:", "  c: {size: varies, about: widths of every stage}", "", "widen: [c]", ""),
        *("config:", *(f"  {key}: {key} | c" for key in keys), "", "tensors:"),
    ]
    patterns: dict[str, set[str]] = {}
    for name, layout in layouts.items():
        patterns.setdefault(starred(name), set()).add(layout)
    told = set()
    for name, layout in layouts.items():
        pattern = starred(name)
        pattern = pattern if len(patterns[pattern]) == 1 else name  # layers of several kinds under one name
        if pattern not in told:
            told.add(pattern)
            lines.append(f'  "{pattern}?": ' + (layout if layout == "keep" else f'"{layout}"'))
    return "\n".join(lines) + "\n"


def _header(model_type: str, head: str, version: str, error: float) -> str:
    return (
        f"# Drafted by `mupscale recipes infer` for {model_type} ({head}) and verified on a random model from disk to\n"
        f"# disk in float64 with {version}: largest relative difference {error:.1e} for c x2, c x3.\n"
    )


def _prove(source: Path, recipe: Path, folder: Path) -> float | None:
    """The largest difference for factors 2 and 3; None where it does not hold."""
    errors = []
    for factor in (2, 3):
        try:
            found = widen(
                source,
                folder / f"wide{factor}",
                factor,
                recipe=recipe,
                overwrite=True,
                dtype="float64",
            ).verification
        except MupscaleError:
            return None
        if found is None or not found.max_rel < _EXACT:
            return None
        errors.append(found.max_rel)
    return max(errors)
