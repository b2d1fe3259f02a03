"""Show the list of commands without importing them, which makes `mupscale --help` fast."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mupscale_cli import __version__
from mupscale_cli.cli.usage import CONTEXT, Command, Group

SETTINGS: dict[str, Any] = {
    "cls": Group,
    "context_settings": CONTEXT,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
# First lines of the commands' own help, in order; a test compares the two.
SUMMARIES = {
    "widen": "Widen a checkpoint: weights, optimizer state, config, and everything that loading it needs.",
    "verify": "Check that the wide model is what the plan makes of its source. Exits with 1 if anything differs.",
    "inspect": "Show what is in a checkpoint: its recipe, axes and tensors, and how it was made; or what else a path "
    "is.",
    "hparams": "Print the hyperparameters to continue training a widened model with.",
    "sweep": "Find learning rate and noise on small widened models, for the large one.",
    "coordcheck": "Check that activations change equally much at every width, which shows wrong learning rates in a "
    "few steps.",
    "push": "Publish a widened checkpoint on the Hub, with a model card that says how it was made.",
    "run": "Run the steps of a job file in order: widenings, verifications, pushes. Skips finished steps.",
    "demo": "Train a small model, widen it, and verify that both compute the same. Takes under a minute.",
    "doctor": "Print versions, devices, memory, disk and settings for a bug report.",
    "help": "Show a page of the manual, or list all pages. Prints Markdown if the output is not a terminal.",
    "schema": "Print the JSON Schema of a document that `--json` prints, or list all documents.",
    "version": "Print the version.",
    "recipes": "List, explain, check and draft recipes, which describe architectures.",
    "plot": "Draw a widening, a verification or a sweep as PNG or SVG. Needs the extra `plot`.",
}


def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Widen a trained network without retraining it: the wide model computes the same function.

    New here? `mupscale demo` trains a small model, widens it and verifies it in under a minute.
    `mupscale help` lists the pages of the manual.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit


def overview() -> typer.Typer:
    """Return an application whose commands have a name and a summary, but do nothing."""
    app = typer.Typer(**SETTINGS)
    app.callback(invoke_without_command=True)(root)
    for name, summary in SUMMARIES.items():
        app.command(name, cls=Command, help=summary)(do_nothing)
    return app


def do_nothing() -> None:
    """Stand in for a command."""
