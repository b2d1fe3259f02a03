"""Create a proxy: a model of the checkpoint's architecture that is narrower by an integer ratio."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mupscale_cli import __version__
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.output_files import copy_file, inner_file, write_json
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.errors import MupscaleError, PlanError, SweepError
from mupscale_cli.plan import Request, make_plan
from mupscale_cli.record.making import Origin, hash_source_files, make_record
from mupscale_cli.sweep.data import Split
from mupscale_cli.sweep.settings import PROXY_RECORD, Training
from mupscale_cli.sweep.training import Report, make_optimizer, run
from mupscale_cli.tasks.planning import choose_recipe
from mupscale_cli.verification.placement import choose_device
from mupscale_cli.verification.transformers import import_transformers

_SEED = 1 << 16  # for the proxy's batches; no trial uses it
_TRAIN_YOURSELF = "train a smaller model yourself and sweep that one, or sweep this one with `--factor 2,4`"
_RATIOS = (4, 2)  # of a proxy whose ratio is not said; the first that divides all sizes


@dataclass(frozen=True)
class ProxyRequest:
    """Settings of a proxy.

    Attributes:
        ratio: width of the checkpoint over that of the proxy.
        axes: factors of single axes; an axis of factor 1 is not narrowed.
        recipe: name or file of the recipe; None to choose one by the checkpoint.
        tie: where the factor of a shared readout goes.
        lr: learning rate of its training.
        steps: training steps; 0 leaves the proxy as initialized.
    """

    ratio: int
    axes: Mapping[str, int]
    recipe: str | None
    tie: str | None
    lr: float
    steps: int


def usual_ratio(source: Checkpoint, recipe: str | None, tie: str | None, axes: Mapping[str, int]) -> int | None:
    """Return the ratio of a proxy whose ratio is not said; None if the checkpoint has none.

    Args:
        source: checkpoint to narrow.
        recipe: name or file of the recipe; None to choose one by the checkpoint.
        tie: where the factor of a shared readout goes.
        axes: factors of single axes; an axis of factor 1 is not narrowed.
    """
    chosen = choose_recipe(source, recipe)
    for ratio in _RATIOS:
        try:
            narrowed_config(source, chosen, _growth(ratio, axes), tie)
        except MupscaleError:
            continue
        return ratio
    return None


def _growth(ratio: int, axes: Mapping[str, int]) -> Request:
    return Request(ratio, {name: 1 for name, factor in axes.items() if factor == 1})


def make_proxy(
    source: Checkpoint, request: ProxyRequest, training: Training, data: Split | None, directory: Path, report: Report
) -> None:
    """Create a proxy, train it, and save it with its optimizer's state.

    Args:
        source: checkpoint to narrow.
        request: settings of the proxy.
        training: settings of the trainer, except for its steps.
        data: training data, None without steps.
        directory: output; it appears when the proxy is complete.
        report: called with each step and its loss.

    Raises:
        MupscaleError: the config cannot be narrowed, transformers cannot build the model, or its training diverges.
    """
    recipe = choose_recipe(source, request.recipe)
    growth = _growth(request.ratio, request.axes)
    staged = directory.with_name(f".{directory.name}.part")
    model, record = _narrow_model(source, recipe, growth, request.tie, staged)
    if request.steps:
        assert data is not None
        model = model.to(choose_device(training.device)).train()
        optimizer = make_optimizer(model, staged, training, request.lr)
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            if not run(model, optimizer, replace(training, steps=request.steps), data.train, _SEED, report):
                raise SweepError(f"the training of the proxy diverged at lr {request.lr:g}", hint="use smaller `--lr`")
        model.save_pretrained(staged)
        torch.save(optimizer.state_dict(), staged / "optimizer.pt")
    for name, file in source.files_beside.items():
        copy_file(file, inner_file(staged, name))
    write_json(staged / PROXY_RECORD, {key: record[key] for key in ("rules", "called", "axes", "parameters")})
    staged.rename(directory)


def _narrow_model(
    source: Checkpoint, recipe: Recipe, growth: Request, tie: str | None, directory: Path
) -> tuple[Any, dict[str, Any]]:
    """Build and save the model of the narrowed config; return it with the record of its widening to the checkpoint.

    A size that the config omits either follows from the narrowed sizes (GPT-2's n_inner) or stays as it was (head_dim
    when the number of heads is narrowed). The first choice that widens to the checkpoint is right.
    """
    configs = [narrowed_config(source, recipe, growth, tie, pin=pin) for pin in (False, True)]
    first_error: SweepError | None = None
    for config in configs if configs[0] != configs[1] else configs[:1]:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        write_json(directory / CONFIG, config)
        try:
            model = _build(directory)
            model.save_pretrained(directory)
            return model, _check(source, recipe, growth, tie, directory)
        except SweepError as error:
            first_error = first_error or error
    assert first_error is not None
    shutil.rmtree(directory, ignore_errors=True)
    raise first_error


def narrowed_config(
    source: Checkpoint, recipe: Recipe, growth: Request, tie: str | None = None, *, pin: bool = False
) -> dict[str, Any]:
    """Return the config that widens to the checkpoint's.

    The recipe widens the checkpoint's config; each value that grows by a ratio is divided by that ratio instead.

    Args:
        source: checkpoint to narrow.
        recipe: recipe of its architecture.
        growth: from the proxy to the checkpoint.
        tie: where the factor of a shared readout goes.
        pin: whether to set sizes that the config omits to those of the widened config.

    Raises:
        MupscaleError: a size is not a multiple of its ratio, or the recipe cannot widen this config.
    """
    if source.config is None:
        raise SweepError(f"cannot make a proxy: `{source.path}` has no config.json", hint=_TRAIN_YOURSELF)
    try:
        wide = make_plan(recipe, source.specs, source.config, growth, None, tie).config
    except PlanError as error:
        raise SweepError(
            f"cannot make a proxy with the recipe `{recipe.name}`: {error.message}",
            hint=f"{error.hint}; or {_TRAIN_YOURSELF}" if error.hint else _TRAIN_YOURSELF,
        ) from error
    assert wide is not None
    narrow: dict[str, Any] = _divided(source.config, wide, "config.json", pin=pin)
    return narrow


def _divided(value: Any, grown: Any, place: str, *, pin: bool) -> Any:
    """Divide a value of a config by its growth; `place` names it in messages."""
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
            raise SweepError(
                f"{place} grows from {value} to {grown}, which is not an integer ratio", hint=_TRAIN_YOURSELF
            )
        if value % ratio:
            raise SweepError(
                f"{place} is {value}, which cannot be divided by {ratio}",
                hint="use a smaller `--proxy`, or keep the axis with `--axis NAME=1`",
            )
        return value // ratio
    return value * value / grown


def _build(directory: Path) -> Any:
    """Build the model of a config with its class's own initialization."""
    transformers = import_transformers()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
            return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:
        raise SweepError(f"transformers cannot build the proxy: {error}", hint=_TRAIN_YOURSELF) from error


def _check(source: Checkpoint, recipe: Recipe, growth: Request, tie: str | None, directory: Path) -> dict[str, Any]:
    """Check that the proxy widens to the checkpoint; return the record of that widening.

    Raises:
        SweepError: it does not, so the proxy's best hyperparameters would not transfer to the checkpoint.
    """
    proxy = open_checkpoint(directory)
    try:
        plan = make_plan(recipe, proxy.specs, proxy.config, growth, None, tie)
    except MupscaleError as error:
        raise SweepError(
            f"the proxy's config does not widen to the checkpoint's: {error.message}", hint=_TRAIN_YOURSELF
        ) from error
    expected = {spec.name: spec.shape for spec in source.specs}
    for tensor in plan.tensors:
        name, shape = tensor.target.name, tensor.target.shape
        if expected.get(name, shape) != shape:
            raise SweepError(
                f"the proxy does not widen to the checkpoint: `{name}` would be {list(shape)}, "
                f"expected {list(expected[name])}",
                hint=_TRAIN_YOURSELF,
            )
    return make_record(plan, hash_source_files(proxy), Origin(""), __version__)
