"""The coordinate check of a widened model: whether activations change equally much at every width while it trains.

Under muP, an optimizer step changes every activation by an amount that does not depend on the width (arXiv 2203.03466,
appendix D.1). A wrong multiplier shows as a change that grows or shrinks with a power of the width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.checkpoints.scratch import scratch_folder
from mupscale_cli.engine.defaults import plain_defaults
from mupscale_cli.errors import SweepError
from mupscale_cli.record.figures import figure
from mupscale_cli.sweep.data import Tokens, read_tokens
from mupscale_cli.sweep.grid import Point
from mupscale_cli.sweep.models import check_causal, load_model, vocab_size
from mupscale_cli.sweep.settings import Sweep, Training
from mupscale_cli.sweep.slopes import LEAST, Fit, fit, is_decidable, uncertainty
from mupscale_cli.sweep.training import draw, make_optimizer, run
from mupscale_cli.sweep.widened import make_widened
from mupscale_cli.text import starred
from mupscale_cli.verification.activations import recording
from mupscale_cli.verification.placement import choose_device

_RANDOM_TOKENS = 1 << 14

Sizes = tuple[tuple[float, ...], ...]  # by step, then by width


@dataclass(frozen=True)
class Layer:
    """Activations of a module at every width, means over batch, positions, units and seeds.

    Attributes:
        name: name of the module.
        expected: mean absolute activation before training without noise, by width: that of the narrow model, unless
            widening scales this output, as it does the last norm's if the readout shares the embedding.
        sizes: mean absolute activation, by step and width.
        changes: mean absolute change of an activation since step 0, relative to `expected`, by step and width.
        slope: exponent of the width with which the change at the last step grows; None if nothing changes, NaN if
            training diverged.
        uncertainty: how far the slope may be from the true exponent; see `slopes.uncertainty`.
    """

    name: str
    expected: tuple[float, ...]
    sizes: Sizes
    changes: Sizes
    slope: float | None
    uncertainty: float

    @property
    def is_stable(self) -> bool | None:
        """Whether the slope is nearer to 0 than to the least that a wrong multiplier makes; None if undecided."""
        if self.slope is None or math.isnan(self.slope):
            return self.slope is None
        distance = abs(self.slope)
        if max(distance, LEAST - distance) <= self.uncertainty:  # the farther of the two is not ruled out
            return None
        return distance < LEAST - distance


@dataclass(frozen=True)
class Kind:
    """Layers whose names differ only in numbers.

    Attributes:
        name: their name, with `*` for the numbers.
        layers: the layers.
    """

    name: str
    layers: tuple[Layer, ...]

    @property
    def is_stable(self) -> bool | None:
        """Whether all layers are; None if no layer is unstable and some are undecided."""
        return _all_stable(self.layers)

    @property
    def slope(self) -> float | None:
        """The slope of the layer that depends most on the width."""
        slopes = [layer.slope for layer in self.layers if layer.slope is not None]
        return max(slopes, key=lambda slope: math.inf if math.isnan(slope) else abs(slope), default=None)

    def sizes(self, step: int) -> list[float]:
        """Return the mean absolute activation at a step, relative to `expected`, by width."""
        rows = (
            (size / wanted if wanted else 0.0 for size, wanted in zip(layer.sizes[step], layer.expected, strict=True))
            for layer in self.layers
        )
        return list(map(fmean, zip(*rows, strict=True)))

    def changes(self, step: int) -> list[float]:
        """Return the mean change since step 0, relative to `expected`, by width."""
        return list(map(fmean, zip(*(layer.changes[step] for layer in self.layers), strict=True)))


@dataclass(frozen=True)
class Coordinates:
    """Result of a coordinate check.

    Attributes:
        factors: widths of the models over that of the narrow one, ascending.
        num_seeds: number of random seeds.
        steps: optimizer steps.
        layers: every module with parameters whose output is a tensor, in the order in which they run.
    """

    factors: tuple[int, ...]
    num_seeds: int
    steps: int
    layers: tuple[Layer, ...]

    @property
    def agrees(self) -> bool | None:
        """Whether all layers are stable; None if no layer is unstable and some are undecided."""
        return _all_stable(self.layers)

    @property
    def uncertainty(self) -> float:
        """How far any slope may be from the true exponent."""
        return self.layers[0].uncertainty

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Layers whose names differ only in numbers, together."""
        found: dict[str, list[Layer]] = {}
        for layer in self.layers:
            found.setdefault(starred(layer.name), []).append(layer)
        return tuple(Kind(name, tuple(layers)) for name, layers in found.items())

    @property
    def summary(self) -> str:
        """The result in a sentence, and what to do if it is open."""
        verdicts = [layer.is_stable for layer in self.layers]
        unstable, undecided = verdicts.count(False), verdicts.count(None)
        if unstable:
            rest = f"; undecided for {undecided}" if undecided else ""
            return f"{unstable} of {len(verdicts)} layers change by a power of the width{rest}"
        if undecided:
            return (
                f"undecided for {undecided} of {len(verdicts)} layers; `--seeds {self.enough_seeds}` should be enough"
            )
        return f"all {len(verdicts)} layers change equally much at every width"

    @property
    def enough_seeds(self) -> int:
        """Number of seeds with which every slope is decided, since the uncertainty falls with their square root."""
        return math.floor(self.num_seeds * (2 * self.uncertainty / LEAST) ** 2) + 1


