"""A proxy: a model of the checkpoint's architecture that is narrower by a whole ratio."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mupscale_cli._version import __version__
from mupscale_cli.checkpoint.source import CONFIG, Checkpoint, open_checkpoint
from mupscale_cli.checkpoint.target import copy_file, write_json
from mupscale_cli.errors import MupscaleError, PlanError, SweepError
from mupscale_cli.plan import make_plan, resolve_factors
from mupscale_cli.recipe import Recipe
from mupscale_cli.record import Origin, make_record
from mupscale_cli.sweeping.data import Split
from mupscale_cli.sweeping.models import import_transformers
from mupscale_cli.sweeping.settings import PROXY_RECORD, Training
from mupscale_cli.sweeping.training import Report, make_optimizer, run
from mupscale_cli.widening import choose_recipe

_SEED = 1 << 16  # of its batches: no trial has it
_OWN_PLACE = "train a smaller model yourself and give it in the checkpoint's place"


@dataclass(frozen=True)
class ProxyRequest:
    """What a proxy is to be.

    Attributes:
        ratio: width of the checkpoint over that of the proxy.
        axes: factors of single axes; those of factor 1 are not narrowed either.
        recipe: name or file of the recipe, None to find it.
        tie: where the factor of a shared readout goes.
        lr: with which it is trained.
        steps: for which it is trained; 0 leaves it as it was initialised.
    """

    ratio: int
    axes: Mapping[str, int]
    recipe: str | None
    tie: str | None
    lr: float
    steps: int


def make_proxy(
    source: Checkpoint, request: ProxyRequest, training: Training, data: Split | None, directory: Path, report: Report
) -> None:
    """Make a proxy, train it, and save it with its optimizer's state; it appears when it is complete.

    Raises:
        MupscaleError: the config cannot be narrowed, or transformers cannot build such a model.
    """
    recipe = choose_recipe(source, request.recipe)
    factors = resolve_factors(recipe, request.ratio, {name: 1 for name, factor in request.axes.items() if factor == 1})
    config = narrowed_config(source, recipe, factors, request.tie)
    staged = directory.with_name(f".{directory.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    write_json(staged / CONFIG, config)
    model = _build(staged)
    model.save_pretrained(staged)
    record = _check(source, recipe, factors, request.tie, staged)
    if request.steps:
        assert data is not None
        optimizer = make_optimizer(model, staged, training, request.lr)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            plan = replace(training, steps=request.steps)
            if not run(model.train(), optimizer, plan, data.train, _SEED, report):
                raise SweepError(
                    f"the proxy's own training diverged at lr {request.lr:g}", hint="give a smaller `--lr`"
                )
        model.save_pretrained(staged)
        torch.save(optimizer.state_dict(), staged / "optimizer.pt")
    if not source.is_file:
        for file in source.carried_files:
            copy_file(file, staged)
    write_json(staged / PROXY_RECORD, {key: record[key] for key in ("rules", "called", "axes", "parameters")})
    staged.rename(directory)


def narrowed_config(
    source: Checkpoint, recipe: Recipe, factors: Mapping[str, int], tie: str | None = None
) -> dict[str, Any]:
    """The config that widens to the checkpoint's.

    A recipe says how a config grows. What grows by a ratio there is divided by the same ratio here; what the wide
    config pins (a head_dim that would follow from another size) is pinned here too.

    Raises:
        MupscaleError: a size is no multiple of its ratio, or the recipe cannot widen this config.
    """
    if source.config is None:
        raise SweepError(f"`{source.path}` has no config.json to make a proxy of", hint=_OWN_PLACE)
    try:
        wide = make_plan(recipe, source.specs, source.config, factors, None, tie).config
    except PlanError as error:
        raise SweepError(
            f"a proxy cannot be made of `{recipe.name}`: {error.message}",
            hint=f"{error.hint}; or {_OWN_PLACE}" if error.hint else _OWN_PLACE,
        ) from None
    assert wide is not None
    narrow: dict[str, Any] = _divided(source.config, wide, "config.json")
    return narrow


def _divided(value: Any, grown: Any, place: str) -> Any:
    """A value of a config divided by the ratio by which it grows."""
    if isinstance(value, Mapping) and isinstance(grown, Mapping):
        keys = {**value, **grown}
        return {key: _divided(value.get(key), grown.get(key), f"{place}: `{key}`") for key in keys}
    if isinstance(value, list) and isinstance(grown, list) and len(value) == len(grown):
        return [_divided(old, new, place) for old, new in zip(value, grown, strict=True)]
    if value == grown or value is None or not value or isinstance(value, (bool, str)):
        return copy.deepcopy(grown)
    if isinstance(value, int) and isinstance(grown, int):
        narrow, rest = divmod(value * value, grown)
        if rest or not narrow:
            raise SweepError(f"{place} is {value}, which cannot be divided by {grown / value:g}",
                hint="give a smaller `--proxy`, or keep the axis as it is with `--axis NAME=1`")  # fmt: skip
        return narrow
    return value * value / grown


def _build(directory: Path) -> Any:
    """The model of a config, initialised as its class does it."""
    transformers = import_transformers()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
            return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # noqa: BLE001 (classes check their configs in ways of their own)
        raise SweepError(f"transformers cannot build the proxy: {error}", hint=_OWN_PLACE) from None


def _check(
    source: Checkpoint, recipe: Recipe, factors: Mapping[str, int], tie: str | None, directory: Path
) -> dict[str, Any]:
    """The record of the widening from the proxy to the checkpoint, once it is known to lead there.

    Raises:
        SweepError: it leads elsewhere, so what is found with the proxy would not hold for the checkpoint.
    """
    proxy = open_checkpoint(directory)
    try:
        plan = make_plan(recipe, proxy.specs, proxy.config, factors, None, tie)
    except MupscaleError as error:
        raise SweepError(f"the proxy's config does not widen to the checkpoint's: {error.message}",
                         hint=_OWN_PLACE) from None  # fmt: skip
    expected = {spec.name: spec.shape for spec in source.specs}
    for tensor in plan.tensors:
        name, shape = tensor.target.name, tensor.target.shape
        if expected.get(name, shape) != shape:
            raise SweepError(
                f"the proxy does not widen to the checkpoint: `{name}` would be {list(shape)}, "
                f"it is {list(expected[name])}", hint=_OWN_PLACE,
            )  # fmt: skip
    return make_record(plan, proxy, Origin(""), __version__)
