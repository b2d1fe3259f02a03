"""The user's own trainer: a command whose last line of JSON on stdout says the loss. No shell, no torch."""

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
_NEEDED = ("checkpoint", "lr")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_SHOWN_LINES = 5
_GRACE_SECONDS = 10.0


def parse_command(template: str) -> tuple[str, ...]:
    """The words of a command.

    Raises:
        SweepError: its quotes do not close, a placeholder is unknown, or one that is needed is missing.
    """
    try:
        words = tuple(shlex.split(template))
    except ValueError as error:
        raise SweepError(f"`--command` is no command line: {error}") from error
    if not words:
        raise SweepError("`--command` is empty")
    used = {name for word in words for name in _PLACEHOLDER.findall(word)}
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    if strange := sorted(used - set(PLACEHOLDERS)):
        raise SweepError(
            f"`--command` has the placeholder {{{strange[0]}}}, which is not known", hint=f"known: {known}"
        )
    if missing := [name for name in _NEEDED if name not in used]:
        raise SweepError(
            f"`--command` does not say {{{missing[0]}}}, so every trial would be the same", hint=f"known: {known}"
        )
    return words


def fill(words: tuple[str, ...], values: Mapping[str, str]) -> list[str]:
    """The words with their placeholders replaced; what is put in is not looked at again."""
    return [_PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), word) for word in words]


def run_command(words: list[str], output: Path, report: Callable[[int, float], None]) -> float:
    """Run a trainer and read its loss.

    Its lines of JSON with `step` and `loss` are reported as they come; everything it prints is kept in
    `stdout.txt` and `stderr.txt`.

    Args:
        words: of the command.
        output: a folder of its own.
        report: called with step and loss.

    Returns:
        The `loss` of its last line of JSON; NaN where that is `null` or no finite number.

    Raises:
        SweepError: it cannot be started, fails, or says no loss.
    """
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "stderr.txt", "wb") as errors, open(output / "stdout.txt", "w", encoding="utf-8") as log:
        try:
            # The words are the user's own, and no shell sees them.
            process = subprocess.Popen(  # noqa: S603
                words,
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise SweepError(f"`--command` cannot be started: {error}") from error
        try:
            assert process.stdout is not None
            last = _follow(process.stdout, log, report)
            code = process.wait()
        finally:
            _end(process)
    if code:
        raise SweepError(
            f"`{shlex.join(words)}` ended with {code}",
            excerpt=_tail(output / "stderr.txt"),
            hint=f"everything it printed is in `{output}`",
        )
    if last is None or "loss" not in last:
        raise SweepError(
            f"`{shlex.join(words)}` printed no line of JSON with `loss`",
            excerpt=_tail(output / "stdout.txt"),
            hint='let it print {"loss": 1.23} at its end',
        )
    return _number(last["loss"], words)


def _follow(lines: IO[str], log: IO[str], report: Callable[[int, float], None]) -> dict[str, object] | None:
    """The last line that is a JSON object."""
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


def _number(loss: object, words: list[str]) -> float:
    if loss is None:
        return math.nan
    try:
        return float(loss)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise SweepError(f"`{shlex.join(words)}` says that its loss is {loss!r}, which is no number") from error


def _end(process: subprocess.Popen[str]) -> None:
    """No trainer outlives the sweep that started it."""
    if process.poll() is None:
        process.terminate()
        killer = threading.Timer(_GRACE_SECONDS, process.kill)
        killer.start()
        process.wait()
        killer.cancel()


def _tail(file: Path) -> str | None:
    with open(file, encoding="utf-8", errors="replace") as lines:
        shown = deque((line.rstrip() for line in lines), maxlen=_SHOWN_LINES)
    return "\n".join(f"    {line}" for line in shown) or None
