"""Show a sweep: a live table on a terminal, otherwise one line per trial, and the recommendation at the end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mupscale_cli.cli import output
from mupscale_cli.sweep.cost import Cost
from mupscale_cli.sweep.grid import Point
from mupscale_cli.sweep.result import Cell, Findings, Trial
from mupscale_cli.sweep.run import Events, Outcome, Status
from mupscale_cli.sweep.settings import Sweep

_BAR_WIDTH = 30
_REFRESHES = 4  # per second


def loss_table(findings: Findings) -> Table:
    """Return a table of losses by noise and learning rate, one column per width; a star marks each width's optimum."""
    names = [f"x{factor}" for factor in findings.grid.factors]
    result = output.table("noise", "lr", *names, "", right=("noise", "lr", *names))
    best = findings.recommendation
    for noise in findings.grid.noises:
        for index, lr in enumerate(findings.grid.lrs):
            is_best = best is not None and (best.noise, best.lr) == (noise, lr)
            cells = [_cell_text(findings, findings.cell(factor, noise, lr)) for factor in findings.grid.factors]
            result.add_row(
                f"{noise:g}" if index == 0 else "",
                f"{lr:.4g}",
                *cells,
                "[bold green]best[/]" if is_best else "",
                end_section=index == len(findings.grid.lrs) - 1,
            )
    return result


def _cell_text(findings: Findings, cell: Cell | None) -> Text:
    if cell is None:
        return Text("·", style="dim")
    if cell.loss is None:
        count = f" {cell.num_diverged}/{len(findings.grid.seeds)}" if cell.losses else ""
        return Text(f"diverged{count} ", style="red")
    spread = "±" + f"{cell.spread:.3f}".removeprefix("0") if len(cell.losses) > 1 else ""
    is_best = cell in findings.optima
    return Text(f"{cell.loss:.4f}{spread}{'*' if is_best else ' '}", style="bold green" if is_best else "")


@contextmanager
def progress() -> Iterator[Events]:
    """Yield events that update a table on a terminal, or else print one line per trial."""
    console = output.stderr()
    if output.is_quiet():
        yield Events()
    elif console.is_terminal:
        with Live(console=console, refresh_per_second=_REFRESHES, transient=True) as live:
            yield live_events(live)
    else:
        yield _Lines(console).events


def live_events(live: Live) -> Events:
    """Return events that replace what a live display shows, and print notes above it."""
    return Events(
        phase=lambda name: live.update(Text(name, style="dim")),
        note=lambda text: live.console.print(text, markup=False, soft_wrap=True),
        show=lambda status: live.update(_live(status)),
    )


def _live(status: Status) -> RenderableType:
    grid = status.findings.grid
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(len(grid), len(status.trials), width=_BAR_WIDTH), f"{len(status.trials)}/{len(grid)} trials"
    )
    running = Table.grid(padding=(0, 2))
    for trial in status.running:
        loss = "" if trial.loss is None else f"step {trial.step}, loss {trial.loss:.4f}"
        running.add_row(Text(_point_text(trial.point), style="dim"), loss)
    return Group(bar, running, Text(), loss_table(status.findings))  # a low screen cuts off the end


def _point_text(point: Point) -> str:
    return f"x{point.factor} lr {point.lr:.4g} noise {point.noise:g} seed {point.seed}"


class _Lines:
    """Prints one line per trial as it ends, in any process."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed: set[Point] | None = None
        self.events = Events(phase=self._print, note=self._print, show=self._show)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def _show(self, status: Status) -> None:
        total = len(status.findings.grid)
        if self._printed is None:
            self._printed = {trial.point for trial in status.trials}
            if self._printed:
                self._print(f"continuing: {len(self._printed)} of {output.counted(total, 'trial')} finished")
        for trial in status.trials:
            if trial.point not in self._printed:
                self._printed.add(trial.point)
                self._print(f"[{len(self._printed)}/{total}] {_point_text(trial.point)}: {_loss_text(trial)}")


def _loss_text(trial: Trial) -> str:
    return "diverged" if trial.loss is None else f"loss {trial.loss:.4f}"


def print_outcome(outcome: Outcome, settings: Sweep, checkpoint: str, wide: str) -> None:
    """Print the table of losses, the recommendation, and the commands that use it."""
    console = output.report()
    findings = outcome.findings
    console.print(loss_table(findings))
    seeds = len(findings.grid.seeds)
    loss = settings.loss + (f", mean over {seeds} seeds ± half their range" if seeds > 1 else "")
    console.print(f"\n{settings.title}: {loss}; * marks the best of each width", markup=False, style="dim")
    best = findings.recommendation
    if best is None:
        console.print("\n[bold red]every trial diverged[/]; use smaller learning rates with `--lr`")
    else:
        if len(findings.grid.factors) > 1:
            lr = output.counted(best.lr_shift, "grid step")
            console.print(f"the widths' optima differ by {lr} in lr, {best.noise_shift} in noise", markup=False)
        console.print(
            f"\n[bold]recommended for x{settings.largest} and any other width:[/] "
            f"[bold green]lr {best.lr:g}, noise {best.noise:g}[/]",
            soft_wrap=True,
        )
        for warning in best.warnings:
            console.print(f"[bold yellow]warning:[/] {escape(warning)}", soft_wrap=True)
        console.print()
        for line in next_commands(settings, checkpoint, wide, best.noise, str(outcome.result)):
            console.print(f"  {escape(line)}", soft_wrap=True)
    console.print(f"\n{_cost_text(outcome.cost, settings)}", markup=False, soft_wrap=True)
    wrote = f"{outcome.result}, {outcome.picture}" if outcome.picture else str(outcome.result)
    console.print(f"wrote {wrote}", markup=False, soft_wrap=True)


def _cost_text(cost: Cost, settings: Sweep) -> str:
    trials = output.counted(len(settings.grid), "trial")
    text = f"a trial at the target, x{settings.largest}, takes {cost.saved:.3g} times the operations of one of these"
    if cost.total is None:
        return text
    done = f"the {trials} and the training of the proxy" if settings.proxy else f"the {trials}"
    return f"{text}; {done} took as many as {cost.total:.3g} trials at the target would"


def next_commands(settings: Sweep, checkpoint: str, wide: str, noise: float, result: str) -> tuple[str, str]:
    """Return the commands that widen the checkpoint to the target and print its hyperparameters.

    Args:
        settings: settings of the sweep.
        checkpoint: path of the narrow checkpoint, as the user gave it.
        wide: default output path of `widen`.
        noise: recommended size of the noise.
        result: path of the sweep's JSON.
    """
    widen = ["mupscale", "widen", checkpoint, "--factor", str(settings.largest)]
    widen += [word for axis, factor in settings.axes.items() for word in ("--axis", f"{axis}={factor}")]
    widen += settings.reading.options
    widen += ["--recipe", settings.recipe] if settings.recipe else []
    widen += ["--tie", settings.tie] if settings.tie else []
    widen += ["--optimizer", str(settings.state.optimizer)] if settings.state.optimizer != "auto" else []
    widen += [word for name in settings.state.kinds for word in ("--optimizer-kind", name)]
    widen += ["--optimizer-policy", settings.state.policy] if settings.state.policy != "copy" else []
    widen += settings.perturbation(noise).options if noise else []
    return shlex.join(widen), shlex.join(["mupscale", "hparams", wide, "--from-sweep", result])
