"""Run the user's own trainer: a command whose last line of JSON on stdout holds the loss. No shell, no torch."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from mupscale_cli.checkpoints.json_files import parse_json
from mupscale_cli.errors import SweepError

PLACEHOLDERS = ("checkpoint", "lr", "noise", "factor", "seed", "output")
_REQUIRED = ("checkpoint", "lr")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_SHOWN_LINES = 5  # of a failed command's output
_GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL


def parse_command(template: str) -> tuple[str, ...]:
    """Split a command line into words and check its placeholders.

    Raises:
        SweepError: a quote is not closed, a placeholder is unknown, or a required one is missing.
    """
    try:
        words = tuple(shlex.split(template))
    except ValueError as error:
        raise SweepError(f"`--command` is not a valid command line: {error}") from error
    if not words:
        raise SweepError("`--command` is empty")
    used = {name for word in words for name in _PLACEHOLDER.findall(word)}
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    if unknown := sorted(used - set(PLACEHOLDERS)):
        raise SweepError(f"`--command` has the unknown placeholder {{{unknown[0]}}}", hint=f"known: {known}")
    if missing := [name for name in _REQUIRED if name not in used]:
        raise SweepError(
            f"`--command` lacks {{{missing[0]}}}, so every trial would be the same", hint=f"known: {known}"
        )
    return words


def fill(words: tuple[str, ...], values: Mapping[str, str]) -> list[str]:
    """Replace the placeholders in a command's words; values that look like placeholders stay as they are."""
    return [_PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), word) for word in words]


def run_command(words: list[str], output: Path, report: Callable[[int, float], None]) -> float:
    """Run a trainer and read its loss.

    Lines of JSON with `step` and `loss` are reported as the trainer prints them. Its whole output is saved to
    `stdout.txt` and `stderr.txt`.

    Args:
        words: program and arguments.
        output: folder for this trial alone; created if it does not exist.
        report: called with step and loss.

    Returns:
        The `loss` of the last line of JSON; NaN for `null`.

    Raises:
        SweepError: the trainer cannot be started, fails, or prints no loss.
    """
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "stderr.txt", "wb") as errors, open(output / "stdout.txt", "w", encoding="utf-8") as log:
        try:
            # The user typed these words, and no shell interprets them.
            process = subprocess.Popen(  # noqa: S603
                words,
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise SweepError(f"cannot start `--command`: {error}") from error
        try:
            assert process.stdout is not None
            last = _follow(process.stdout, log, report)
            code = process.wait()
        finally:
            _stop(process)
    if code:
        raise SweepError(
            f"`{shlex.join(words)}` exited with {code}",
            excerpt=_tail(output / "stderr.txt"),
            hint=f"its whole output is in `{output}`",
        )
    if last is None or "loss" not in last:
        raise SweepError(
            f"`{shlex.join(words)}` printed no line of JSON with `loss`",
            excerpt=_tail(output / "stdout.txt"),
            hint='print {"loss": 1.23} at the end',
        )
    return _parse_loss(last["loss"], words)


def _follow(lines: IO[str], log: IO[str], report: Callable[[int, float], None]) -> dict[str, object] | None:
    """Log and report a trainer's output until it ends; return its last line that is a JSON object."""
    last = None
    for line in lines:
        log.write(line)
        log.flush()
        try:
            value = parse_json(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            last = value
            step, loss = value.get("step"), value.get("loss")
            if isinstance(step, int) and isinstance(loss, (int, float)):
                report(step, float(loss))
    return last


def _parse_loss(loss: object, words: list[str]) -> float:
    if loss is None:
        return math.nan
    try:
        return float(loss)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise SweepError(f"`{shlex.join(words)}` printed the loss {loss!r}, which is not a number") from error


def _stop(process: subprocess.Popen[str]) -> None:
    """Stop a trainer that still runs, so that it does not outlive its sweep."""
    if process.poll() is None:
        process.terminate()
        killer = threading.Timer(_GRACE_SECONDS, process.kill)
        killer.start()
        process.wait()
        killer.cancel()


def _tail(file: Path) -> str | None:
    """Return the last lines of a file, indented; None if it is empty."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        shown = deque((line.rstrip() for line in lines), maxlen=_SHOWN_LINES)
    return "\n".join(f"    {line}" for line in shown) or None
