"""Damaged and malicious input: one error message, bounded work, and no access to anything but the user's files.

Random bytes for every reader (`fuzzing/targets.py`), those that once found something (`corpus/`), and each promise.
"""

import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cli_runner import run
from fuzzing.targets import MODELS, TARGETS, specs_of
from fuzzing.targets import run as run_target
from mupscale_cli.architecture.document import parse_document
from mupscale_cli.architecture.expressions import evaluate, parse_expression
from mupscale_cli.architecture.layouts import parse_layout
from mupscale_cli.architecture.loading import load_recipe
from mupscale_cli.architecture.patterns import parse_pattern
from mupscale_cli.architecture.syntax import LanguageError
from mupscale_cli.checkpoints.header import read_header
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import CheckpointError, MupscaleError, RecipeError, printable
from mupscale_cli.optimizers.finding import open_optimizer
from mupscale_cli.optimizers.scheduler import widen_scheduler
from mupscale_cli.plan import Request, make_plan
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

CORPUS = sorted(path for path in (Path(__file__).parent.parent / "corpus").glob("*/*"))
FIXED = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", TARGETS)
def test_random_bytes_end_in_an_error_message(name):
    settings(FIXED, max_examples=40)(given(st.binary(max_size=60))(lambda data: run_target(name, data)))()


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_random_bytes_end_in_a_message(name):
    settings(FIXED, max_examples=3000)(given(st.binary(max_size=400))(lambda data: run_target(name, data)))()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_former_crashes_end_in_an_error_message(path):
    run_target(path.parent.name, path.read_bytes())


@pytest.fixture
def narrow(saved, tmp_path):
    """Return a model directory that the test may change."""
    return shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")


def refused(*arguments):
    """Run a command that must fail and return its error message."""
    result = run(*map(str, arguments))
    assert result.code == 2, result
    assert "Traceback" not in result.err
    return result.err


