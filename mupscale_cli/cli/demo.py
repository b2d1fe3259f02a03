"""`mupscale demo`: a first look at mupscale, made of its real commands."""

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
    directory: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="New directory for the models.")
    ] = Path("mupscale-demo"),
    as_json: options.Json = False,
) -> None:
    """Train a small model, widen it, and verify that both compute the same. Takes under a minute."""
    if directory.exists():
        raise OutputError(f"`{directory}` already exists", hint="remove it, or choose another directory with `-o`")
    from mupscale_cli.engine.threads import one_thread

    console = output.report(as_json=as_json)
    with one_thread():
        document = _show(_Shell(console, as_json), directory)
    console.print(f"\nThe models are in {directory}. `mupscale help tutorial` continues with them.", markup=False)
    if as_json:
        output.print_document("demo", {"directory": str(directory), **document})


@dataclass
class _Shell:
    """Prints commands and runs them; under `--json`, collects the documents that they print."""

    console: Console
    as_json: bool
    documents: list[dict[str, Any]] = field(default_factory=list)

    def run(self, line: str) -> None:
        """Run a command line in this process, through the real parser."""
        from mupscale_cli.cli.commands import application  # imports every command, this one too

        self.console.print(f"[bold cyan]$[/] {line}", soft_wrap=True)
        group = typer.main.get_command(application())
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
    _heading(console, "1. Train a small Llama with grouped queries and tied embeddings")
    trained = _train(console, narrow)
    _heading(console, "2. Make it four times as wide")
    shell.run(f"mupscale widen {shlex.quote(str(narrow))} --factor 4")
    _heading(console, "3. Verify again: anyone who has both models can")
    shell.run(f"mupscale verify {shlex.quote(str(wide))}")
    _heading(console, "4. Generate text with both")
    texts = _compare_texts(console, narrow, wide)
    _heading(console, "5. Continue training: the optimizer state was widened too")
    losses = _continue(shell, narrow, wide)
    return {"trained": trained, "commands": shell.documents, "prompt": _PROMPT, "texts": texts, "losses": losses}


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/]\n")


def _train(console: Console, directory: Path) -> dict[str, Any]:
    from mupscale_cli.tasks.demo import training

    started = time.monotonic()
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeElapsedColumn())
    progress_console = output.stderr()
    with Progress(*columns, console=progress_console, transient=True, disable=not progress_console.is_terminal) as bar:
        task = bar.add_task("training", total=training.STEPS, loss="")
        trained = training.train(
            directory, lambda step, loss: bar.update(task, completed=step, loss=f"loss {loss:.2f}")
        )
    console.print(
        f"{output.count_text(trained.num_parameters)} parameters, loss {trained.first_loss:.2f} -> "
        f"{trained.last_loss:.2f} nats per byte in {training.STEPS} steps, {time.monotonic() - started:.0f} s; "
        f"saved in {directory}",
        markup=False,
    )
    return {
        "parameters": trained.num_parameters,
        "steps": training.STEPS,
        "first_loss": trained.first_loss,
        "last_loss": trained.last_loss,
    }


def _continue(shell: _Shell, narrow: Path, wide: Path) -> dict[str, list[float]]:
    """Train the narrow model, the wide one, and a wide one with noise on the same batches; return their losses."""
    from mupscale_cli.tasks.demo.training import CONTINUED, continue_training

    console = shell.console
    noisy = wide.with_name(f"{wide.name}-noisy")
    shell.run(
        f"mupscale widen {shlex.quote(str(narrow))} --factor 4 --noise {_NOISE} --no-verify "
        f"-o {shlex.quote(str(noisy))}"
    )
    console.print()
    with console.status("training all three"):
        losses = {path.name: continue_training(path, widened=path != narrow) for path in (narrow, wide, noisy)}
    columns = ("tiny", "tiny-x4", "difference", f"tiny-x4 with --noise {_NOISE}")
    table = output.table("step", *columns, right=("step", *columns))
    for step in sorted({0, 1, CONTINUED // 4, CONTINUED // 2, CONTINUED - 1}):
        before, after, with_noise = (run[step] for run in losses.values())
        table.add_row(str(step + 1), f"{before:.6f}", f"{after:.6f}", f"{abs(before - after):.0e}", f"{with_noise:.6f}")
    console.print(table)
    console.print(
        "\nWithout noise, the wide model takes the same steps as the narrow one. The difference is float32 rounding; "
        "`mupscale verify --steps 20` compares them in float64. But copies then stay copies. Noise makes them differ, "
        "and training can use the new capacity. It raises the loss at first and pays off over more steps than these.",
        markup=False,
    )
    return losses


def _compare_texts(console: Console, *directories: Path) -> dict[str, str]:
    from mupscale_cli.tasks.demo.training import continue_text

    texts = {}
    for directory in directories:
        text = continue_text(directory, _PROMPT, _SAMPLE_BYTES).replace("\n", " ")
        lines = textwrap.wrap(text, max(40, min(console.width, 100) - 12))
        for number, line in enumerate(lines):
            console.print(f"[bold]{directory.name if number == 0 else '':<10}[/]", end="")
            console.print(line, markup=False)
        texts[directory.name] = text
    return texts
