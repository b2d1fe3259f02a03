"""Fuzz the readers of external input, guided by coverage. See README.md."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE.parent / "corpus"
NAMES = ("header", "folder", "recipe", "config", "record", "state", "torchfile", "tensors", "distributed")


def fuzz(name: str, arguments: list[str]) -> None:
    """Run libFuzzer in this process. It ends the process."""
    import atheris

    with atheris.instrument_imports(include=["mupscale_cli"]):
        sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
        from fuzzing import targets

    atheris.Setup([sys.argv[0], *arguments], lambda data: targets.run(name, data))
    atheris.Fuzz()


def main() -> None:
    """Fuzz each target in its own process, with limits on memory and on the time for one input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *NAMES], help="Targets to fuzz. Default: all.")
    parser.add_argument("--seconds", type=int, default=300, help="Time for each target. Default: 300.")
    parser.add_argument(
        "--found", type=Path, default=Path("fuzz-found"), help="Folder for failing inputs. Default: fuzz-found."
    )
    options = parser.parse_args()
    options.found.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in options.targets or NAMES:
        with tempfile.TemporaryDirectory(prefix="corpus-") as grown:
            command = [
                sys.executable,
                __file__,
                "--inside",
                name,
                f"-max_total_time={options.seconds}",
                "-timeout=20",
                "-rss_limit_mb=3000",
                "-max_len=4096",
                f"-artifact_prefix={options.found}/{name}-",
                "-print_final_stats=1",
                grown,
                *map(str, [CORPUS / name] if (CORPUS / name).is_dir() else []),
            ]
            sys.stderr.write(f"== {name}\n")
            if subprocess.run(command, check=False).returncode:
                failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}; the inputs are in {options.found}" if failed else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        main()
