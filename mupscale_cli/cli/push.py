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
    from mupscale_cli.checkpoints.hub.publishing import Published, Status


def push(
    wide: Annotated[str, typer.Argument(help="A widened checkpoint, here.", autocompletion=complete_widened)],
    target: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository on the Hub; made if not there.")],
    private: options.Private = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch; made if not there. refs/pr/N: a pull request.")
    ] = None,
    create_pr: options.CreatePr = False,
    commit_message: options.CommitMessage = None,
    with_optimizer: options.WithOptimizer = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show files and card, send nothing.")] = False,
    as_json: options.Json = False,
) -> None:
    """Publish a widened checkpoint on the Hub, with a model card that says how it came to be.

    Files that are there already are not sent again; an interrupted push goes on with the same command.
    """
    chosen = PushOptions(private, revision, create_pr, commit_message, with_optimizer)
    prepared = prepare_push(wide, target, chosen)
    tell_warnings(prepared)
    if dry_run:
        found = prepared.statuses()
        if as_json:
            output.print_document("push", push_document(prepared, found, None))
        else:
            _print_files(prepared, found)
            output.stdout().print(f"\n{prepared.card}", markup=False, soft_wrap=True, highlight=False)
        return
    published = send(prepared, command_line(wide, target, chosen))
    if as_json:
        output.print_document("push", push_document(prepared, published.statuses, published))
    else:
        _print_files(prepared, published.statuses)
        print_published(published)
        if output.is_quiet():
            output.stdout().print(published.url, markup=False, soft_wrap=True)


def command_line(wide: str, target: str, chosen: PushOptions) -> str:
    """The command that does the same push."""
    flags = {"--private": chosen.private, "--create-pr": chosen.create_pr, "--with-optimizer": chosen.with_optimizer}
    words = ["mupscale", "push", wide, target, *(flag for flag, given in flags.items() if given)]
    for option, value in (("--revision", chosen.revision), ("--commit-message", chosen.commit_message)):
        words += [] if value is None else [option, value]
    return shlex.join(words)


def tell_warnings(prepared: Push) -> None:
    """Show what to know before a push."""
    for warning in prepared.warnings:
        output.warn(warning)


def send(prepared: Push, again: str) -> Published:
    """Send a push; if that is interrupted, say how it goes on.

    Args:
        prepared: the push.
        again: the command that goes on with it.

    Raises:
        HubError: the Hub refuses it, or the connection broke.
    """
    try:
        return prepared.send()
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted; what was sent is kept: `{again}` goes on") from error
    except HubError as error:
        error.hint = error.hint or f"`{again}` goes on from there"
        raise


def push_document(prepared: Push, found: Mapping[str, Status], published: Published | None) -> dict[str, Any]:
    """What `--json` prints of a push."""
    sizes = {file.name: file.num_bytes for file in prepared.files}
    return {
        "repo": prepared.repository.id.repo,
        "revision": prepared.repository.id.revision or "main",
        "url": published.url if published else None,
        "commit": published.commit if published else None,
        "pull_request": published.pull_request if published else None,
        "files": [{"path": name, "bytes": sizes.get(name), "status": found[name]} for name in sorted(found)],
        "card": prepared.card,
        "warnings": list(prepared.warnings),
    }


def print_published(published: Published) -> None:
    """Where a push led to."""
    what = f"pull request {published.pull_request}" if published.pull_request else "published"
    if all(status == "unchanged" for status in published.statuses.values()):
        what = "nothing has changed"
    output.report().print(f"\n{what}: {published.url}", markup=False, soft_wrap=True)


def _print_files(prepared: Push, found: Mapping[str, Status]) -> None:
    sizes = {file.name: file.num_bytes for file in prepared.files}
    result = output.table("file", "size", "", right=("size",))
    for name, status in sorted(found.items()):
        result.add_row(name, output.bytes_text(sizes[name]) if name in sizes else "", status)
    output.report().print(result)
