"""The command `mupscale`, and `python -m mupscale_cli`."""

from __future__ import annotations

import os  # everything else is imported where Ctrl-C is handled


def main() -> None:
    """Run the command line. Ctrl-C ends it with one line and the exit code 130, also while modules are imported."""
    try:
        import signal

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in a script's background
            signal.signal(signal.SIGINT, _stop)  # commands raise KeyboardInterrupt instead, to tidy up
        from mupscale_cli.cli.main import main as run

        run()
    except KeyboardInterrupt:
        _stop()


def _stop(*_: object) -> None:
    """End the process, which has nothing to tidy up."""
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
