"""The application with all commands."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from mupscale_cli.cli import (
    coordcheck,
    demo,
    doctor,
    hparams,
    inspect,
    manual,
    options,
    plot,
    push,
    recipes,
    run,
    sweep,
    verify,
    widen,
)
from mupscale_cli.cli.failures import print_error_document, usage_message
from mupscale_cli.cli.overview import SETTINGS, root
from mupscale_cli.errors import MupscaleError

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports only its subclass


class _Group(TyperGroup):
    """Root of the commands, which prints a usage error as a JSON document as well."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _UsageError as error:  # typer prints it and exits with 2
            print_error_document(MupscaleError(usage_message(error)), "UsageError")
            raise


app = typer.Typer(cls=_Group, **SETTINGS)
app.callback(invoke_without_command=True)(root)
app.command()(widen.widen)
app.command()(verify.verify)
app.command()(inspect.inspect)
app.command()(hparams.hparams)
app.command()(sweep.sweep)
app.command()(coordcheck.coordcheck)
app.command()(push.push)
app.command()(run.run)
app.add_typer(recipes.app, name="recipes")
app.add_typer(plot.app, name="plot")
app.command()(demo.demo)
app.command()(doctor.doctor)
app.command("help")(manual.show_page)
app.command("schema")(manual.show_schema)


def _add_verbosity(commands: typer.Typer) -> None:
    """Give every command the options `--quiet`, `--verbose` and `--debug`."""
    for command in commands.registered_commands:
        assert command.callback is not None
        command.callback = options.with_verbosity(command.callback)
    for group in commands.registered_groups:
        assert group.typer_instance is not None
        _add_verbosity(group.typer_instance)


_add_verbosity(app)
