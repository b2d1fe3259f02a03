"""Evaluate trials: the loss at every point of the grid, each width's optimum, the recommendation. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mupscale_cli.sweep.grid import Grid, Point


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        point: the trial's point of the grid.
        loss: final loss (nats per token with the built-in trainer); None if the trial diverged.
    """

    point: Point
    loss: float | None


@dataclass(frozen=True)
class Cell:
    """The trials of all seeds at one width, noise and learning rate.

    Attributes:
        factor: width of the trained model over that of the narrow one.
        noise: size of the noise.
        lr: learning rate in the narrow run's terms.
        losses: losses of the seeds that did not diverge.
        num_diverged: number of seeds that diverged.
    """

    factor: int
    noise: float
    lr: float
    losses: tuple[float, ...]
    num_diverged: int

    @property
    def loss(self) -> float | None:
        """Mean over the seeds; None if one diverged, because the learning rate is then not safe."""
        return None if self.num_diverged or not self.losses else fmean(self.losses)

    @property
    def spread(self) -> float:
        """Half the difference between the worst and the best seed."""
        return (max(self.losses) - min(self.losses)) / 2 if self.losses else 0.0


@dataclass(frozen=True)
class Recommendation:
    """Learning rate and noise to train the target with.

    Attributes:
        lr: learning rate in the narrow run's terms.
        noise: size of the perturbation.
        lr_shift: largest difference between the widths' best learning rates, in grid steps.
        noise_shift: the same for the noise.
        warnings: reasons not to rely on the recommendation.
    """

    lr: float
    noise: float
    lr_shift: int
    noise_shift: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """Results of the finished trials.

    Attributes:
        grid: the whole grid.
        cells: cells that have a finished trial, by width, noise and learning rate.
        optima: best cell of each width that has one, by width.
        recommendation: None as long as no width has an optimum.
        num_missing: number of unfinished trials.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    optima: tuple[Cell, ...]
    recommendation: Recommendation | None
    num_missing: int

    def cell(self, factor: int, noise: float, lr: float) -> Cell | None:
        """Return the cell at a width, noise and learning rate; None if no trial of it is finished."""
        return next((c for c in self.cells if (c.factor, c.noise, c.lr) == (factor, noise, lr)), None)

    def with_warnings(self, warnings: Sequence[str]) -> Findings:
        """Return the findings with further reasons not to rely on the recommendation, if there is one."""
        if (best := self.recommendation) is None or not warnings:
            return self
        return replace(self, recommendation=replace(best, warnings=(*best.warnings, *warnings)))


def evaluate_trials(grid: Grid, trials: Iterable[Trial]) -> Findings:
    """Evaluate the finished trials of a grid.

    Args:
        grid: the whole grid.
        trials: finished trials; those outside the grid are ignored.
    """
    losses = {trial.point: trial.loss for trial in trials}
    cells = []
    for factor in grid.factors:
        for noise in grid.noises:
            for lr in grid.lrs:
                points = [Point(factor, noise, seed, lr) for seed in grid.seeds]
                done = [losses[point] for point in points if point in losses]
                finite = tuple(loss for loss in done if loss is not None)
                if done:
                    cells.append(Cell(factor, noise, lr, finite, len(done) - len(finite)))
    optima = tuple(best for factor in grid.factors if (best := _best(c for c in cells if c.factor == factor)))
    missing = sum(point not in losses for point in grid)
    return Findings(grid, tuple(cells), optima, _recommend(grid, cells, optima), missing)


def _best(cells: Iterable[Cell]) -> Cell | None:
    """Return the cell with the lowest loss; among equals the first, which has less noise and a lower rate."""
    return min((cell for cell in cells if cell.loss is not None), key=lambda cell: cell.loss or 0.0, default=None)


def _recommend(grid: Grid, cells: Sequence[Cell], optima: Sequence[Cell]) -> Recommendation | None:
    """Recommend the point whose loss, averaged over the widths, is least above each width's best loss.

    A single width's optimum is as noisy as its seeds. By muP transfer all widths measure the same optimum, so
    their losses are averaged. If no point has a loss at every width, the widest model's optimum is recommended.
    """
    if not optima:
        return None
    best = {cell.factor: cell.loss for cell in optima}
    excess: dict[tuple[float, float], list[float]] = {}
    for cell in cells:
        base = best.get(cell.factor)
        if cell.loss is not None and base is not None:
            excess.setdefault((cell.noise, cell.lr), []).append(cell.loss - base)
    common = {place: fmean(values) for place, values in excess.items() if len(values) == len(grid.factors)}
    widest = optima[-1]
    noise, lr = min(common, key=lambda place: common[place]) if common else (widest.noise, widest.lr)
    lr_shift = _shift(grid.lrs, [cell.lr for cell in optima])
    noise_shift = _shift(grid.noises, [cell.noise for cell in optima])
    warnings = _warnings(grid, cells, optima, (noise, lr), (lr_shift, noise_shift), has_common=bool(common))
    return Recommendation(lr, noise, lr_shift, noise_shift, warnings)


def _shift(values: Sequence[float], optima: Sequence[float]) -> int:
    """Return the largest distance between optima, in grid steps."""
    places = [values.index(value) for value in optima]
    return max(places) - min(places)


def _warnings(
    grid: Grid,
    cells: Sequence[Cell],
    optima: Sequence[Cell],
    place: tuple[float, float],
    shifts: tuple[int, int],
    *,
    has_common: bool,
) -> tuple[str, ...]:
    noise, lr = place
    warnings = []
    if len(grid.lrs) > 1 and lr in (grid.lrs[0], grid.lrs[-1]):
        side, wider = ("smallest", lr / 4) if lr == grid.lrs[0] else ("largest", lr * 4)
        warnings.append(
            f"the best learning rate, {lr:g}, is the {side} of the grid: the optimum may lie beyond it; "
            f"extend the grid to {wider:.2g}"
        )
    if len(grid.noises) > 1 and noise == grid.noises[-1]:
        warnings.append(
            f"the best noise, {noise:g}, is the largest of the grid: the optimum may lie beyond it; "
            f"extend the grid to {2 * noise:g}"
        )
    if noise == 0:
        warnings.append(
            "no noise was best within these few steps, but copies then stay equal until something tells them apart: "
            "before a longer run, compare it with `--noise 0.05` or more steps (`mupscale help noise`)"
        )
    for kind, shift in zip(("learning rates", "noise sizes"), shifts, strict=True):
        if shift > 1:
            warnings.append(
                f"the widths' best {kind} differ by {shift} grid steps: more seeds or more steps "
                "would show whether that is chance"
            )
    if not has_common:
        warnings.append(f"no point of the grid has a loss at every width; this is the best of x{optima[-1].factor}")
    if len(optima) < len(grid.factors):
        without = sorted(set(grid.factors) - {cell.factor for cell in optima})
        warnings.append(f"every trial of {', '.join(f'x{factor}' for factor in without)} diverged or is missing")
    if undecided := _undecided_text(cells, optima[-1]):
        warnings.append(undecided)
    return tuple(warnings)


def _undecided_text(cells: Sequence[Cell], best: Cell) -> str | None:
    """Warn if the second-best cell beats the best at some seed; equal seeds have equal batches, so compare pairs."""
    second = _best(c for c in cells if c.factor == best.factor and c != best)
    if second is None or all(ours <= theirs for ours, theirs in zip(best.losses, second.losses, strict=False)):
        return None
    return (
        f"at x{best.factor}, which of lr {best.lr:g} noise {best.noise:g} and lr {second.lr:g} noise "
        f"{second.noise:g} is better changes with the seed"
    )
