"""Every command prints a JSON document that matches its schema."""

import json
import shlex
import sys

import jsonschema
import pytest

from cli_runner import commands_of, options_of, run
from helpers import MLP_MODULE, save_mlp
from mupscale_cli.cli.pages import page_titles
from mupscale_cli.record import FORMAT_VERSION
from mupscale_cli.record.documents import VERSIONS, load_schema

NET = """
import torch
config = {"width": 6, "hidden": 10}
def build(config):
    return torch.nn.Sequential(torch.nn.Linear(4, config["width"]), torch.nn.ReLU(),
                               torch.nn.Linear(config["width"], config["hidden"]), torch.nn.ReLU(),
                               torch.nn.Linear(config["hidden"], 3))
"""
TRAINER = "import json, sys; print(json.dumps({'loss': float(sys.argv[2])}))"


def check(text, name, code=0):
    """Check that a text is a document of a schema and return it."""
    document = json.loads(text)
    assert list(document)[:2] == ["schema", "schema_version"]
    assert (document["schema"], document["schema_version"]) == (name, VERSIONS[name])
    schema = load_schema(name)
    jsonschema.Draft202012Validator(schema).validate(document)
    assert (code == 2) == (name == "error")
    return document


@pytest.mark.parametrize("name", VERSIONS)
def test_every_schema_is_valid_and_describes_every_key(name):
    schema = load_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"].endswith(f":{name}:{VERSIONS[name]}") or name == "record"
    assert schema["title"]

    def bare(node, place):
        if isinstance(node, dict):
            for key, inner in node.get("properties", {}).items():
                if isinstance(inner, dict) and not inner.keys() & {"description", "const", "$ref"}:
                    yield f"{place}.{key}"
            for key, inner in node.items():
                yield from bare(inner, f"{place}.{key}")
        elif isinstance(node, list):
            for inner in node:
                yield from bare(inner, place)

    assert list(bare(schema, name)) == []
    assert json.loads(run("schema", name).out) == schema


def test_the_schema_of_the_record_has_its_version():
    assert VERSIONS["record"] == FORMAT_VERSION
    assert json.loads(run("schema").out) == VERSIONS


