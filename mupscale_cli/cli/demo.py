"""`mupscale demo`: the first thing that a newcomer sees, made of nothing but the real commands."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mupscale_cli.cli import options, output
from mupscale_cli.errors import OutputError

_PROMPT = "And the apprentice asked: "
_SAMPLE_BYTES = 120
_NOISE = 0.1


def demo(
    context: typer.Context,
    directory: Annotated[Path, typer.Option("--output", "-o", help="A new directory for the models.")] = Path(
        "mupscale-demo"
    ),
    as_json: options.Json = False,
) -> None:
    """Train a small model, widen it, and verify that the wide one computes the same. Under a minute."""
    if directory.exists():
        raise OutputError(f"`{directory}` exists", hint="remove it, or choose another name with `-o`")
    from mupscale_cli.engine.threads import one_thread

    console = output.report(as_json=as_json)
    with one_thread():
        document = _show(_Shell(context, console, as_json), directory)
    console.print(f"\nThe models are in {directory}. Next: the same with your own checkpoint.", markup=False)
    if as_json:
        output.print_document("demo", {"directory": str(directory), **document})


@dataclass
class _Shell:
    """Shows commands and runs them; under `--json` it keeps the documents that they print."""

    context: typer.Context
    console: Console
    as_json: bool
    documents: list[dict[str, Any]] = field(default_factory=list)

    def run(self, line: str) -> None:
        """Run a command through the same parser as any other."""
        self.console.print(f"[bold cyan]$[/] {line}", soft_wrap=True)
        group = self.context.find_root().command
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed) if self.as_json else contextlib.nullcontext():
            words = shlex.split(line)[1:] + (["--json"] if self.as_json else [])
            code = group.main(words, prog_name="mupscale", standalone_mode=False)
        if code:
            raise typer.Exit(code)
        if self.as_json:
            self.documents.append({"command": line, "printed": json.loads(printed.getvalue())})


def _show(shell: _Shell, directory: Path) -> dict[str, Any]:
    console = shell.console
    narrow, wide = directory / "tiny", directory / "tiny-x4"
    _heading(console, "1. Train a small language model: Llama's shape, grouped queries, tied embeddings")
    trained = _train(console, narrow)
    _heading(console, "2. Make it four times as wide")
    shell.run(f"mupscale widen {shlex.quote(str(narrow))} --factor 4")
    _heading(console, "3. Compare the two models again, as anyone could who was given both")
    shell.run(f"mupscale verify {shlex.quote(str(wide))}")
    _heading(console, "4. Let both continue a sentence")
    texts = _compare_texts(console, narrow, wide)
    _heading(console, "5. Go on training: the optimizer's state was widened too")
    losses = _continue(shell, narrow, wide)
    return {"trained": trained, "commands": shell.documents, "prompt": _PROMPT, "texts": texts, "losses": losses}


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/]\n")


def _train(console: Console, directory: Path) -> dict[str, Any]:
    from mupscale_cli.tasks.demo import training

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
    return {
        "parameters": found.num_parameters,
        "steps": training.STEPS,
        "first_loss": found.first_loss,
        "last_loss": found.last_loss,
    }


def _continue(shell: _Shell, narrow: Path, wide: Path) -> dict[str, list[float]]:
    """The same batches for the narrow model, the wide one, and the wide one with some noise."""
    from mupscale_cli.tasks.demo.training import CONTINUED, continue_training

    console = shell.console
    apart = wide.with_name(f"{wide.name}-noisy")
    shell.run(
        f"mupscale widen {shlex.quote(str(narrow))} --factor 4 --noise {_NOISE} --no-verify "
        f"-o {shlex.quote(str(apart))}"
    )
    console.print()
    with console.status("training all three"):
        before = continue_training(narrow, widened=False)
        after = continue_training(wide, widened=True)
        noisy = continue_training(apart, widened=True)
    columns = ("tiny", "tiny-x4", "difference", f"tiny-x4 with --noise {_NOISE}")
    result = output.table("step", *columns, right=("step", *columns))
    for step in sorted({0, 1, CONTINUED // 4, CONTINUED // 2, CONTINUED - 1}):
        losses = before[step], after[step], noisy[step]
        result.add_row(
            str(step + 1),
            f"{losses[0]:.6f}",
            f"{losses[1]:.6f}",
            f"{abs(losses[0] - losses[1]):.0e}",
            f"{losses[2]:.6f}",
        )
    console.print(result)
    console.print(
        "\nWithout noise the wide model takes the steps that the narrow one would have taken (the difference is "
        "float32 rounding; `mupscale verify --steps 20` shows it in float64). Copies stay copies, so noise has to "
        "tell them apart before the new capacity is used: that costs something "
        "at first, and pays over more steps than these.",
        markup=False,
    )
    return {path.name: losses for path, losses in ((narrow, before), (wide, after), (apart, noisy))}


def _compare_texts(console: Console, *directories: Path) -> dict[str, str]:
    from mupscale_cli.tasks.demo.training import continue_text

    found = {}
    for directory in directories:
        text = continue_text(directory, _PROMPT, _SAMPLE_BYTES).replace("\n", " ")
        lines = textwrap.wrap(text, max(40, min(console.width, 100) - 12))
        for number, line in enumerate(lines):
            console.print(f"[bold]{directory.name if number == 0 else '':<10}[/]", end="")
            console.print(line, markup=False)
        found[directory.name] = text
    return found
