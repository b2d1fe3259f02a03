"""Compare ways of growing a model to a shape, at equal compute including that of the narrow model's training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mupscale_cli as mupscale
from experiments.data import Data
from experiments.tasks import Task
from experiments.training import (
    WARMUP,
    Checkpoint,
    Curve,
    continued,
    decay,
    from_scratch,
    load,
    loss_of,
    mapped_optimizer,
    plain_optimizer,
    resume_state,
    train,
    train_narrow,
    warm_up_and_decay,
)
from experiments.transfer import Grid, Losses, power, search

SEEDS = (0, 1, 2, 3, 4)  # of the base: its weights and its batches
_TUNING_SEED = 5
_NOISE = -4  # exponent at which the search for the best noise starts
_NUM_EVALUATIONS = 12


@dataclass(frozen=True)
class Way:
    """A way of growing.

    Attributes:
        name: what tables and figures call it.
        options: options of `mupscale.widen`; None for a model that is not grown.
        has_noise: whether to add noise, of the size that is best for this way.
        is_new: whether the model starts from random weights, with the grown one as its shape.
        is_standard: whether to train as in standard parametrization: one learning rate, and a new optimizer state.
        rewarms: what a linear warm-up over a tenth of the steps applies to: `all` weights, those of `new` copies, or
            none.
    """

    name: str
    options: Mapping[str, Any] | None
    has_noise: bool = False
    is_new: bool = False
    is_standard: bool = False
    rewarms: Literal["all", "new"] | None = None


_WIDER = (
    Way("narrow model continues", None),
    Way("x1.5, fresh units zero, noise", {"factor": 1.5, "fresh": "zero"}, has_noise=True),
    Way("x1.5, fresh readers initialized", {"factor": 1.5, "fresh": "init"}),
    Way("x1.5, fresh readers initialized, noise", {"factor": 1.5, "fresh": "init"}, has_noise=True),
    Way("x2, copies", {"factor": 2}),
    Way("x2, copies, noise", {"factor": 2}, has_noise=True),
    Way("x2, from scratch", {"factor": 2}, is_new=True),
)
_BALANCED = (
    Way("x1.5, balanced copies, noise", {"factor": 1.5, "spread": "balanced"}, has_noise=True),
    Way("x1.5, balanced copies, fresh readers initialized", {"factor": 1.5, "spread": "balanced", "fresh": "init"}),
)
_DEEPER = (
    Way("x1.5 and 2 -> 4 layers, fresh readers initialized", {"factor": 1.5, "layers": 4, "fresh": "init"}),
    Way("2 -> 4 layers", {"layers": 4}),
    Way("x2 and 2 -> 4 layers, noise", {"factor": 2, "layers": 4}, has_noise=True),
)
_COPIES = {"factor": 2}
# The options of a doubling by copies, one at a time.
OPTIONS = (
    Way("narrow model continues", None),
    Way("no noise", _COPIES),
    Way("no noise, reset-new", {**_COPIES, "optimizer_policy": "reset-new"}),
    Way("noise (the defaults: free, spectral, copy)", _COPIES, has_noise=True),
    *(Way(f"noise, {mode}", {**_COPIES, "noise_mode": mode}, has_noise=True) for mode in ("preserving", "mixed")),
    *(
        Way(f"noise, {scale}", {**_COPIES, "noise_scale": scale}, has_noise=True)
        for scale in ("rms", "fan-in", "init", "paper", "elementwise")
    ),
    *(
        Way(f"noise, {policy}", {**_COPIES, "optimizer_policy": policy}, has_noise=True)
        for policy in ("reset", "reset-new")
    ),
    Way("noise, all weights warm up again", _COPIES, has_noise=True, rewarms="all"),
    Way("noise, new copies warm up again", _COPIES, has_noise=True, rewarms="new"),
    Way("standard parametrization", {**_COPIES, "noise_scale": "paper"}, has_noise=True, is_standard=True),
    Way("from scratch", _COPIES, is_new=True),
)
# For a readout that shares the embedding: the options above fold its factor into the gains of the last norm. An
# untied readout has no moments of its own in the shared state, so the state is reset.
_UNTIE = {**_COPIES, "tie": "untie", "optimizer": "none"}
_UNTIED = (
    Way("no noise, reset", {**_COPIES, "optimizer_policy": "reset"}),
    Way("no noise, reset, untied", _UNTIE),
    Way("noise, reset, untied", _UNTIE, has_noise=True),
)
_MORE = {"gpt": _DEEPER, "residual": _BALANCED}


@dataclass(frozen=True)
class Grown:
    """Training curves of one way, one per seed of the base.

    Attributes:
        way: its name.
        parameters: number of parameters.
        flops: floating-point operations per training step.
        steps: number of training steps after growing.
        lr: exponent of the best learning rate, in the narrow model's units.
        noise: exponent of the best noise; None without noise.
        before: floating-point operations of the narrow model's training; 0 from scratch.
        curves: losses by the number of finished steps.
        tuning: floating-point operations of the search for learning rate and noise; 0 where it was not counted.
    """

    way: str
    parameters: int
    flops: float
    steps: int
    lr: int
    noise: int | None
    before: float
    curves: tuple[Curve, ...]
    tuning: float = 0.0


@dataclass(frozen=True)
class Ways:
    """The ways of growing a task's model to a shape.

    Attributes:
        task: the task's name.
        title: the title of its figures.
        sizes: the sizes of the models and their training, as texts by label.
        seconds: the duration of the measurement.
        narrow: the search for the narrow model's learning rate.
        grown: the curves of every way.
    """

    task: str
    title: str
    sizes: dict[str, str]
    seconds: float
    narrow: Grid
    grown: tuple[Grown, ...]


@dataclass(frozen=True)
class _Bases:
    """Narrow models from several seeds.

    Attributes:
        checkpoints: narrow checkpoints by seed.
        data: what they train on.
        budget: floating-point operations that each way may spend after growing.
        flops: floating-point operations of a narrow model's whole training.
    """

    checkpoints: Mapping[int, Checkpoint]
    data: Data
    budget: float
    flops: float
    files: dict[tuple[Any, ...], Path] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        return self.checkpoints[_TUNING_SEED].task


def all_ways(task: Task) -> tuple[Way, ...]:
    """Return the ways of growing a task's model to a shape."""
    return (*_WIDER, *_MORE.get(task.name.partition("-")[0], ()))


