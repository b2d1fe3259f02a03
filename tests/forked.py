"""Run the command line in another process that begins with what this one has imported.

A new interpreter would import torch first, which takes seconds; so these processes are forked, where the system allows
it. They are for tests of what a process does and leaves behind: by itself, beside others, or when it is stopped. How an
interpreter starts is the subject of `cli_runner.shell`.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

PROGRAM = "\nfrom mupscale_cli.cli.main import main\nmain()\n"
_ENDING = 1 << 16  # above every open file


def start(*words: str, code: str = "", cwd: Path | None = None) -> Forked | subprocess.Popen[str]:
    """Start `mupscale WORDS` with pipes as its streams, in a session and process group of its own.

    Args:
        words: command, options and arguments.
        code: Python that runs first, for instance to interrupt the command somewhere.
        cwd: its current folder. Default: that of this process.
    """
    if sys.platform == "linux":
        return Forked(words, code, cwd)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, "-c", code + PROGRAM, *words], cwd=cwd, text=True, start_new_session=True, **pipes
    )


def finish(*words: str, code: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `mupscale WORDS`, as `start` does, to its end."""
    process = start(*words, code=code, cwd=cwd)
    out, err = process.communicate()
    return subprocess.CompletedProcess(["mupscale", *words], process.returncode, out, err)


class Forked:
    """A forked process, with the interface of `subprocess.Popen`."""

    def __init__(self, words: tuple[str, ...], code: str, cwd: Path | None) -> None:
        (child_in, ours_in), (ours_out, child_out), (ours_err, child_err) = (os.pipe() for _ in range(3))
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _run((child_in, child_out, child_err), words, code, cwd)
        for end in (child_in, child_out, child_err):
            os.close(end)
        self.stdin, self.stdout, self.stderr = os.fdopen(ours_in, "w"), os.fdopen(ours_out), os.fdopen(ours_err)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end of the process; return the rest of its output and its errors."""
        self.stdin.close()
        with ThreadPoolExecutor() as pool:
            out, err = pool.map(lambda stream: stream.read(), (self.stdout, self.stderr))
        self.stdout.close()
        self.stderr.close()
        limit = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < limit:
            time.sleep(0.01)
        assert self.returncode is not None, "the process has closed its output and goes on"
        return out, err


def _run(streams: tuple[int, int, int], words: tuple[str, ...], code: str, cwd: Path | None) -> NoReturn:
    """Become `mupscale WORDS`; leave without the cleanup of the tests' process."""
    status = 1
    try:
        os.setsid()
        gc.freeze()  # a garbage collection would copy all memory
        for number, end in enumerate(streams):
            os.dup2(end, number)
        os.closerange(3, _ENDING)  # other processes wait for the ends of pipes and of locks
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww")
        )
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            signal.signal(number, handler)
        if cwd is not None:
            os.chdir(cwd)
        sys.argv = ["mupscale", *words]
        exec(compile(code + PROGRAM, "<forked>", "exec"), {"__name__": "__main__"})  # noqa: S102 (of a test)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (as an interpreter would print it)
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)
