"""Shell completion, through the protocol of typer's shell scripts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mupscale_cli

SHOW_LOADED = """
import atexit, sys
heavy = ("torch", "transformers", "matplotlib")
atexit.register(lambda: print("LOADED", *(name for name in heavy if name in sys.modules), file=sys.stderr))
from mupscale_cli.cli.main import main
main()
"""


def complete(line, *, cwd, kind="bash"):
    """Return the completions of a command line; a trailing space starts a new word."""
    words = line.split(" ")
    path = os.pathsep.join([str(Path(mupscale_cli.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    protocol = {
        "bash": {"_MUPSCALE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_MUPSCALE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line},
    }[kind]
    result = subprocess.run(
        [sys.executable, "-c", SHOW_LOADED],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **protocol},
    )
    assert result.stderr == "LOADED\n", result.stderr  # no torch, and no messages in the user's shell
    return result.stdout


@pytest.fixture(scope="module")
def here(saved, tmp_path_factory):
    """Return a folder with checkpoints of several kinds and other files."""
    folder = tmp_path_factory.mktemp("here")
    shutil.copytree(saved("Llama-tied"), folder / "narrow")
    shutil.copytree(saved("GPT2-tied"), folder / "runs" / "step-90")
    shutil.copytree(saved("Llama-tied"), folder / "wide")
    (folder / "wide" / "mupscale.json").write_text("{}")
    shutil.copy(saved("Llama-tied") / "model.safetensors", folder / "net.safetensors")
    (folder / "notes.txt").write_text("")
    (folder / "mine.yaml").write_text("")
    (folder / ".hidden").mkdir()
    return folder


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mupscale recipes show qwen3_n", "qwen3_next"),
        ("mupscale recipes check mixt", "mixtral"),
        ("mupscale recipes check mine", "mine.yaml"),
        ("mupscale widen narrow --recipe gpt_neox", "gpt_neox gpt_neox_japanese"),
        ("mupscale widen ", "narrow net.safetensors runs/step-90 wide"),
        ("mupscale inspect runs/", "runs/step-90"),
        ("mupscale verify narrow w", "wide"),
        ("mupscale hparams ", "net.safetensors wide"),
        ("mupscale widen narrow --axis ", "embed= kv= g= d= ffn="),
        ("mupscale widen narrow --axis ff", "ffn=2 ffn=3 ffn=4 ffn=8"),
        ("mupscale widen runs/step-90 --factor 2 --axis ", "embed= h= d= ffn="),
        ("mupscale widen elsewhere --recipe gpt2 --axis h", "h=2 h=3 h=4 h=8"),
        ("mupscale widen elsewhere --axis ", ""),
        ("mupscale inspect narrow --tensor q", "q_proj q_proj.bias"),
    ],
)
def test_bash_completes(line, offered, here):
    assert complete(line, cwd=here).split() == offered.split()


def test_zsh_shows_descriptions_of_axes(here):
    shown = complete("mupscale widen narrow --axis e", cwd=here, kind="zsh")
    assert '"embed=2":"the residual stream"' in shown
    assert complete("mupscale widen elsewhere --axis ", cwd=here, kind="zsh").strip() == "_files"


def test_zsh_shows_descriptions_of_recipes(here):
    assert '"llama":"decoder with RMSNorm' in complete("mupscale recipes show llama", cwd=here, kind="zsh")


def test_broken_checkpoint_completes_to_nothing(here, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no header")
    assert complete("mupscale widen broken --axis ", cwd=tmp_path).strip() == ""


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_script_runs_in_a_real_shell(shell, here):
    """The shell runs the script that `--show-completion` prints."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    root = str(Path(mupscale_cli.__file__).parent.parent)
    command = here / "bin" / "mupscale"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mupscale_cli "$@"\n')
    command.chmod(0o755)
    env = {**os.environ, "PYTHONPATH": root, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}

    def output_of(*line, **more):
        return subprocess.run(line, cwd=here, env={**env, **more}, capture_output=True, text=True, check=True).stdout

    script = output_of("mupscale", _MUPSCALE_COMPLETE=f"source_{shell}")
    words = "(mupscale widen narrow --axis ff)"
    ask = {
        "bash": f'COMP_WORDS={words}; COMP_CWORD=4; _mupscale_completion mupscale; echo "${{COMPREPLY[@]}}"',
        # This stands in for zsh's own function and prints the completions.
        "zsh": f'_arguments() {{ echo "$@" }}; words={words}; CURRENT=5; _mupscale_completion',
    }[shell]
    before = "compdef() { :; }\n" if shell == "zsh" else ""
    shown = output_of(shell, "-c", f"{before}{script}\n{ask}")
    assert [word in shown for word in ("ffn=2", "ffn=3", "ffn=4", "ffn=8")] == [True] * 4
