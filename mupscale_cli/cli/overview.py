"""The list of commands, without the commands: what `mupscale --help` shows, in a fraction of the time."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mupscale_cli._version import __version__

SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "markdown",
}
# The first lines of the commands' own help, in their order; a test holds them together.
SUMMARIES = {
    "widen": "Widen a checkpoint: weights, optimizer state, config, and everything that loading it needs.",
    "verify": "Check that the wide model computes the same function as the narrow one. Exit code 1 if not.",
    "inspect": "Show what is in a checkpoint: recipe, axes, tensors, and how it came to be.",
    "hparams": "Show the hyperparameters with which a widened model trains as the narrow one did.",
    "sweep": "Find learning rate and noise on small widened models, for the large one.",
    "push": "Publish a widened checkpoint on the Hub, with a model card that says how it came to be.",
    "run": "Do the steps of a job file in their order: widenings, verifications, pushes. What is done is not done "
    "again.",
    "demo": "Train a small model, widen it, and verify that the wide one computes the same. Under a minute.",
    "doctor": "Show versions, devices, memory, disk and settings, to paste into a bug report.",
    "help": "Show a page of the manual, or list them. Markdown where the output is no terminal.",
    "schema": "Print the JSON Schema of a document that `--json` prints, or the names and versions of all.",
    "recipes": "The architectures that mupscale knows.",
    "plot": "Draw a widening, a verification or a sweep as PNG or SVG. Needs `mupscale[plot]`.",
}


def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Widen a trained network without retraining it: the wide model computes the same function.

    New here? `mupscale demo` trains a small model, widens it and verifies it, in under a minute.
    `mupscale help` lists the pages of the manual.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit


def overview() -> typer.Typer:
    """An application whose commands are names and first lines."""
    app = typer.Typer(**SETTINGS)
    app.callback(invoke_without_command=True)(root)
    for name, summary in SUMMARIES.items():
        app.command(name, help=summary)(_nothing)
    return app


def _nothing() -> None:
    """What a command of the overview does."""
