"""`mupscale push`, and the push at the end of `mupscale widen`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mupscale_cli.cli import options, output
from mupscale_cli.cli.completion import complete_widened
from mupscale_cli.errors import HubError, Interrupted
from mupscale_cli.tasks.push import Push, PushOptions, prepare_push

if TYPE_CHECKING:
    from rich.console import Console

    from mupscale_cli.checkpoints.hub.publishing import Published, Status


def push(
    wide: Annotated[
        str, typer.Argument(metavar="WIDE", help="Local widened checkpoint.", autocompletion=complete_widened)
    ],
    target: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="Repository on the Hub. Created if it does not exist.")
    ],
    private: options.Private = False,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="BRANCH",
            help="Branch, created if it does not exist, or refs/pr/N for a pull request. Default: main.",
        ),
    ] = None,
    create_pr: options.CreatePr = False,
    commit_message: options.CommitMessage = None,
    with_optimizer: options.WithOptimizer = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the files and the card. Sends nothing.")] = False,
    as_json: options.Json = False,
) -> None:
    """Publish a widened checkpoint on the Hub, with a model card that says how it was made.

    Files that the repository already has are not sent again. To continue an interrupted push, run the same command.
    """
    chosen = PushOptions(private, revision, create_pr, commit_message, with_optimizer)
    prepared = prepare_push(wide, target, chosen, is_dry_run=dry_run)
    print_warnings(prepared)
    if dry_run:
        statuses = prepared.statuses()
        if as_json:
            output.print_document("push", push_document(prepared, statuses, None))
        else:
            _print_files(output.stdout(), prepared, statuses)
            output.stdout().print(f"\n{prepared.card}", markup=False, soft_wrap=True, highlight=False)
        return
    published = send(prepared, command_line(wide, target, chosen))
    if as_json:
        output.print_document("push", push_document(prepared, published.statuses, published))
    else:
        _print_files(output.report(), prepared, published.statuses)
        print_published(published)
        if output.is_quiet():
            output.stdout().print(published.url, markup=False, soft_wrap=True)


def command_line(wide: str, target: str, chosen: PushOptions) -> str:
    """Return the command line of a push."""
    flags = {"--private": chosen.private, "--create-pr": chosen.create_pr, "--with-optimizer": chosen.with_optimizer}
    words = ["mupscale", "push", wide, target, *(flag for flag, is_set in flags.items() if is_set)]
    for option, value in (("--revision", chosen.revision), ("--commit-message", chosen.commit_message)):
        words += [] if value is None else [option, value]
    return shlex.join(words)


def print_warnings(prepared: Push) -> None:
    """Print the warnings of a prepared push."""
    for warning in prepared.warnings:
        output.warn(warning)


def send(prepared: Push, retry_command: str) -> Published:
    """Send a prepared push.

    Args:
        prepared: the push.
        retry_command: the command that continues it, for the messages of errors.

    Raises:
        HubError: the Hub refuses the push, or the connection broke.
        Interrupted: the user pressed Ctrl-C.
    """
    try:
        return prepared.send()
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted; files already sent are kept, and `{retry_command}` continues") from error
    except HubError as error:
        error.hint = error.hint or f"to continue, run `{retry_command}`"
        raise


def push_document(prepared: Push, statuses: Mapping[str, Status], published: Published | None) -> dict[str, Any]:
    """Return the JSON document of a push.

    Args:
        prepared: the push.
        statuses: every file's status, by name.
        published: where it was published; None for a dry run.
    """
    sizes = {file.name: file.num_bytes for file in prepared.files}
    return {
        "repo": prepared.repository.id.repo,
        "revision": prepared.repository.id.revision or "main",
        "url": published.url if published else None,
        "commit": published.commit if published else None,
        "pull_request": published.pull_request if published else None,
        "files": [
            {"path": name, "bytes": sizes.get(name), "status": status} for name, status in sorted(statuses.items())
        ],
        "card": prepared.card,
        "warnings": list(prepared.warnings),
    }


def print_published(published: Published) -> None:
    """Print the address of a finished push."""
    outcome = f"pull request {published.pull_request}" if published.pull_request else "published"
    if all(status == "unchanged" for status in published.statuses.values()):
        outcome = "nothing to update"
    output.report().print(f"\n{outcome}: {published.url}", markup=False, soft_wrap=True)


def _print_files(console: Console, prepared: Push, statuses: Mapping[str, Status]) -> None:
    sizes = {file.name: file.num_bytes for file in prepared.files}
    result = output.table("file", "size", "on the Hub", right=("size",))
    for name, status in sorted(statuses.items()):
        result.add_row(name, output.bytes_text(sizes[name]) if name in sizes else "", status)
    console.print(result)