def all_options(task: Task) -> tuple[Way, ...]:
    """Return the options of a doubling of a task's model."""
    return (*OPTIONS, *(_UNTIED if task.config and task.config.get("tie_word_embeddings") else ()))


def measure_ways(
    task: Task, folder: Path, lr: int, ways: Sequence[Way], report: Callable[[str], None]
) -> Iterator[Grown]:
    """Tune every way on one base, and train it on others; yield each as it is finished.

    Args:
        task: the task.
        folder: a folder for checkpoints.
        lr: exponent of the narrow model's learning rate.
        ways: the ways.
        report: receives progress messages.
    """
    seeds = SEEDS[: max(len(task.seeds), 1)] if len(task.seeds) == 1 else SEEDS
    checkpoints = {
        seed: train_narrow(task, folder / f"base-{seed}", power(lr), seed=seed) for seed in (*seeds, _TUNING_SEED)
    }
    narrow = checkpoints[_TUNING_SEED]
    data = task.data()
    per_step = count_flops(task, build(task, narrow.file), data)
    bases = _Bases(checkpoints, data, 0.0, per_step * task.narrow_steps)
    widest = count_flops(task, build(task, _grow(bases, _TUNING_SEED, {"factor": 2}, None)), data)
    bases = replace(bases, budget=widest * task.steps)
    for way in ways:
        grown = _measure(bases, way, lr, seeds)
        last = fmean(curve.last for curve in grown.curves)
        report(f"{way.name}: {grown.steps} steps, lr {grown.lr}, noise {grown.noise}, loss {last:.4f}")
        yield grown


def _measure(bases: _Bases, way: Way, lr: int, seeds: tuple[int, ...]) -> Grown:
    task = bases.task

    num_trials = 0

    def losses(rate: int, noise: int | None) -> tuple[Losses, Losses]:
        nonlocal num_trials
        num_trials += 1
        curve = _train(bases, way, _TUNING_SEED, rate, noise)
        return (curve.last,), (curve.held_out[max(curve.held_out)],)

    reach = min(task.reach, 1)
    noise = search(partial(losses, lr), _NOISE, reach=reach, walk=task.walk).best if way.has_noise else None
    rate = search(lambda e: losses(e, noise), lr, reach=reach, walk=task.walk).best
    model, steps, flops = _start(bases, way, _TUNING_SEED, noise)
    return Grown(
        way.name,
        sum(parameter.numel() for parameter in model.parameters()),
        flops,
        steps,
        rate,
        noise,
        0.0 if way.is_new else bases.flops,
        tuple(_train(bases, way, seed, rate, noise) for seed in seeds),
        flops * steps * num_trials,
    )


