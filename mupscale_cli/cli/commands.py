"""The application with all commands, or with only the one that runs: importing them all takes most of its time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module

import typer

from mupscale_cli.cli.examples import examples
from mupscale_cli.cli.overview import SETTINGS, SUMMARIES, do_nothing, root
from mupscale_cli.cli.usage import Command, Group

# The function or the group of each command that its own module does not have under the command's name.
_PLACES = {
    "help": ("manual", "show_page"),
    "schema": ("manual", "show_schema"),
    "version": ("manual", "show_version"),
    "recipes": ("recipes", "app"),
    "plot": ("plot", "app"),
}


def application(only: str | None = None) -> typer.Typer:
    """Return the application.

    Args:
        only: the command that will run; the others then have a name and a summary, but do nothing. Default: all run.
    """
    app = typer.Typer(**SETTINGS)
    app.callback(invoke_without_command=True)(root)
    for name, summary in SUMMARIES.items():
        if only not in (None, name):
            app.command(name, cls=Command, help=summary)(do_nothing)
            continue
        command = _imported(name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, cls=Group)
        else:
            app.command(name, cls=Command, epilog=examples(name))(command)
    return app


@cache
def _imported(name: str) -> typer.Typer | Callable[..., None]:
    """Import a command or a group of commands; each gets the options that all have."""
    from mupscale_cli.cli.options import with_common

    module, attribute = _PLACES.get(name, (name, name))
    command = getattr(import_module(f"mupscale_cli.cli.{module}"), attribute)
    if not isinstance(command, typer.Typer):
        return with_common(command)
    for inner in command.registered_commands:
        assert inner.callback is not None
        inner.callback = with_common(inner.callback)
        inner.cls, inner.epilog = Command, examples(f"{name} {inner.name}")
    return command