@pytest.fixture(scope="module")
def place(saved, tmp_path_factory):
    """A folder with narrow and wide models, a job file and a user-defined network."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "net.py").write_text(NET)
    (folder / "trainer.py").write_text(TRAINER)
    (folder / "job.yaml").write_text(
        f"steps:\n  - {{widen: {saved('Llama-tied')}, factor: 2, output: jobbed}}\n"
        "  - {verify: jobbed, only: [weights, config]}\n"
    )
    (folder / "mlp.py").write_text(MLP_MODULE)
    save_mlp(folder / "net.safetensors")
    assert run("widen", str(saved("Llama-tied")), "-f", "2", "-o", str(folder / "wide")).code == 0
    arguments = ["--noise", "0.1", "--noise-mode", "preserving", "-o", str(folder / "noisy")]
    assert run("widen", str(saved("Llama-tied")), "-f", "2", *arguments).code == 0
    return folder


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("widen NARROW -f 2 -o new", "widen"),
        ("widen NARROW -f 2 -o noisy-new --noise 0.1 --noise-mode preserving", "widen"),
        ("widen net.safetensors -f 2 -o net-new.safetensors", "widen"),
        ("widen NARROW -f 2 --dry-run", "plan"),
        ("widen NARROW -f 2 --dry-run --method net2net --seed 3", "plan"),
        ("verify wide --steps 2", "verify"),
        ("verify noisy", "verify"),
        ("verify wide --only weights --only files", "verify"),
        ("inspect NARROW", "inspect"),
        ("inspect wide", "inspect"),
        ("inspect net.py", "description"),
        ("inspect .", "description"),
        ("inspect wide --tensor q_proj", "explain"),
        ("recipes show llama --tensor q_proj", "explain"),
        ("widen NARROW -f 2 --dry-run --tensor norm", "explain"),
        ("plot weights wide -o weights.svg", "plot"),
        ("doctor", "doctor"),
        ("hparams wide --lr 1e-3 --weight-decay 0.1", "hparams"),
        ("hparams wide --lr 1e-3 --optimizer sgd", "hparams"),
        ("recipes list", "recipes"),
        ("recipes coverage --task masked-lm", "coverage"),
        ("recipes show llama NARROW", "recipe"),
        ("recipes show mamba", "recipe"),
        ("recipes check llama --no-run", "recipe-check"),
        ("recipes check mlp net.safetensors --model mlp.py:build", "recipe-check"),
        ("recipes infer net.py:build", "recipe-draft"),
        ("run job.yaml --dry-run", "run"),
        ("run job.yaml", "run"),
        ("run ./job.yaml", "run"),
        ("version", "version"),
        ("help", "help"),
        ("help json", "help"),
        ("widen nowhere -f 2", "error"),
        ("widen NARROW -f two", "error"),
        ("widen NARROW --fctor 2", "error"),
        ("widen", "error"),
        ("run net.py", "error"),
        ("help me", "error"),
        ("recipes show lama", "error"),
    ],
)
def test_documents(line, name, place, saved, monkeypatch):
    monkeypatch.chdir(place)
    words = [str(saved("Llama-tied")) if word == "NARROW" else word for word in shlex.split(line)]
    result = run(*words, "--json")
    assert result.code == (2 if name == "error" else 0), result.err
    check(result.out, name, result.code)


def test_a_coordinate_check_is_a_document(saved):
    words = [
        str(saved("Llama-tied")),
        "-f",
        "2,4,8",
        "--seeds",
        "1",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--length",
        "8",
    ]
    result = run("coordcheck", *words, "--no-picture", "--json")
    found = check(result.out, "coordcheck", result.code)
    assert [len(layer["sizes"]) for layer in found["layers"]] == [2] * len(found["layers"])


def test_a_sweep_is_a_document_and_so_is_its_file(place, saved, monkeypatch):
    monkeypatch.chdir(place)
    command = f"{shlex.quote(sys.executable)} trainer.py {{checkpoint}} {{lr}}"
    result = run(
        "sweep",
        str(saved("Llama-tied")),
        "--command",
        command,
        "-f",
        "2",
        "--lr",
        "1e-3,1e-2",
        "--noise",
        "0",
        "-o",
        "swept",
        "--no-picture",
        "--json",
    )
    assert result.code == 0, result.err
    assert check(result.out, "sweep") == check((place / "swept" / "sweep.json").read_text(), "sweep")
    found = run("hparams", "wide", "--from-sweep", "swept/sweep.json", "--json")
    check(found.out, "hparams")


def test_a_push_is_a_document(hub, place, monkeypatch):
    monkeypatch.chdir(place)
    assert check(run("push", "wide", "me/wide", "--dry-run", "--json").out, "push")["url"] is None
    assert check(run("push", "wide", "me/wide", "--json").out, "push")["commit"]


@pytest.mark.slow
def test_the_demo_is_one_document(tmp_path, monkeypatch):
    from mupscale_cli.tasks.demo import training

    monkeypatch.setattr(training, "STEPS", 3)
    monkeypatch.chdir(tmp_path)
    result = run("demo", "--json")
    assert result.code == 0, result.err
    document = check(result.out, "demo")
    for command, name in zip(document["commands"], ("widen", "verify", "widen"), strict=True):
        check(json.dumps(command["printed"]), name)


def test_models_that_differ_are_reported_as_a_document(place, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = 'extends: llama\ntensors:\n  "{prefix}layers.*.mlp.down_proj.weight": "embed, ffn"\n'
    (tmp_path / "wrong.yaml").write_text(text)
    result = run("widen", str(saved("Llama-tied")), "-f", "2", "--recipe", "wrong.yaml", "--json")
    assert result.code == 1
    assert check(result.out, "widen")["output"] is None


def test_the_record_matches_its_schema(place):
    for folder in ("wide", "noisy"):
        record = json.loads((place / folder / "mupscale.json").read_text())
        schema = load_schema("record")
        jsonschema.Draft202012Validator(schema).validate(record)


@pytest.mark.parametrize("command", list(commands_of()), ids=" ".join)
def test_every_command_has_the_common_options(command):
    shown = run(*command, "--help")
    assert shown.code == 0
    for option in ("--json", "--quiet", "-q", "--verbose", "-v", "--debug", "--color", "--log-file"):
        assert option in shown.out


def test_every_option_and_argument_is_described():
    lacking = [(name, parameter.name) for name, parameter in options_of() if not getattr(parameter, "help", None)]
    assert lacking == []


def test_the_pages_are_found():
    assert "json" in page_titles()