def _start(bases: _Bases, way: Way, seed: int, noise: int | None) -> tuple[nn.Module, int, float]:
    """Return the model, its number of training steps, and its floating-point operations per step."""
    narrow = bases.checkpoints[seed]
    file = narrow.file if way.options is None else _grow(bases, seed, way.options, noise)
    model = build(bases.task, file)
    flops = count_flops(bases.task, model, bases.data)
    total = bases.budget + (bases.flops if way.is_new else 0.0)
    return model, max(round(total / flops), 1), flops


def _train(bases: _Bases, way: Way, seed: int, rate: int, noise: int | None) -> Curve:
    task, narrow = bases.task, bases.checkpoints[seed]
    model, steps, _ = _start(bases, way, seed, noise)
    if way.options is None:
        model, optimizer = continued(narrow, power(rate))
    elif way.is_new:
        file = _grow(bases, seed, way.options, noise)
        model, optimizer = from_scratch(narrow, file, way.options["factor"], power(rate), seed)
    else:
        file = _grow(bases, seed, way.options, noise)
        load_model(model, file)
        if way.is_standard:
            optimizer = plain_optimizer(task, model, power(rate))
        else:
            optimizer = mapped_optimizer(task, model, file, power(rate))
            resume_state(optimizer, file)
    if way.rewarms == "new":
        _warm_up_new_copies(model, optimizer, load(task, narrow.file, 1), steps)
    schedule = warm_up_and_decay if way.is_new or way.rewarms == "all" else decay
    every = max(steps // _NUM_EVALUATIONS, 1)
    evaluated = {*range(0, steps, every), steps}
    batches = bases.data.batches(task.batch_size, steps, seed)
    curve = train(model, optimizer, batches, steps, schedule, bases.data, evaluated)
    return replace(curve, losses=())  # the losses of single batches are not used


def _warm_up_new_copies(model: nn.Module, optimizer: torch.optim.Optimizer, narrow: nn.Module, steps: int) -> None:
    """Shorten the steps of all but the first copy of each unit at first, as arXiv 2602.02472 does with new units.

    Args:
        model: the widened model, whose copies are side by side.
        optimizer: its optimizer, whose steps are shortened from now on.
        narrow: the narrow model.
        steps: number of training steps; the first tenth is the warm-up.
    """
    shapes = {name: parameter.shape for name, parameter in narrow.named_parameters()}
    is_new = {}
    for name, parameter in model.named_parameters():
        mask = torch.zeros(parameter.shape, dtype=torch.bool)
        for dim, (before, after) in enumerate(zip(shapes[name], parameter.shape, strict=True)):
            along = torch.arange(after) % (after // before) > 0
            mask |= along.view([-1 if other == dim else 1 for other in range(parameter.dim())])
        is_new[parameter] = mask
    done, step = 0, optimizer.step

    def shortened() -> None:
        nonlocal done
        share = min((done + 1) / max(steps * WARMUP, 1), 1.0)
        before = {parameter: parameter.detach().clone() for parameter in is_new} if share < 1 else {}
        step()
        done += 1
        with torch.no_grad():
            for parameter, start in before.items():
                moved = start + share * (parameter - start)
                parameter.copy_(torch.where(is_new[parameter], moved, parameter))

    optimizer.step = shortened  # type: ignore[method-assign]


def _grow(bases: _Bases, seed: int, options: Mapping[str, Any], noise: int | None) -> Path:
    """Return a grown checkpoint, which is made once."""
    key = (seed, *sorted(options.items()), noise)
    if key not in bases.files:
        narrow = bases.checkpoints[seed].file
        file = narrow.with_name(f"grown-{len(bases.files)}.safetensors")
        axes = {"layers": mupscale.Size(options["layers"])} if "layers" in options else None
        others = {name: value for name, value in options.items() if name != "layers"}
        size = {} if noise is None else {"noise": power(noise)}
        mupscale.widen(narrow, file, axes=axes, recipe=bases.task.recipe, seed=seed, verify=False, **others, **size)
        bases.files[key] = file
    return bases.files[key]


def build(task: Task, file: Path) -> nn.Module:
    """Build the untrained model whose sizes are those of a checkpoint."""
    assert task.rebuild is not None
    config = file.with_suffix(".config.json")
    if config.exists():
        return task.rebuild(json.loads(config.read_text()))
    with safe_open(file, "pt") as tensors:
        return task.rebuild({name: tensors.get_slice(name).get_shape() for name in tensors.keys()})  # noqa: SIM118


def count_flops(task: Task, model: nn.Module, data: Data) -> float:
    """Return the floating-point operations of one training step, forward and backward, as torch counts them."""
    batch = next(data.batches(task.batch_size, 1, 0))
    with FlopCounterMode(display=False) as counter:
        loss_of(model, batch).backward()
    model.zero_grad()
    return float(counter.get_total_flops())
