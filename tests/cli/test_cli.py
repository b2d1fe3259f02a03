"""The commands as a user and a script meet them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file

import mupscale_cli
from cli_runner import run
from helpers import build, save_mlp
from mupscale_cli.cli.commands import app
from mupscale_cli.cli.overview import overview

ESCAPES = re.compile(r"\x1b\[")


def shell(*arguments, cwd, code=None):
    """Run `mupscale` as a process of its own; `code` is Python that runs before it."""
    program = (
        ["-m", "mupscale_cli"] if code is None else ["-c", f"{code}\nfrom mupscale_cli.cli.main import main\nmain()"]
    )
    path = os.pathsep.join([str(Path(mupscale_cli.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


# The two commands -----------------------------------------------------------------------------


def test_the_line_that_people_use(saved, tmp_path):
    shutil.copy(saved("Llama-tied") / "model.safetensors", tmp_path / "ckpt.safetensors")
    shutil.copy(saved("Llama-tied") / "config.json", tmp_path)
    widened = shell("widen", "ckpt.safetensors", "--factor", "4", cwd=tmp_path)
    assert widened.returncode == 0, widened.stderr
    assert "same function" in widened.stdout
    assert {file.name for file in tmp_path.iterdir()} == {
        "ckpt.safetensors",
        "config.json",
        "ckpt-x4.safetensors",
        "ckpt-x4.config.json",
    }
    verified = shell("verify", cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert "ckpt-x4.safetensors" in verified.stderr
    assert "same function" in verified.stdout


def test_models_that_differ_end_in_1_and_are_not_published(saved, tmp_path):
    recipe = tmp_path / "wrong.yaml"
    text = 'extends: llama\ntensors:\n  "{prefix}layers.*.mlp.down_proj.weight": "embed, ffn"\n'
    recipe.write_text(text)
    narrow = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    result = run("widen", str(narrow), "--factor", "2", "--recipe", str(recipe))
    assert result.code == 1
    assert "model.layers.0.mlp.down_proj" in result.out
    assert "--no-verify" in result.err
    assert {file.name for file in tmp_path.iterdir()} == {"wrong.yaml", "narrow"}
    assert run("widen", str(narrow), "--factor", "2", "--recipe", str(recipe), "--no-verify").code == 0
    assert run("verify", str(tmp_path / "narrow-x2")).code == 1


def test_a_directory_keeps_what_loading_needs(saved, tmp_path):
    narrow = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    (narrow / "tokenizer.json").write_text("{}")
    (narrow / "README.md").write_text("a card of the narrow model")
    result = run("widen", str(narrow), "--factor", "2", "-o", str(tmp_path / "wide"))
    assert result.code == 0
    assert "README.md" in result.err
    names = {file.name for file in (tmp_path / "wide").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "mupscale.json", "tokenizer.json"}


def test_shards(saved, tmp_path):
    import transformers

    narrow = shutil.copytree(saved("Llama-untied", max_shard_size="40KB"), tmp_path / "narrow")
    assert run("widen", str(narrow), "--factor", "3", "--max-shard-size", "100KB").code == 0
    wide = tmp_path / "narrow-x3"
    shards = sorted(wide.glob("model-*.safetensors"))
    assert len(shards) > 2
    tokens = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))
    model = transformers.AutoModelForCausalLM.from_pretrained(wide)
    torch.testing.assert_close(model(tokens).logits, build("Llama-untied")(tokens).logits, atol=1e-5, rtol=1e-5)
    # The same tensors whatever the shards.
    assert run("widen", str(narrow), "--factor", "3", "-o", str(tmp_path / "whole"), "--no-verify").code == 0
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    parts = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_overwrite_replaces_what_mupscale_wrote(saved, tmp_path):
    arguments = ["widen", str(saved("Llama-tied")), "-o", str(tmp_path / "wide"), "--no-verify", "--factor"]
    assert run(*arguments, "2").code == 0
    assert run(*arguments, "3", "--overwrite").code == 0
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["hidden_size"] == 144
    assert [file.name for file in tmp_path.iterdir()] == ["wide"]


def test_without_a_reference_it_says_that_it_did_not_verify(tmp_path):
    result = run("widen", str(save_mlp(tmp_path / "net.safetensors")), "--factor", "2")
    assert result.code == 0
    assert "not verified" in result.out
    assert "--model" in result.out


# For scripts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def widened(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("widened")
    assert run("widen", str(saved("Qwen3-tied")), "--factor", "2", "-o", str(folder / "wide")).code == 0
    return folder / "wide"


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (["widen", "NARROW", "--factor", "2", "--dry-run"], {"recipe", "axes", "tensors", "bytes", "files", "config"}),
        (["verify", "WIDE"], {"agrees", "comparisons", "tolerance", "dtype"}),
        (["inspect", "NARROW"], {"recipe", "axes", "tensors"}),
        (["inspect", "WIDE"], {"recipe", "axes", "tensors", "record"}),
        (["hparams", "WIDE", "--lr", "1e-3"], {"groups", "formulas", "optimizer"}),
        (["recipes", "list"], {"recipes"}),
    ],
)
def test_json_is_one_document_and_nothing_else(command, keys, saved, widened):
    places = {"NARROW": str(saved("Qwen3-tied")), "WIDE": str(widened)}
    result = run(*(places.get(word, word) for word in command), "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert keys <= document.keys()
    assert document["schema_version"] == 1


def test_json_of_widen_is_its_record(saved, tmp_path):
    result = run("widen", str(saved("Llama-tied")), "--factor", "2", "-o", str(tmp_path / "wide"), "--json")
    document = json.loads(result.out)
    record = json.loads((tmp_path / "wide" / "mupscale.json").read_text())
    assert document["output"] == str(tmp_path / "wide")
    assert {key: document[key] for key in record} == record
    assert record["verification"]["agrees"] is True


def test_verify_keeps_its_figures(widened):
    assert run("verify", str(widened), "--dtype", "float32").code == 0
    assert json.loads((widened / "mupscale.json").read_text())["verification"]["dtype"] == "float32"


def test_dry_run_writes_nothing_and_shows_every_coefficient(saved, tmp_path):
    result = run("widen", str(saved("Llama-tied")), "--factor", "4", "-o", str(tmp_path / "wide"), "--dry-run")
    assert result.code == 0
    assert list(tmp_path.iterdir()) == []
    assert re.search(r"q_proj\.weight +32x48 -> 128x192 +\(kv g d\), /embed +1/4 +16", result.out)
    assert "hidden_size: 48 -> 192" in result.out


@pytest.mark.parametrize(
    "command",
    [
        ["recipes", "list"],
        ["recipes", "show", "gpt2"],
        ["recipes", "check", "llama", "--no-run"],
        ["inspect", "NARROW"],
        ["widen", "NARROW", "--factor", "2", "--dry-run"],
    ],
)
def test_piped_output_is_plain_and_whole(command, saved):
    result = run(*(str(saved("Llama-tied")) if word == "NARROW" else word for word in command))
    assert result.code == 0
    assert not ESCAPES.search(result.out)
    assert "…" not in result.out
    assert not any(line.endswith(" ") for line in result.out.splitlines())
    assert result.err == ""


def test_recipes_show_their_conditions_and_reasons():
    shown = run("recipes", "show", "llama").out
    assert "tied_readout" in shown
    assert "rotary frequencies" in shown


def test_check_against_a_checkpoint(saved):
    assert "each matches one rule and has its shape" in run("recipes", "check", "llama", str(saved("Llama-tied"))).out
    assert run("recipes", "check", "qwen3", str(saved("Llama-tied"))).code == 2


def test_inspect_tells_how_a_checkpoint_came_to_be(widened):
    shown = run("inspect", str(widened)).out
    assert "widened by mupscale" in shown
    assert "embed x2" in shown


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["widen"],
        ["verify"],
        ["inspect"],
        ["hparams"],
        ["sweep"],
        ["recipes"],
        ["demo"],
        ["doctor"],
        ["plot"],
        ["plot", "weights"],
        ["plot", "errors"],
        ["plot", "steps"],
        ["plot", "sweep"],
    ],
)
def test_every_command_explains_itself(command):
    result = run(*command, "--help")
    assert result.code == 0
    assert "Usage: mupscale" in result.out


def test_the_list_of_commands_is_that_of_the_commands():
    """The list is shown without importing them."""
    whole, listed = (typer.main.get_command(each) for each in (app, overview()))
    first_lines = {name: command.help.split("\n\n")[0].replace("\n", " ") for name, command in whole.commands.items()}
    assert {name: command.help for name, command in listed.commands.items()} == first_lines
    assert list(listed.commands) == list(whole.commands)
    assert [parameter.opts for parameter in listed.params] == [parameter.opts for parameter in whole.params]
    assert listed.help == whole.help
    heavy = ("mupscale_cli.plan", "mupscale_cli.cli.widen", "yaml", "torch")
    code = "import sys; sys.argv = ['mupscale', '--help']\nfrom mupscale_cli.cli.main import main\ntry: main()\n"
    code += f"finally: print(*[name for name in {heavy} if name in sys.modules], 'END')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "END"


def test_version():
    assert run("--version").out.strip() == mupscale_cli.__version__


@pytest.mark.parametrize("command", [["winden"], ["widen", "x", "--fctor", "2"], ["widen"]])
def test_misspelt_commands_end_in_2(command):
    assert run(*command).code == 2


# Interrupted ----------------------------------------------------------------------------------

# After a few blocks the process signals itself, so that it ends in the middle of writing.
INTERRUPT = """
import os, signal
import mupscale_cli.engine.streaming as streaming
write, blocks = streaming._expand, []
def interrupted(*arguments):
    blocks.append(1)
    if len(blocks) == 5:
        os.kill(os.getpid(), signal.{})
    return write(*arguments)
