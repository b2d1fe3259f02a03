"""The application with all commands, or with only the one that runs: importing them all takes most of its time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from mupscale_cli.cli.failures import print_error_document, usage_message
from mupscale_cli.cli.overview import SETTINGS, SUMMARIES, do_nothing, root
from mupscale_cli.errors import MupscaleError

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports only its subclass
# The function or the group of each command that its own module does not have under the command's name.
_PLACES = {
    "help": ("manual", "show_page"),
    "schema": ("manual", "show_schema"),
    "recipes": ("recipes", "app"),
    "plot": ("plot", "app"),
}


class _Group(TyperGroup):
    """Root of the commands, which prints a usage error as a JSON document as well."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _UsageError as error:  # typer prints it and exits with 2
            print_error_document(MupscaleError(usage_message(error)), "UsageError")
            raise


def application(only: str | None = None) -> typer.Typer:
    """Return the application.

    Args:
        only: the command that will run; the others then have a name and a summary, but do nothing. Default: all run.
    """
    app = typer.Typer(cls=_Group, **SETTINGS)
    app.callback(invoke_without_command=True)(root)
    for name, summary in SUMMARIES.items():
        if only not in (None, name):
            app.command(name, help=summary)(do_nothing)
            continue
        command = _imported(name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


@cache
def _imported(name: str) -> typer.Typer | Callable[..., None]:
    """Import a command or a group of commands; each gets the options `--quiet`, `--verbose` and `--debug`."""
    from mupscale_cli.cli.options import with_verbosity

    module, attribute = _PLACES.get(name, (name, name))
    command = getattr(import_module(f"mupscale_cli.cli.{module}"), attribute)
    if not isinstance(command, typer.Typer):
        return with_verbosity(command)
    for inner in command.registered_commands:
        assert inner.callback is not None
        inner.callback = with_verbosity(inner.callback)
    return command
