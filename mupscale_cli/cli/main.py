"""The command line: its commands, and one boundary that turns errors into messages and exit codes."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from mupscale_cli._version import __version__
from mupscale_cli.cli import demo, doctor, hparams, inspect, output, plot, push, recipes, sweep, verify, widen
from mupscale_cli.errors import MupscaleError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")
app.command()(widen.widen)
app.command()(verify.verify)
app.command()(inspect.inspect)
app.command()(hparams.hparams)
app.command()(sweep.sweep)
app.command()(push.push)
app.add_typer(recipes.app, name="recipes")
app.add_typer(plot.app, name="plot")
app.command()(demo.demo)
app.command()(doctor.doctor)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Widen a trained network without retraining it: the wide model computes the same function.

    New here? `mupscale demo` trains a small model, widens it and verifies it, in under a minute.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; what the user can fix ends in one message and exit code 2."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(prog_name="mupscale")
    except MupscaleError as error:
        output.print_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        output.note("interrupted; nothing was written")
        sys.exit(130)
    except BrokenPipeError:  # as when piped into `head`
        sys.stderr.close()
        sys.exit(141)


def _terminate(*_: object) -> None:
    """End as after Ctrl-C, so that what was begun is removed."""
    sys.exit(143)
