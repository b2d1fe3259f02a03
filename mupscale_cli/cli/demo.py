"""`mupscale demo`: the first thing that a newcomer sees, made of nothing but the real commands."""

from __future__ import annotations

import shlex
import textwrap
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mupscale_cli.cli import output
from mupscale_cli.errors import OutputError

_PROMPT = "And the apprentice asked: "
_SAMPLE_BYTES = 120
_NOISE = 0.1


def demo(
    context: typer.Context,
    directory: Annotated[Path, typer.Option("--output", "-o", help="A new directory for the models.")] = Path(
        "mupscale-demo"
    ),
) -> None:
    """Train a small model, widen it, and verify that the wide one computes the same. Under a minute."""
    if directory.exists():
        raise OutputError(f"`{directory}` exists", hint="remove it, or choose another name with `-o`")
    from mupscale_cli.verification.precision import one_thread

    console = output.stdout()
    with one_thread():
        _show(context, console, directory)
    console.print(f"\nThe models are in {directory}. Next: the same with your own checkpoint.", markup=False)


def _show(context: typer.Context, console: Console, directory: Path) -> None:
    narrow, wide = directory / "tiny", directory / "tiny-x4"
    _heading(console, "1. Train a small language model: Llama's shape, grouped queries, tied embeddings")
    _train(console, narrow)
    _heading(console, "2. Make it four times as wide")
    _run(context, console, f"mupscale widen {shlex.quote(str(narrow))} --factor 4")
    _heading(console, "3. Compare the two models again, as anyone could who was given both")
    _run(context, console, f"mupscale verify {shlex.quote(str(wide))}")
    _heading(console, "4. Let both continue a sentence")
    _compare_texts(console, narrow, wide)
    _heading(console, "5. Go on training: the optimizer's state was widened too")
    _continue(context, console, narrow, wide)


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/]\n")


def _train(console: Console, directory: Path) -> None:
    from mupscale_cli.demo import training

    started = time.monotonic()
    columns = (TextColumn("training"), BarColumn(), TextColumn("loss {task.fields[loss]:.2f}"), TimeElapsedColumn())
    progress_console = output.stderr()
    with Progress(*columns, console=progress_console, transient=True, disable=not progress_console.is_terminal) as bar:
        task = bar.add_task("training", total=training.STEPS, loss=float("nan"))
        found = training.train(directory, lambda step, loss: bar.update(task, completed=step, loss=loss))
    console.print(
        f"{output.count_text(found.num_parameters)} parameters, loss {found.first_loss:.2f} -> {found.last_loss:.2f} "
        f"nats a byte in {training.STEPS} steps, {time.monotonic() - started:.0f} s; saved in {directory}",
        markup=False,
    )


def _run(context: typer.Context, console: Console, line: str) -> None:
    """Show a command and run it, through the same parser as any other."""
    console.print(f"[bold cyan]$[/] {line}", soft_wrap=True)
    group = context.find_root().command
    code = group.main(shlex.split(line)[1:], prog_name="mupscale", standalone_mode=False)
    if code:
        raise typer.Exit(code)


def _continue(context: typer.Context, console: Console, narrow: Path, wide: Path) -> None:
    """The same batches for the narrow model, the wide one, and the wide one with some noise."""
    from mupscale_cli.demo.training import CONTINUED, continue_training

    apart = wide.with_name(f"{wide.name}-noisy")
    _run(context, console, f"mupscale widen {shlex.quote(str(narrow))} --factor 4 --noise {_NOISE} --no-verify "
         f"-o {shlex.quote(str(apart))}")  # fmt: skip
    console.print()
    with console.status("training all three"):
        before = continue_training(narrow, widened=False)
        after = continue_training(wide, widened=True)
        noisy = continue_training(apart, widened=True)
    columns = ("tiny", "tiny-x4", "difference", f"tiny-x4 with --noise {_NOISE}")
    result = output.table("step", *columns, right=("step", *columns))
    for step in sorted({0, 1, CONTINUED // 4, CONTINUED // 2, CONTINUED - 1}):
        losses = before[step], after[step], noisy[step]
        result.add_row(str(step + 1), f"{losses[0]:.6f}", f"{losses[1]:.6f}", f"{abs(losses[0] - losses[1]):.0e}",
                       f"{losses[2]:.6f}")  # fmt: skip
    console.print(result)
    console.print(
        "\nWithout noise the wide model takes the steps that the narrow one would have taken (the difference is "
        "float32 rounding; `mupscale verify --steps 20` shows it in float64). Copies stay copies, so noise has to "
        "tell them apart before the new capacity is used: that costs something "
        "at first, and pays over more steps than these.",
        markup=False,
    )


def _compare_texts(console: Console, *directories: Path) -> None:
    from mupscale_cli.demo.training import continue_text

    for directory in directories:
        text = continue_text(directory, _PROMPT, _SAMPLE_BYTES).replace("\n", " ")
        lines = textwrap.wrap(text, max(40, min(console.width, 100) - 12))
        for number, line in enumerate(lines):
            console.print(f"[bold]{directory.name if number == 0 else '':<10}[/]", end="")
            console.print(line, markup=False)
