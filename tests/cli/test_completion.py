"""Completion through the protocol that typer's shell scripts speak."""

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
    """What is offered after a line in a shell; a line that ends in a blank asks for a new word."""
    words = line.split(" ")
    path = os.pathsep.join([str(Path(mupscale_cli.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    said = {
        "bash": {"_MUPSCALE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_MUPSCALE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line},
    }[kind]
    result = subprocess.run(
        [sys.executable, "-c", SHOW_LOADED],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **said},
    )
    assert result.stderr == "LOADED\n", result.stderr  # no torch, and no noise in the user's line
    return result.stdout


@pytest.fixture(scope="module")
def here(saved, tmp_path_factory):
    """A folder with checkpoints of several kinds, and with what is none."""
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
        ("mupscale recipes show qwen3", "qwen3 qwen3_moe qwen3_vl"),
        ("mupscale recipes check mi", "minicpm3 mistral mixtral mine.yaml"),
        ("mupscale widen narrow --recipe gpt_n", "gpt_neo gpt_neox"),
        ("mupscale widen ", "narrow net.safetensors runs/step-90 wide"),
        ("mupscale inspect runs/", "runs/step-90"),
        ("mupscale verify narrow w", "wide"),
        ("mupscale hparams ", "net.safetensors wide"),
        ("mupscale widen narrow --axis ", "embed= kv= g= ffn="),
        ("mupscale widen narrow --axis ff", "ffn=2 ffn=3 ffn=4 ffn=8"),
        ("mupscale widen runs/step-90 --factor 2 --axis ", "embed= h= d= ffn="),
        ("mupscale widen elsewhere --recipe gpt2 --axis h", "h=2 h=3 h=4 h=8"),
        ("mupscale widen elsewhere --axis ", ""),
        ("mupscale inspect narrow --tensor q", "q_proj q_proj.bias"),
    ],
)
def test_what_bash_is_offered(line, offered, here):
    assert complete(line, cwd=here).split() == offered.split()


def test_zsh_is_told_what_each_axis_is(here):
    shown = complete("mupscale widen narrow --axis e", cwd=here, kind="zsh")
    assert '"embed=2":"the residual stream"' in shown
    assert complete("mupscale widen elsewhere --axis ", cwd=here, kind="zsh").strip() == "_files"


def test_recipes_say_what_they_are_for(here):
    assert '"llama":"decoder with RMSNorm' in complete("mupscale recipes show llama", cwd=here, kind="zsh")


def test_what_is_broken_is_not_told(here, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no header")
    assert complete("mupscale widen broken --axis ", cwd=tmp_path).strip() == ""


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_of_a_real_shell(shell, here):
    """The script that `--show-completion` prints, run by the shell itself."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    root = str(Path(mupscale_cli.__file__).parent.parent)
    command = here / "bin" / "mupscale"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mupscale_cli "$@"\n')
    command.chmod(0o755)
    env = {**os.environ, "PYTHONPATH": root, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}

    def said(*line, **more):
        return subprocess.run(line, cwd=here, env={**env, **more}, capture_output=True, text=True, check=True).stdout

    script = said("mupscale", _MUPSCALE_COMPLETE=f"source_{shell}")
    words = "(mupscale widen narrow --axis ff)"
    ask = {
        "bash": f'COMP_WORDS={words}; COMP_CWORD=4; _mupscale_completion mupscale; echo "${{COMPREPLY[@]}}"',
        # zsh's own function shows what it is given; here it says it.
        "zsh": f'_arguments() {{ echo "$@" }}; words={words}; CURRENT=5; _mupscale_completion',
    }[shell]
    before = "compdef() { :; }\n" if shell == "zsh" else ""
    shown = said(shell, "-c", f"{before}{script}\n{ask}")
    assert [word in shown for word in ("ffn=2", "ffn=3", "ffn=4", "ffn=8")] == [True] * 4