streaming._expand = interrupted
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -signal.SIGKILL)])
def test_an_interrupted_run_leaves_nothing_that_looks_like_a_checkpoint(name, code, saved, tmp_path):
    result = shell(
        "widen", str(saved("Llama-tied")), "--factor", "2", "-o", "wide", cwd=tmp_path, code=INTERRUPT.format(name)
    )
    assert result.returncode == code
    assert "Traceback" not in result.stderr
    left = [file.name for file in tmp_path.iterdir()]
    if name == "SIGKILL":
        assert len(left) == 1
        assert left[0].startswith(".wide.partial-")
    else:
        assert left == []
        assert {"SIGINT": "interrupted", "SIGTERM": "terminated"}[name] in result.stderr


# The demo -------------------------------------------------------------------------------------


def test_demo(tmp_path, monkeypatch):
    from mupscale_cli.tasks.demo import training

    monkeypatch.setattr(training, "STEPS", 5)
    monkeypatch.chdir(tmp_path)
    result = run("demo")
    assert result.code == 0, result.err
    for line in ("$ mupscale widen mupscale-demo/tiny --factor 4", "$ mupscale verify mupscale-demo/tiny-x4"):
        assert line in result.out
    assert result.out.count("same function (") == 2
    assert (tmp_path / "mupscale-demo" / "tiny-x4" / "tokenizer.json").is_file()
