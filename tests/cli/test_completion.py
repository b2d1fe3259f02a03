"""Shell completion, through the protocol of typer's shell scripts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mupscale_cli

# Completes one line after another, as new processes would, and says in the end what was imported for them.
COMPLETE = """
import json, os, sys
from mupscale_cli.cli.main import main
for protocol in json.loads(sys.argv.pop()):
    os.environ |= protocol
    try:
        main()
    except SystemExit:
        pass
    print(end="\\0", flush=True)
heavy = ("torch", "transformers", "matplotlib")
print("LOADED", *(name for name in heavy if name in sys.modules), file=sys.stderr)
"""


def complete_all(lines, *, cwd, kind="bash"):
    """Return the completions of command lines; a trailing space starts a new word."""
    path = os.pathsep.join([str(Path(mupscale_cli.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    protocols = {
        "bash": lambda line: {
            "_MUPSCALE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        },
        "zsh": lambda line: {"_MUPSCALE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line},
    }
    result = subprocess.run(
        [sys.executable, "-c", COMPLETE, json.dumps(list(map(protocols[kind], lines)))],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.stderr == "LOADED\n", result.stderr  # no torch, and no messages in the user's shell
    *completions, rest = result.stdout.split("\0")
    assert rest == ""
    return dict(zip(lines, completions, strict=True))


def complete(line, *, cwd, kind="bash"):
    return complete_all([line], cwd=cwd, kind=kind)[line]


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


OFFERED = {
    "mupscale recipes show qwen3_n": "qwen3_next",
    "mupscale recipes check mixt": "mixtral",
    "mupscale recipes check mine": "mine.yaml",
    "mupscale widen narrow --recipe gpt_neox": "gpt_neox gpt_neox_japanese",
    "mupscale widen ": "narrow net.safetensors runs/step-90 wide",
    "mupscale inspect runs/": "runs/step-90",
    "mupscale verify narrow w": "wide",
    "mupscale hparams ": "net.safetensors wide",
    "mupscale widen narrow --axis ": "embed= kv= g= d= ffn=",
    "mupscale widen narrow --axis ff": "ffn=2 ffn=3 ffn=4 ffn=8",
    "mupscale widen runs/step-90 --factor 2 --axis ": "embed= h= d= ffn=",
    "mupscale widen elsewhere --recipe gpt2 --axis h": "h=2 h=3 h=4 h=8",
    "mupscale widen elsewhere --axis ": "",
    "mupscale inspect narrow --tensor q": "q_proj q_proj.bias",
}


@pytest.fixture(scope="module")
def completions(here):
    return complete_all(OFFERED, cwd=here)


@pytest.mark.parametrize("line", OFFERED)
def test_bash_completes(line, completions):
    assert completions[line].split() == OFFERED[line].split()


def test_zsh_shows_descriptions(here):
    lines = ("mupscale widen narrow --axis e", "mupscale widen elsewhere --axis ", "mupscale recipes show llama")
    axes, nothing, recipes = complete_all(lines, cwd=here, kind="zsh").values()
    assert '"embed=2":"the residual stream"' in axes
    assert nothing.strip() == "_files"
    assert '"llama":"decoder with RMSNorm' in recipes


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