def _all_stable(layers: Sequence[Layer]) -> bool | None:
    verdicts = {layer.is_stable for layer in layers}
    return False if False in verdicts else None if None in verdicts else True


@plain_defaults()
def check_coordinates(
    settings: Sweep, *, is_mapped: bool = True, report: Callable[[Point], None] = lambda _point: None
) -> Coordinates:
    """Widen a checkpoint to several widths, train each on one batch, and measure all activations after each step.

    Args:
        settings: the checkpoint, the widths and seeds, one learning rate and one size of noise, the trainer and the
            data; random tokens without data. The directory is not used.
        is_mapped: whether to train with the mapped hyperparameters; otherwise every width trains with those of the
            narrow run, to show what a mistake looks like.
        report: called before each model is trained.

    Raises:
        MupscaleError: the checkpoint cannot be widened or run, or the data does not fit it.
    """
    source, training = settings.find_source().checkpoint, settings.training
    check_causal(source.config, source.path)
    factors, seeds = settings.grid.factors, settings.grid.seeds
    if len(factors) < 2:
        raise SweepError("a coordinate check compares widths", hint="give three or more, such as `--factor 2,4,8`")
    if not is_decidable(len(factors), len(seeds)):
        raise SweepError(
            "a line through two widths with one seed fits exactly, so nothing tells a wrong exponent from noise",
            hint="give three or more widths, such as `--factor 2,4,8`, or `--seeds 2`",
        )
    tokens = _tokens(settings)
    if len(tokens) < training.length:
        raise SweepError(f"`{settings.data}` holds {len(tokens)} tokens, fewer than `--length {training.length}`")
    by_width: dict[int, list[_Run]] = {factor: [] for factor in factors}
    with scratch_folder(settings.directory.parent) as folder:
        placed = replace(settings, directory=folder)
        for point in settings.grid:
            report(point)
            plain, noisy = (make_widened(placed, each) for each in (replace(point, noise=0.0), point))
            without_noise = _activations(_load(plain, training), training, tokens, point.seed)
            expected = {name: float(values.abs().mean()) for name, values in without_noise.items()}
            model = _load(noisy, training)
            optimizer = make_optimizer(model, noisy, training, point.lr, is_mapped=is_mapped)
            by_width[point.factor].append(_Run(expected, _measure(model, optimizer, training, tokens, point.seed)))
    runs = list(by_width.values())
    fits = {name: fit(factors, _last_changes(name, runs)) for name in runs[0][0].expected}
    uncertain = uncertainty(list(fits.values()), factors, len(seeds))
    layers = tuple(_layer(name, runs, found, uncertain) for name, found in fits.items())
    return Coordinates(factors, len(seeds), training.steps, layers)


@dataclass(frozen=True)
class _Run:
    """Activations of a model.

    Attributes:
        expected: mean absolute activation before training without noise, by module.
        found: mean absolute activation, and change since step 0, at each step, by module.
    """

    expected: Mapping[str, float]
    found: Mapping[str, Sequence[tuple[float, float]]]


