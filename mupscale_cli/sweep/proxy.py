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
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.checkpoints.staging import copy_file, write_json
from mupscale_cli.errors import MupscaleError, PlanError, SweepError
from mupscale_cli.plan import make_plan, resolve_factors
from mupscale_cli.record.making import Origin, hash_source_files, make_record
from mupscale_cli.sweep.data import Split
from mupscale_cli.sweep.settings import PROXY_RECORD, Training
from mupscale_cli.sweep.training import Report, make_optimizer, run
from mupscale_cli.tasks.planning import choose_recipe
from mupscale_cli.verification.placement import choose_device
from mupscale_cli.verification.transformers import import_transformers

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
    staged = directory.with_name(f".{directory.name}.part")
    model, record = _narrow_model(source, recipe, factors, request.tie, staged)
    if request.steps:
        assert data is not None
        model = model.to(choose_device(training.device)).train()
        optimizer = make_optimizer(model, staged, training, request.lr)
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            if not run(model, optimizer, replace(training, steps=request.steps), data.train, _SEED, report):
                raise SweepError(f"the proxy's own training diverged at lr {request.lr:g}", hint="give smaller `--lr`")
        model.save_pretrained(staged)
        torch.save(optimizer.state_dict(), staged / "optimizer.pt")
    if not source.is_file:
        for file in source.carried_files:
            copy_file(file, staged)
    write_json(staged / PROXY_RECORD, {key: record[key] for key in ("rules", "called", "axes", "parameters")})
    staged.rename(directory)


def _narrow_model(
    source: Checkpoint, recipe: Recipe, factors: Mapping[str, int], tie: str | None, directory: Path
) -> tuple[Any, dict[str, Any]]:
    """The model of the narrowed config, saved, and the record of the widening that leads from it to the checkpoint.

    What a config leaves open follows from its other sizes: from the narrowed ones too (GPT-2's n_inner), or it is as
    large as before (a head_dim beside fewer heads that were kept). The first that leads back is the right one.
    """
    configs = [narrowed_config(source, recipe, factors, tie, pin=pin) for pin in (False, True)]
    refused: SweepError | None = None
    for config in configs if configs[0] != configs[1] else configs[:1]:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        write_json(directory / CONFIG, config)
        try:
            model = _build(directory)
            model.save_pretrained(directory)
            return model, _check(source, recipe, factors, tie, directory)
        except SweepError as error:
            refused = refused or error
    assert refused is not None
    shutil.rmtree(directory, ignore_errors=True)
    raise refused


def narrowed_config(
    source: Checkpoint, recipe: Recipe, factors: Mapping[str, int], tie: str | None = None, *, pin: bool = False
) -> dict[str, Any]:
    """The config that widens to the checkpoint's.

    A recipe says how a config grows. What grows by a ratio there is divided by the same ratio here.

    Args:
        source: the checkpoint.
        recipe: its architecture.
        factors: of every axis, from the proxy to the checkpoint.
        tie: what to do about a readout that shares the embedding.
        pin: whether sizes that the config leaves open are those that the widened config says.

    Raises:
        MupscaleError: a size is no multiple of its ratio, or the recipe cannot widen this config.
    """
    if source.config is None:
        raise SweepError(f"`{source.path}` has no config.json to make a proxy of", hint=_OWN_PLACE)
    try:
        wide = make_plan(recipe, source.specs, source.config, factors, None, tie).config
    except PlanError as error:
        raise SweepError(
            f"a proxy cannot be made with `{recipe.name}`: {error.message}",
            hint=f"{error.hint}; or {_OWN_PLACE}" if error.hint else _OWN_PLACE,
        ) from error
    assert wide is not None
    narrow: dict[str, Any] = _divided(source.config, wide, "config.json", pin=pin)
    return narrow


def _divided(value: Any, grown: Any, place: str, *, pin: bool) -> Any:
    """A value of a config divided by the ratio by which it grows."""
    if isinstance(value, Mapping) and isinstance(grown, Mapping):
        keys = {**value, **grown} if pin else value
        return {key: _divided(value.get(key), grown.get(key), f"{place}: `{key}`", pin=pin) for key in keys}
    if isinstance(value, list) and isinstance(grown, list) and len(value) == len(grown):
        return [_divided(old, new, place, pin=pin) for old, new in zip(value, grown, strict=True)]
    if value is None:
        return copy.deepcopy(grown) if pin else None
    if value == grown or not value or isinstance(value, (bool, str)):
        return copy.deepcopy(grown)
    if isinstance(value, int) and isinstance(grown, int):
        ratio, rest = divmod(grown, value)
        if rest or not ratio:
            raise SweepError(f"{place} goes from {value} to {grown}, which is no whole ratio", hint=_OWN_PLACE)
        if value % ratio:
            raise SweepError(
                f"{place} is {value}, which cannot be divided by {ratio}",
                hint="give a smaller `--proxy`, or keep the axis as it is with `--axis NAME=1`",
            )
        return value // ratio
    return value * value / grown


def _build(directory: Path) -> Any:
    """The model of a config, initialised as its class does it."""
    transformers = import_transformers()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
            return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:
        raise SweepError(f"transformers cannot build the proxy: {error}", hint=_OWN_PLACE) from error


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
        raise SweepError(
            f"the proxy's config does not widen to the checkpoint's: {error.message}", hint=_OWN_PLACE
        ) from error
    expected = {spec.name: spec.shape for spec in source.specs}
    for tensor in plan.tensors:
        name, shape = tensor.target.name, tensor.target.shape
        if expected.get(name, shape) != shape:
            raise SweepError(
                f"the proxy does not widen to the checkpoint: `{name}` would be {list(shape)}, "
                f"it is {list(expected[name])}",
                hint=_OWN_PLACE,
            )
    return make_record(plan, hash_source_files(proxy), Origin(""), __version__)
