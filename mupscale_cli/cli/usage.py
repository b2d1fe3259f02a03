"""Print the help of commands: options in groups, then examples; and read options from environment variables."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from mupscale_cli.tasks import effects

_COLUMN = 26  # columns for names; a longer one gets a line of its own
_GIVEN = ("COMMANDLINE", "ENVIRONMENT")  # click's names of where an option's value comes from
_RUNNING: ContextVar[Any] = ContextVar("_RUNNING")  # the context of the running command
_REST = "General options"  # the group of options that name none
# Settings of the root, which its commands inherit.
CONTEXT: dict[str, Any] = {
    "auto_envvar_prefix": "MUPSCALE",  # MUPSCALE_WIDEN_FACTOR=4 is `mupscale widen --factor 4`
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,  # columns; longer lines of prose are hard to read
}


class Command(TyperCommand):
    """A command that lists its options in groups, and says which ones it took from the environment."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words after the command's name in the line on its usage."""
        arguments = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "argument"]
        return ["[OPTIONS]", *(_usage(str(each.metavar), is_required=each.required) for each in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options, in groups."""
        _write_options(self, ctx, formatter)

    def format_epilog(self, _: Any, formatter: Any) -> None:
        """Write the examples as they are, without wrapping them."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write(self.epilog + "\n")

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        from mupscale_cli.cli import output

        for parameter in self.params:
            source = ctx.get_parameter_source(parameter.name)
            if source is not None and source.name == "ENVIRONMENT" and not ctx.params.get("quiet"):
                name = f"{ctx.auto_envvar_prefix}_{parameter.name}".upper()
                output.note(f"`{parameter.opts[0]}` is set by the environment variable {name}")
        _RUNNING.set(ctx)
        refuse_idle()
        return super().invoke(ctx)


def refuse_idle(**facts: Any) -> None:
    """Refuse options of the running command that have no effect.

    Args:
        **facts: what the command knows beyond its options, named as in the table `effects.IDLE`.

    Raises:
        OptionError: there is such an option.
    """
    context = _RUNNING.get()
    name_of = {each.name: each.opts[0].lstrip("-").replace("-", "_") for each in context.command.params}
    sources = {name_of[name]: context.get_parameter_source(name) for name in context.params if name in name_of}
    given = {name for name, source in sources.items() if source is not None and source.name in _GIVEN}
    values = {name_of[name]: value for name, value in context.params.items() if name in name_of}
    effects.refuse_idle(context.command_path.partition(" ")[2], given, {**values, **facts})


class Group(TyperGroup):
    """A group of commands that prints the whole summary of each."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the group's name; without any, print the help and exit with 2."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            raise typer.Exit(2)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then the commands."""
        _write_options(self, ctx, formatter)
        with formatter.section(_heading("Commands")):
            formatter.write_dl(
                [(name, (command.help or "").split("\n\n")[0]) for name, command in self.commands.items()]
            )


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    """Write the arguments and options of a command under the headings that they name, in the order of the first."""
    groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    for parameter in command.get_params(ctx):
        parameter.show_envvar = False  # the manual gives the rule; every option's variable would fill the screen
        is_argument = parameter.param_type_name == "argument"
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        name, text = record
        if is_argument:
            name = parameter.metavar
            text = text.replace("[required]", "").strip()
        groups.setdefault("Arguments" if is_argument else parameter.rich_help_panel or _REST, []).append((name, text))
    general = groups.pop(_REST, [])
    groups[_REST if len(groups) > 1 else "Options"] = general
    for heading, records in groups.items():
        if records:
            with formatter.section(_heading(heading)):
                formatter.write_dl(records, col_max=_COLUMN)


def _usage(name: str, *, is_required: bool) -> str:
    return name if is_required or "[" in name else f"[{name}]"


def _heading(text: str) -> str:
    return typer.style(text, bold=True)