def _load(path: Path, training: Training) -> nn.Module:
    return load_model(open_checkpoint(path), choose_device(training.device))


def _tokens(settings: Sweep) -> Tokens:
    config = settings.find_source().checkpoint.config or {}
    size = vocab_size(config, settings.checkpoint)
    if settings.data is None:
        return torch.randint(size, (_RANDOM_TOKENS,), generator=torch.Generator().manual_seed(0)).numpy()
    folder = settings.checkpoint.parent if settings.checkpoint.is_file() else settings.checkpoint
    return read_tokens(settings.data, folder, size, settings.data_type)


def _measure(
    model: nn.Module, optimizer: torch.optim.Optimizer, training: Training, tokens: Tokens, seed: int
) -> dict[str, list[tuple[float, float]]]:
    """Train on the same batch at every step, as the check of muP does; measure activations and their changes."""
    first: dict[str, Tensor] = {}
    found: dict[str, list[tuple[float, float]]] = {}
    for step in range(training.steps + 1):
        if step:
            run(model, optimizer, replace(training, steps=1), tokens, seed, lambda *_: None)
        for name, values in _activations(model, training, tokens, seed).items():
            change = values - first.setdefault(name, values)
            found.setdefault(name, []).append((float(values.abs().mean()), float(change.abs().mean())))
    return found


@torch.no_grad()
def _activations(model: nn.Module, training: Training, tokens: Tokens, seed: int) -> dict[str, Tensor]:
    """Return the outputs of all modules with parameters on a seed's batch, flattened."""
    names = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    batch = draw(tokens, training.batch_size, training.length, torch.Generator().manual_seed(seed))
    model.eval()
    with recording(model, names) as trace:
        model(input_ids=batch.to(next(model.parameters()).device))
    model.train()
    return {name: torch.cat([each.flatten().float() for each in outputs]) for name, outputs in trace.outputs.items()}


def _last_changes(name: str, runs: Sequence[Sequence[_Run]]) -> list[list[float]]:
    """Return a module's change at the last step relative to its expected size, by width and seed."""
    return [
        [run.found[name][-1][1] / run.expected[name] if run.expected[name] else 0.0 for run in seeds] for seeds in runs
    ]


def _layer(name: str, runs: Sequence[Sequence[_Run]], found: Fit | None, uncertain: float) -> Layer:
    """Summarize a module over seeds; `runs` has those of each width."""
    expected = tuple(fmean(run.expected[name] for run in seeds) for seeds in runs)
    steps = range(len(runs[0][0].found[name]))
    sizes, changes = (
        tuple(tuple(fmean(run.found[name][step][kind] for run in seeds) for seeds in runs) for step in steps)
        for kind in (0, 1)
    )
    relative = tuple(
        tuple(change / size if size else 0.0 for change, size in zip(step, expected, strict=True)) for step in changes
    )
    return Layer(name, expected, sizes, relative, None if found is None else found.slope, uncertain)


def coordinates_document(coordinates: Coordinates, settings: Sweep, picture: Path | None) -> dict[str, Any]:
    """Return the result of a coordinate check as a JSON document."""
    from mupscale_cli.record.documents import document_head

    grid = settings.grid
    return {
        **document_head("coordcheck"),
        "checkpoint": str(settings.checkpoint),
        "agrees": coordinates.agrees,
        "factors": list(coordinates.factors),
        "steps": coordinates.steps,
        "lr": grid.lrs[0],
        "noise": grid.noises[0],
        "seeds": list(grid.seeds),
        "uncertainty": figure(coordinates.uncertainty),
        "layers": [
            {
                "name": layer.name,
                "stable": layer.is_stable,
                "slope": None if layer.slope is None else figure(layer.slope),
                "expected": list(map(figure, layer.expected)),
                "sizes": [list(map(figure, step)) for step in layer.sizes],
                "changes": [list(map(figure, step)) for step in layer.changes],
            }
            for layer in coordinates.layers
        ],
        "picture": None if picture is None else str(picture),
    }
