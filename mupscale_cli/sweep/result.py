"""What the trials say: the loss at every point of the grid, the optimum of each width, the recommendation. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from mupscale_cli.sweep.grid import Grid, Point


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        point: what was tried.
        loss: at the end (nats a token with the built-in trainer); None where it diverged.
    """

    point: Point
    loss: float | None


@dataclass(frozen=True)
class Cell:
    """What the seeds of one width, noise and learning rate say together.

    Attributes:
        factor: the width.
        noise: its size.
        lr: the learning rate.
        losses: of the seeds that did not diverge.
        num_diverged: of those that did.
    """

    factor: int
    noise: float
    lr: float
    losses: tuple[float, ...]
    num_diverged: int

    @property
    def loss(self) -> float | None:
        """Mean over the seeds; None where one diverged, since such a learning rate is not safe."""
        return None if self.num_diverged or not self.losses else fmean(self.losses)

    @property
    def spread(self) -> float:
        """Half of the distance between the best and the worst seed."""
        return (max(self.losses) - min(self.losses)) / 2 if self.losses else 0.0


@dataclass(frozen=True)
class Recommendation:
    """What to train the target with.

    Attributes:
        lr: in the narrow run's terms.
        noise: size of the perturbation.
        lr_shift: by how many grid steps the widths' best learning rates differ at most.
        noise_shift: the same of the noise.
        warnings: reasons not to rely on it.
    """

    lr: float
    noise: float
    lr_shift: int
    noise_shift: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """What is known so far.

    Attributes:
        grid: what was asked for.
        cells: by width, noise and learning rate; without those that have no trial yet.
        optima: the best cell of each width that has one, by width.
        recommendation: None as long as no width has an optimum.
        num_missing: trials of the grid that are not finished.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    optima: tuple[Cell, ...]
    recommendation: Recommendation | None
    num_missing: int

    def cell(self, factor: int, noise: float, lr: float) -> Cell | None:
        """The cell at a place, if a trial of it is finished."""
        return next((c for c in self.cells if (c.factor, c.noise, c.lr) == (factor, noise, lr)), None)


def find(grid: Grid, trials: Iterable[Trial]) -> Findings:
    """Gather the trials of a grid.

    Args:
        grid: what was asked for.
        trials: finished ones; those of other points are ignored.
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
    """The lowest loss; of equal ones the first, which has less noise and a lower rate."""
    return min((cell for cell in cells if cell.loss is not None), key=lambda cell: cell.loss or 0.0, default=None)


def _recommend(grid: Grid, cells: Sequence[Cell], optima: Sequence[Cell]) -> Recommendation | None:
    """The point that is, on average over the widths, least above each width's own best loss.

    A width's own optimum is as noisy as its seeds; by muP transfer all widths measure the same optimum, so
    they are asked together. Where no point is sound at every width, the widest has the word.
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


def _shift(values: Sequence[float], found: Sequence[float]) -> int:
    places = [values.index(value) for value in found]
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
    found = []
    if len(grid.lrs) > 1 and lr in (grid.lrs[0], grid.lrs[-1]):
        side, wider = ("smallest", lr / 4) if lr == grid.lrs[0] else ("largest", lr * 4)
        found.append(
            f"the best learning rate, {lr:g}, is the {side} of the grid: the optimum may lie beyond it; "
            f"widen the grid towards {wider:.2g}"
        )
    if len(grid.noises) > 1 and noise == grid.noises[-1]:
        found.append(
            f"the best noise, {noise:g}, is the largest of the grid: the optimum may lie beyond it; "
            f"widen the grid towards {2 * noise:g}"
        )
    for kind, shift in zip(("learning rates", "sizes of noise"), shifts, strict=True):
        if shift > 1:
            found.append(
                f"the widths' best {kind} differ by {shift} grid steps: more seeds or more steps "
                "would tell whether that is chance"
            )
    if not has_common:
        found.append(f"no point of the grid is sound at every width; this is the best of x{optima[-1].factor}")
    if len(optima) < len(grid.factors):
        without = sorted(set(grid.factors) - {cell.factor for cell in optima})
        found.append(f"every trial of {', '.join(f'x{factor}' for factor in without)} diverged or is missing")
    if close := _not_told_apart(cells, optima[-1]):
        found.append(close)
    return tuple(found)


def _not_told_apart(cells: Sequence[Cell], best: Cell) -> str | None:
    """Whether another point beats the best one at some seed; seeds share their batches, so they compare in pairs."""
    second = _best(c for c in cells if c.factor == best.factor and c != best)
    if second is None or all(ours <= theirs for ours, theirs in zip(best.losses, second.losses, strict=False)):
        return None
    return (
        f"at x{best.factor}, which of lr {best.lr:g} noise {best.noise:g} and lr {second.lr:g} noise "
        f"{second.noise:g} is better changes with the seed"
    )
