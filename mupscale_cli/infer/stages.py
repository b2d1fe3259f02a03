"""Draft a recipe for an architecture whose widths are lists with one entry per stage, as in image models.

All stages grow together, as one axis whose size varies. Each dimension that doubles when all widths are doubled is
this axis. Its position tells whether the layer sums over it, and widening a random model proves the result.
"""

from __future__ import annotations

import itertools
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from mupscale_cli.architecture.loading import read_draft
from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.architecture import Shapes, TransformersArchitecture
from mupscale_cli.infer.errors import InferError, TinyError, first_line
from mupscale_cli.infer.groups import narrowed
from mupscale_cli.infer.proof import ProofModel
from mupscale_cli.infer.rules import Rule, merged_rules
from mupscale_cli.infer.tiny import Task, TinyModel, build, run, tiny_model
from mupscale_cli.infer.tiny_configs import config_class, equal_widths
from mupscale_cli.infer.vocabulary import LOOKED_UP, NO_WIDTHS, QUERY, module_of
from mupscale_cli.text import starred

_SECONDS = 10.0  # computing time to find sizes that work
_SMALLEST = 8  # the smallest width of a tiny model, and of what may be a width
_MULTIPLIER = re.compile(r"(depth|width|channel)s?_(mult\w*|coefficient)|alpha|.*_width_mult\w*")  # of all channels
_GROUP_WIDTH = re.compile(r"groups?_width|width_per_group")


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
    widths = [key for key in architecture.config if _is_width(architecture, shapes, key)]
    if not widths:
        raise InferError(f"no key of the config of `{model_type}` makes its tensors wider")
    head = type(tiny.model).__name__
    model = ProofModel.of(architecture)
    problem = ""
    for keys, with_queries in itertools.product(_with_group_widths(architecture.config, widths), (False, True)):
        try:
            wide = architecture.shapes(_doubled(architecture.config, keys))
            body = _recipe_text(model_type, head, keys, dict(_layouts(shapes, wide, with_queries=with_queries)))
        except Exception as error:  # noqa: BLE001 (architectures raise anything; other keys may fit)
            problem = problem or first_line(error)
            continue
        errors = [model.widen(read_draft(body, model_type), {"c": factor}) for factor in (2, 3)]
        worst = max((error for error in errors if isinstance(error, float)), default=0.0)
        problems = [error for error in errors if isinstance(error, str)]
        if not problems:
            return _header(model_type, head, version, worst) + body, worst
        problem = problem or problems[0]
    raise InferError(
        f"`{model_type}` does not widen exactly when all stages grow together ({', '.join(widths)}): {problem}",
        hint="write a recipe by hand; `recipes/resnet.yaml` is an example of this kind",
    )


def _with_group_widths(config: Mapping[str, Any], widths: list[str]) -> Iterator[list[str]]:
    """Yield the keys of widths alone, which adds groups to grouped convolutions, and with the width of a group."""
    yield widths
    groups = [key for key, value in config.items() if _GROUP_WIDTH.fullmatch(key) and type(value) is int]
    if groups:
        yield [*widths, *groups]


def _small_model(model_type: str, task: Task, flags: Mapping[str, Any] | None) -> TinyModel:
    """Build a tiny model, or one with default sizes and small stages if the tiny sizes do not fit together."""
    first_error: MupscaleError | None = None
    end = time.process_time() + _SECONDS
    for small in _small_stages(model_type):
        if first_error is not None and time.process_time() > end:
            break
        try:
            return tiny_model(model_type, task, flags=flags, overrides=small)
        except TinyError as error:
            first_error = first_error or error
        try:
            tiny = build(model_type, task, small)
            run(tiny.model)
        except Exception as error:  # noqa: BLE001 (transformers raises anything; other sizes may fit)
            first_error = first_error or TinyError(f"cannot build `{model_type}`: {first_line(error)}")
        else:
            return tiny
    assert first_error is not None
    raise first_error


def _small_stages(model_type: str) -> Iterator[dict[str, Any]]:
    """Yield settings with two layers a stage: with small widths, with groups as much smaller, and with all widths.

    A multiplier of widths becomes 1, and what the config states as a multiple of it becomes as much smaller.
    """
    defaults = config_class(model_type)().to_dict()
    depths = {
        key: [min(depth, 2) for depth in value]
        for key, value in defaults.items()
        if key == "depths" and isinstance(value, (list, tuple))
    }
    stages, groups = {}, {}
    for key, value in defaults.items():
        if _is_list_of_sizes(value) and not NO_WIDTHS.fullmatch(key):
            divisor = min(value) // _SMALLEST
            if divisor > 1 and all(size % divisor == 0 for size in value):
                stages[key] = [size // divisor for size in value]
                groups = {
                    name: size // divisor
                    for name, size in defaults.items()
                    if _GROUP_WIDTH.fullmatch(name) and type(size) is int and size % divisor == 0
                }
    multipliers = {key: value for key, value in defaults.items() if _is_multiplier(key, value) and value > 1}
    for multiplier in dict.fromkeys(multipliers.values()):
        totals = {key: int(defaults[key] / multiplier) for key in ("hidden_dim",) if key in defaults}
        yield {**dict.fromkeys(multipliers, 1.0), **totals}
    yield {**depths, **stages}
    if groups:
        yield {**depths, **stages, **groups}
    yield depths


def _is_multiplier(key: str, value: object) -> bool:
    return isinstance(value, float) and bool(_MULTIPLIER.fullmatch(key))


def _is_list_of_sizes(value: object) -> bool:
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(type(size) is int and size >= _SMALLEST for size in value)


def _is_width(architecture: TransformersArchitecture, shapes: Shapes, key: str) -> bool:
    """Return whether doubling a key widens tensors, keeps their names, and leaves kernels over an image alone."""
    value = architecture.config[key]
    is_size = _is_list_of_sizes(value) or (type(value) is int and value >= _SMALLEST)
    if not _is_multiplier(key, value) and (NO_WIDTHS.fullmatch(key) or not is_size):
        return False
    try:
        wide = architecture.shapes(_doubled(architecture.config, [key]))
    except Exception:  # noqa: BLE001 (architectures raise anything)
        return _is_list_of_sizes(value)  # such a list may only move together with others
    equal = equal_widths(architecture.config)
    if wide.keys() != shapes.keys() and (key in equal or key in {other for other, _ in equal.values()}):
        return True  # a layer between equal widths has no projection, so that they only move together
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
    alike: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, layout in layouts.items():
        alike[starred(name)][layout].append(name)
    rules = []
    for pattern, names_of in alike.items():
        patterns = [pattern]
        if len(names_of) > 1:
            try:
                patterns = narrowed(list(names_of.values()), {})
            except InferError:  # several numbers tell the layers apart
                rules += [Rule(name, (("", layout),), True, "") for layout, names in names_of.items() for name in names]
                continue
        rules += [Rule(each, (("", layout),), True, "") for each, layout in zip(patterns, names_of, strict=True)]
    lines += (f"{rule.head}{_value(rule.layouts[0][1])}" for rule in merged_rules(rules))
    return "\n".join(lines) + "\n"


def _value(layout: str) -> str:
    return layout if layout == "keep" else f'"{layout}"'


def _header(model_type: str, head: str, version: str, error: float) -> str:
    return (
        f"# Drafted by `mupscale recipes infer` for {model_type} ({head}) and verified on a random model in\n"
        f"# float64 with {version}: largest relative difference {error:.1e} for c x2, c x3.\n"
    )