class Touch:
    """Return a pickle that creates a file when it is loaded without restrictions."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


# Headers and JSON -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("a", "[" + ",".join(["9223372036854775807"] * 500) + "]", "no valid shape"),
        ("a", "[9223372036854775807,9223372036854775807]", "more bytes than a file can hold"),
        ("a", "[" + "9" * 5000 + "]", "not JSON"),
        ("\\ud800", "[1]", "not printable"),
        ("\\u001b[2J", "[1]", "not printable"),
        ("a" * 2000, "[1]", "longer than 1000"),
    ],
    ids=["many-sizes", "large-sizes", "digits", "surrogate", "escape", "long-name"],
)
def test_oversized_headers_are_refused(name, shape, message, tmp_path):
    text = f'{{"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}'.encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "nested deeper than 64 levels"),
        ('{"a":' + "[" * 100 + "]" * 100 + "}", "nested deeper than 64 levels"),
        ('{"a":' + "9" * 5000 + "}", "not valid JSON"),
        ('{"a":"\\ud800"}', "surrogate"),
        ('{"a":"' + "x" * (16 << 20) + '"}', "larger than 16.0 MB"),
        ("[1]", "not a JSON object"),
    ],
    ids=["deep", "deeper-than-64", "digits", "surrogate", "large", "list"],
)
def test_oversized_json_is_refused(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 10**4000},
        {"hidden_size": float("nan")},
        {"num_attention_heads": [[]] * 1000},
        {"intermediate_size": "40"},
        {"num_key_value_heads": {"a": 1}},
        {"head_dim": -8},
        {"model_type": ["llama"]},
        {"model_type": "x" * 10**6},
        {"architectures": {"a": 1}},
    ],
    ids=lambda change: f"{next(iter(change))}-{type(next(iter(change.values()))).__name__}",
)
def test_malformed_configs_are_refused(change, narrow):
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**config, **change}))
    result = run("widen", str(narrow), "--factor", "2", "--no-verify", "--dry-run")
    assert result.code in (0, 2)
    assert "Traceback" not in result.err
    assert len(result.err) < 20_000
    verified = run("widen", str(narrow), "--factor", "2")  # transformers, too, may be given anything
    assert verified.code == result.code or "architectures" in change, verified
    assert "Traceback" not in verified.err


def test_a_config_with_more_layers_than_tensors_is_refused(narrow):
    widen(narrow, narrow.parent / "wide", 2, verify=False)
    for folder in (narrow, narrow.parent / "wide"):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    assert "has only 34 tensors" in refused("widen", narrow, "--factor", "2")


@pytest.mark.parametrize(
    "change",
    [
        {"num_labels": 10**9},
        {"max_seq_len": 10**8},
        {"n_positions": 10**8},
        {"max_position_embeddings": 10**9},
        {"num_local_experts": 10**9},
        {"vocab_size": 10**9},
        {"num_hidden_layers": 1e9},
        {"text_config": {"num_labels": 10**9}},
        {"depths": [1, 10**9]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_config_asks_for_no_more_than_its_tensors_show(change, narrow):
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**config, **change}))
    key = next(iter(change.get("text_config", change)))
    for command in (("inspect", narrow), ("widen", narrow, "--factor", 2, "--no-verify")):
        assert f"config.json sets `{key}` to" in refused(*command)
    assert [file.name for file in narrow.parent.iterdir()] == ["narrow"]


def test_a_table_that_the_tensors_do_not_show_is_not_allocated(saved, tmp_path):
    narrow = shutil.copytree(saved("DebertaV2-shared"), tmp_path / "narrow")
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**config, "position_buckets": 1 << 20}))
    message = refused("widen", narrow, "--factor", 2)
    assert "describes a model of" in message
    assert not (tmp_path / "narrow-x2").exists()


@pytest.mark.parametrize(
    "usual",
    [
        {"max_position_embeddings": 10_485_760},  # of rotary positions
        {"num_labels": 1000},
        {"rope_theta": 1_000_000_000},
        {"sliding_window": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_usual_configs_are_within_the_limits(usual, narrow):
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**config, **usual}))
    assert open_checkpoint(narrow).config == {**config, **usual}


def listing(folder):
    return sorted(file.name for file in folder.iterdir())


def test_factors_have_a_limit(narrow):
    assert "from 1 to 4096" in refused("widen", narrow, "--factor", 10**9)
    assert "expected a number from 1 to 4096" in refused("widen", narrow, "--factor", "9" * 4000)


# Recipes --------------------------------------------------------------------------------------

LAUGHS = "a: &a [lol, lol]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "anchors and aliases"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: " + "{" * 100_000, "nested too deeply"),
        ("- " * 100_000, "nested too deeply"),
        ("? " * 100_000, "nested too deeply"),
        ("a: !!python/object/apply:os.system [id]", "tag"),
        ("a: b\n" * 300_000, "larger than 1048576 bytes"),
    ],
    ids=["laughs", "lists", "mappings", "items", "keys", "tag", "large"],
)
def test_oversized_yaml_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_document(text, "mine.yaml")


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_pattern, "*" * 30, "too many ways"),
        (parse_pattern, "**.a.**.b.**.c", "too many ways"),
        (parse_pattern, "*a*a*a*a", "too many ways"),
        (parse_pattern, "{a,aa}" * 30, "too many ways"),
        (parse_pattern, "{first}{a}{b}{c}{d}{e}", "too many ways"),
        (parse_pattern, "{a}.{a}", "twice"),
        (parse_layout, "9" * 5000, "digits"),
        (parse_layout, "embed | embed^" + "9" * 5000, "digits"),
        (parse_layout, "(" * 1000, "more than|deeper than"),
        (parse_expression, "+".join("a" * 100_000), "more than"),
        (parse_expression, "not " * 400 + "a", "deeper than"),
        (parse_expression, "a[" + "9" * 5000 + "]", "digits"),
    ],
)
def test_oversized_recipe_texts_are_refused(parse, text, message):
    with pytest.raises(LanguageError, match=message):
        parse(text)


@pytest.mark.parametrize("text", ["a * a * a", "a + 1.5", "a - 2 * a", "a // 0.1"])
def test_numbers_too_large_to_compute_with_are_refused(text):
    with pytest.raises(LanguageError, match="too large"):
        evaluate(parse_expression(text), {"a": 10**4000})


def test_prefixes_are_literal_text(tmp_path):
    text = "prefix: [{prefix: '', 'prefix:>99999999999': ''}]\naxes: {a: a}\ntensors: {'x': a}\n"
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match="not a valid name"):
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize("name", ["../secret", "/etc/secret", "a/b", "..", "a\\b"])
def test_recipes_extend_only_files_in_the_same_folder(name, tmp_path):
    (tmp_path / "secret.yaml").write_text("extends: llama\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.yaml").write_text(f"extends: '{name}'\n")
    with pytest.raises(RecipeError, match="unknown recipe"):
        load_recipe(tmp_path / "folder" / "mine.yaml")


def test_axes_that_count_tensors_are_limited_by_their_number():
    config = {**MODELS["Mixtral-untied"]["config"], "num_local_experts": 2**62}
    recipe = load_recipe("mixtral", config)
    with pytest.raises(RecipeError, match="counts tensors"):
        make_plan(recipe, specs_of("Mixtral-untied"), config, Request(2))


# Paths ----------------------------------------------------------------------------------------

ELSEWHERE = [
    "../x.safetensors",
    "/x.safetensors",
    "a/x.safetensors",
    "..\\x.safetensors",
    "C:x.safetensors",
    "x\0.safetensors",
    "..",
    "",
]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_index_lists_only_files_in_its_folder(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    for index in ("model", "optimizer"):
        (folder / f"{index}.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match="not a safetensors file in the same folder"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="not a safetensors file in the same folder"):
        open_optimizer(folder / "optimizer.safetensors.index.json", None)


def test_a_malformed_index_is_refused(tmp_path):
    for content in ({"weight_map": ["x"]}, {"weight_map": {"x": 1}}, {}):
        (tmp_path / "optimizer.safetensors.index.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="no valid `weight_map`"):
            open_optimizer(tmp_path / "optimizer.safetensors.index.json", None)


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", "config.json", "scheduler.pt", "trainer_state.json"])
def test_links_out_of_a_checkpoint_are_refused(name, narrow, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text((narrow / "config.json").read_text())
    (narrow / name).unlink(missing_ok=True)
    (narrow / name).symlink_to(secret)
    names = [spec.name for spec in open_checkpoint(narrow).specs] if name != "config.json" else []
    defaults = torch.optim.AdamW([torch.zeros(1)]).defaults
    groups = [{**defaults, "params": list(range(len(names))), "param_names": names}]
    torch.save({"state": {}, "param_groups": groups}, narrow / "optimizer.pt")
    assert "links to" in refused("widen", narrow, "--factor", "2", "--no-verify")
    assert {path.name for path in tmp_path.iterdir()} == {"narrow", "secret"}


def test_links_in_the_hub_cache_and_within_a_checkpoint_are_followed(narrow, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (narrow / "LICENSE").write_text("free")
    for number, file in enumerate(sorted(narrow.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    (snapshot / "NOTICE").symlink_to("LICENSE")
    widen(snapshot, tmp_path / "wide", 2, verify=False)
    assert (tmp_path / "wide" / "LICENSE").read_text() == (tmp_path / "wide" / "NOTICE").read_text() == "free"
    assert not any(path.is_symlink() for path in (tmp_path / "wide").iterdir())


def test_weights_may_link_anywhere(narrow, tmp_path):
    (narrow / "model.safetensors").rename(tmp_path / "weights")
    (narrow / "model.safetensors").symlink_to(tmp_path / "weights")
    widen(narrow, tmp_path / "wide", 2, verify=False)
    assert not (tmp_path / "wide" / "model.safetensors").is_symlink()


def test_an_output_that_is_a_link_is_not_followed(narrow, tmp_path):
    widen(narrow, tmp_path / "wide", 2, verify=False)
    (tmp_path / "link").symlink_to("wide")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        assert "exists" in refused("widen", narrow, "--factor", "2", "-o", tmp_path / name)
        message = refused("widen", narrow, "--factor", "2", "-o", tmp_path / name, "--overwrite")
        assert "is a link, and the output is a folder" in message


def test_a_link_named_like_an_unfinished_output_is_not_followed(narrow, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").write_text("words")
    (tmp_path / ".wide.partial-0123abcd").symlink_to("precious")
    widen(narrow, tmp_path / "wide", 2, verify=False, resume=True)
    assert [path.name for path in (tmp_path / "precious").iterdir()] == ["thesis"]


@pytest.mark.parametrize("name", ["../optimizer.pt", "/etc/passwd", 5])
def test_a_record_cannot_name_a_state_outside_the_checkpoint(name, narrow, tmp_path):
    widen(narrow, tmp_path / "wide", 2, verify=False)
    record = json.loads((tmp_path / "wide" / "mupscale.json").read_text())
    hashes = {"source_digest": "0", "digest": "0"}
    record["optimizer_state"] = {"file": name, "format": "torch", "kinds": ["adamw"], "policy": "copy", **hashes}
    (tmp_path / "wide" / "mupscale.json").write_text(json.dumps(record))
    assert "is damaged: `optimizer_state.file` is" in refused("verify", tmp_path / "wide", "--steps", "1")


# Code -----------------------------------------------------------------------------------------


def archive(file, text, *, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", compression) as written:
        for name, content in {"data.pkl": text, "version": b"3\n", "byteorder": b"little"}.items():
            written.writestr(f"archive/{name}", content)
    return file


def test_pickles_are_never_executed(narrow, tmp_path):
    touched = tmp_path / "touched"
    archive(narrow / "optimizer.pt", pickle.dumps(Touch(touched), protocol=2))
    assert "a pickle could run code" in refused("widen", narrow, "--factor", "2", "--no-verify")
    with pytest.raises(CheckpointError, match="cannot read the scheduler state"):
        widen_scheduler(narrow / "optimizer.pt", tmp_path / "x.pt", [])
    assert not touched.exists()
    assert not (tmp_path / "narrow-x2").exists()


def test_distributed_checkpoints_run_no_code(narrow, tmp_path):
    touched = tmp_path / "touched"
    (narrow / "optimizer").mkdir()
    (narrow / "optimizer" / ".metadata").write_bytes(pickle.dumps(Touch(touched)))
    assert "whose code could run" in refused("widen", narrow, "--factor", "2", "--no-verify")
    assert not touched.exists()
    pickle.loads((narrow / "optimizer" / ".metadata").read_bytes())  # noqa: S301
    assert touched.exists()  # so what is not run above is code indeed


def test_archives_that_expand_are_refused(tmp_path):
    bomb = archive(tmp_path / "optimizer.pt", bytes(50_000_000), compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="it is compressed"):
        open_optimizer(bomb, None)


def test_cyclic_structures_are_refused(tmp_path):
    endless = []
    endless.append(endless)
    laughs = ["x"]
    for _ in range(60):
        laughs = [laughs, laughs]
    wide = [0] * 1000
    for _ in range(3):
        wide = [wide] * 1000
    for content in (endless, laughs, wide):
        torch.save({"state": {}, "param_groups": [], "x": content}, tmp_path / "optimizer.pt")
        with pytest.raises(CheckpointError, match="nested deeper"):
            open_optimizer(tmp_path / "optimizer.pt", None)


def own_code(folder, touched):
    """Add every kind of code that a checkpoint can bring for transformers."""
    (folder / "evil.py").write_text(f"open({str(touched)!r}, 'w')\n")
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(touched)!r}, 'w')\ndef generate(): pass\n")
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoModel": "evil.Model"}
    return {**config, "auto_map": auto_map}


@pytest.mark.parametrize("change", [{}, {"architectures": None}], ids=["named", "unnamed"])
def test_code_in_a_checkpoint_is_not_executed(change, narrow, tmp_path):
    touched = tmp_path / "touched"
    (narrow / "config.json").write_text(json.dumps({**own_code(narrow, touched), **change}))
    widened = widen(narrow, tmp_path / "wide", 2)
    assert widened.verification.agrees
    assert verify(tmp_path / "wide").agrees
    assert not touched.exists()


@pytest.mark.parametrize(
    "change", [{"model_type": "evil"}, {"architectures": ["EvilForCausalLM"]}, {"architectures": ["pipeline"]}]
)
def test_a_model_that_needs_its_own_code_is_refused(change, narrow, tmp_path):
    touched = tmp_path / "touched"
    (narrow / "config.json").write_text(json.dumps({**own_code(narrow, touched), **change}))
    widened = widen(narrow, tmp_path / "wide", 2, recipe="llama")
    assert widened.verification is None
    assert "does not run the checkpoint's own code, `auto_map`" in widened.skipped
    assert "does not run the checkpoint's own code, `auto_map`" in refused(
        "verify", tmp_path / "wide", "--recipe", "llama"
    )
    assert not touched.exists()


def test_pickles_with_other_names_are_not_loaded_as_weights(narrow, tmp_path):
    (narrow / "model.safetensors").rename(narrow / "weights.safetensors")
    tensors = load_file(narrow / "weights.safetensors")
    torch.save({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, narrow / "pytorch_model.bin")
    assert widen(narrow, tmp_path / "wide", 2).verification.agrees


# Secrets --------------------------------------------------------------------------------------

TOKEN = "hf_" + "a1B2" * 9


def test_tokens_appear_in_no_message_and_no_file(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    for address in (f"https://user:{TOKEN}@huggingface.co/org/name", f"https://user:pass-word@host/org/{TOKEN}"):
        error = refused("widen", address, "--factor", "2")
        assert "no checkpoint" in error
        assert TOKEN not in error
        assert "pass-word" not in error
    result = run("widen", str(saved("Llama-tied")), "--factor", "2", "-o", "wide", "--json", "--no-verify")
    assert result.code == 0
    assert TOKEN not in result.out + result.err
    for file in (tmp_path / "wide").iterdir():
        assert TOKEN.encode() not in file.read_bytes()


def test_messages_are_printable_and_of_limited_length():
    error = MupscaleError("\x1b[2J\x07 \u202e \ud800 " + "x" * 10**6, hint=f"Bearer {TOKEN}")
    assert str(error).isprintable() or "\n" in str(error)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 5000
    assert TOKEN not in str(error)
    str(error).encode()
    assert printable("plain `text`\nof two lines") == "plain `text`\nof two lines"
