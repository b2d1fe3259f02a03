"""Widen from disk to disk: files, names, companions, and what a failure leaves."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import mlp_tensors, save_mlp
from mupscale_cli.engine.events import Events
from mupscale_cli.errors import OutputError, PlanError
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen
from outputs import KIB, digests, listing, metadata_of, repeated, shards_of


def test_a_single_file_is_widened_to_a_file_and_a_config(saved, tmp_path):
    shutil.copy(saved("Llama-tied") / "model.safetensors", tmp_path / "tiny.safetensors")
    shutil.copy(saved("Llama-tied") / "config.json", tmp_path / "tiny.config.json")
    widened = widen(tmp_path / "tiny.safetensors", factor=2, max_shard_size=1)
    assert widened.output == tmp_path / "tiny-x2.safetensors"
    assert widened.verification.agrees  # transformers wants a directory; the file stands in for one
    assert listing(tmp_path) == [
        "tiny-x2.config.json",
        "tiny-x2.safetensors",
        "tiny.config.json",
        "tiny.safetensors",
    ]
    assert json.loads((tmp_path / "tiny-x2.config.json").read_text())["hidden_size"] == 96
    record = json.loads(metadata_of(widened.output)["mupscale"])
    assert record == widened.record
    assert record["verification"]["agrees"] is True
    # It is again a checkpoint, and finds its own config, not another's.
    again = widen(widened.output, factor=2)
    assert again.output == tmp_path / "tiny-x2-x2.safetensors"
    assert again.verification.agrees
    assert json.loads((tmp_path / "tiny-x2-x2.config.json").read_text())["hidden_size"] == 192


def test_a_single_file_without_a_config_is_widened_to_a_file(tmp_path):
    widened = widen(save_mlp(tmp_path / "mlp.safetensors"), factor=2)
    assert listing(tmp_path) == ["mlp-x2.safetensors", "mlp.safetensors"]
    after = load_file(widened.output)
    assert torch.equal(after["2.weight"], repeated(mlp_tensors()["2.weight"], 2, 2) / 2)
    assert metadata_of(widened.output)["format"] == "pt"


def test_other_metadata_of_a_file_are_ignored(tmp_path):
    save_file(
        mlp_tensors(), tmp_path / "mlp.safetensors", metadata={"format": "pt", "mupscaler": "{", "note": "x" * 9999}
    )
    widened = widen(tmp_path / "mlp.safetensors", factor=2)
    assert json.loads(metadata_of(widened.output)["mupscale"]) == widened.record


@pytest.mark.parametrize(
    ("factor", "axes", "name"),
    [
        (2, {}, "narrow-x2"),
        (3, {"ffn": 2}, "narrow-x3-ffn2"),
        (None, {"ffn": 4}, "narrow-ffn4"),
        (None, {"g": 3, "embed": 2}, "narrow-g3-embed2"),
    ],
)
def test_the_name_of_the_output_contains_the_factors(factor, axes, name, saved, tmp_path):
    source = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    assert widen(source, factor=factor, axes=axes, verify=False).output == tmp_path / name
    assert (tmp_path / name / "model.safetensors").is_file()


def test_the_output_of_the_current_folder_is_named_after_it(saved, tmp_path, monkeypatch):
    source = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    monkeypatch.chdir(source)
    widened = widen(".", tmp_path / "new" / "folders" / "wide", 2, verify=False)
    assert listing(widened.output)
    monkeypatch.chdir(tmp_path)
    assert widen("narrow", factor=2, verify=False).output.resolve() == tmp_path / "narrow-x2"


def spoil_expansion(monkeypatch):
    """Make every program compute wrong values."""
    from mupscale_cli.engine import streaming

    def wrong(*arguments, **options):
        right(*arguments, **{**options, "scale": options["scale"] * 1.01})

    right = streaming.expand
    monkeypatch.setattr(streaming, "expand", wrong)


def test_a_model_that_differs_is_not_published(saved, tmp_path, monkeypatch):
    spoil_expansion(monkeypatch)
    widened = widen(saved("Llama-tied"), tmp_path / "wide", 2)
    assert not widened.verification.agrees
    assert not list(tmp_path.iterdir())


def test_a_model_that_differs_does_not_replace_a_correct_one(saved, tmp_path, monkeypatch):
    widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=False)
    before = digests(tmp_path / "wide")
    spoil_expansion(monkeypatch)
    assert not widen(saved("Llama-tied"), tmp_path / "wide", 2, overwrite=True).verification.agrees
    assert digests(tmp_path / "wide") == before
    assert listing(tmp_path) == ["wide"]


def test_neither_a_file_that_differs_nor_its_config_is_published(saved, tmp_path, monkeypatch):
    shutil.copy(saved("Llama-tied") / "model.safetensors", tmp_path / "tiny.safetensors")
    shutil.copy(saved("Llama-tied") / "config.json", tmp_path / "tiny.config.json")
    spoil_expansion(monkeypatch)
    assert not widen(tmp_path / "tiny.safetensors", factor=2).verification.agrees
    assert listing(tmp_path) == ["tiny.config.json", "tiny.safetensors"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, OSError])
@pytest.mark.parametrize(("phase", "num_left"), [("widening", 0), ("verifying", 1)])
def test_a_stopped_widening_leaves_only_finished_files(stop, phase, num_left, saved, tmp_path):
    def raise_in(name, _total):
        if name == phase:
            raise stop

    with pytest.raises(stop):
        widen(saved("Llama-tied"), tmp_path / "wide", 2, events=Events(phase=raise_in))
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == num_left
    assert all(name.startswith(".wide.partial-") for name in left)  # `--resume` continues in it


def test_stopping_in_the_middle_of_the_data_leaves_the_old_output(saved, tmp_path):
    widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=False)
    before = digests(tmp_path / "wide")

    def stop(_count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        widen(saved("Llama-tied"), tmp_path / "wide", 3, overwrite=True, events=Events(advance=stop))
    assert digests(tmp_path / "wide") == before
    assert listing(tmp_path) == ["wide"]


def test_an_existing_output_is_replaced_whole_and_only_on_request(saved, tmp_path):
    widen(saved("Llama-tied"), tmp_path / "wide", 3, max_shard_size=30 * KIB, verify=False)
    with pytest.raises(OutputError, match="overwrite"):
        widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=False)
    assert len(shards_of(tmp_path / "wide")) > 2
    widen(saved("Llama-tied"), tmp_path / "wide", 2, overwrite=True, verify=False)
    assert len(shards_of(tmp_path / "wide")) == 1
    assert "model.safetensors.index.json" not in listing(tmp_path / "wide")
    assert listing(tmp_path) == ["wide"]


def test_the_source_is_never_touched(saved, tmp_path):
    source = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    before = digests(source)
    widen(source, factor=2)
    assert digests(source) == before


@pytest.mark.parametrize(
    ("factor", "axes", "says"),
    [
        (None, {}, "nothing is widened"),
        (1, {}, "nothing is widened"),
        (0, {}, "from 1 to 4096"),
        (2, {"nose": 2}, "nose"),
        (2, {"d": 1.5}, "frequencies"),
    ],
)
def test_factors_are_refused_before_anything_is_written(factor, axes, says, saved, tmp_path):
    with pytest.raises(PlanError, match=says):
        widen(saved("Llama-tied"), tmp_path / "wide", factor, axes)
    assert not list(tmp_path.iterdir())


def test_a_shard_size_of_0_is_refused(saved):
    with pytest.raises(PlanError, match="shard size"):
        plan_widening(saved("Llama-tied"), factor=2, max_shard_size=0)


def test_progress_is_reported_by_phases_and_adds_up(saved, tmp_path):
    phases, counts = [], {}

    def advance(count):
        counts[phases[-1][0]] = counts.get(phases[-1][0], 0) + count

    events = Events(lambda *phase: phases.append(phase), advance)
    widened = widen(saved("Llama-tied"), tmp_path / "wide", 2, events=events)
    runs = ["running narrow model", "running wide model"]
    assert [name for name, _ in phases] == [
        "building the class without data",
        "hashing source",
        "widening",
        "reading back",
        "verifying",
        *runs,
    ]
    assert all(0 < counts[name] <= dict(phases)[name] for name in runs)
    assert dict(phases)["hashing source"] == counts["hashing source"]
    assert dict(phases)["widening"] == widened.plan.num_bytes == counts["widening"]


def test_the_output_matches_the_plan(saved, tmp_path):
    plan = plan_widening(saved("Olmo2-tied"), factor=2, axes={"ffn": 3}, max_shard_size=50 * KIB)
    widened = widen(saved("Olmo2-tied"), tmp_path / "wide", plan=plan, verify=False)
    assert widened.plan is plan
    for shard in plan.shards:
        tensors = load_file(tmp_path / "wide" / shard.file)
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
            tensor.target.name: tensor.target.shape for tensor in shard.tensors
        }
    assert {file.name for file in shards_of(tmp_path / "wide")} == {shard.file for shard in plan.shards}
    assert json.loads((tmp_path / "wide" / "config.json").read_text()) == plan.config


def test_a_complete_output_is_left_as_it_is(saved, tmp_path):
    target = tmp_path / "wide"
    first = widen(saved("Llama-tied"), target, 2, verify=False)
    before = {file.name: file.stat().st_mtime_ns for file in target.iterdir()}
    again = widen(saved("Llama-tied"), target, 2, verify=False)
    assert (first.is_new, again.is_new) == (True, False)
    assert again.record == first.record
    assert {file.name: file.stat().st_mtime_ns for file in target.iterdir()} == before
    verified = widen(saved("Llama-tied"), target, 2)  # only now
    assert not verified.is_new
    assert verified.verification.agrees
    assert widen(saved("Llama-tied"), target, 2).verification is None  # the record has it


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"factor": 4}, "it was widened by"),
        ({"factor": 2, "tie": "untie"}, "its tie differs"),
        ({"factor": 2, "settings": {"rms_norm_eps": 0.5}}, "its config differs"),
    ],
)
def test_an_output_with_other_options_is_refused_with_the_reason(options, reason, saved, tmp_path):
    widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=False)
    with pytest.raises(OutputError, match=f"already exists: {reason}"):
        widen(saved("Llama-tied"), tmp_path / "wide", verify=False, **options)


def test_weights_that_are_not_what_was_written_are_noticed(saved, tmp_path, monkeypatch):
    """As by faulty memory: a byte changes between writing and publishing."""

    def write_and_damage(output, directory, events):
        file = directory / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        return write_companions(output, directory, events)

    widen_module = sys.modules["mupscale_cli.tasks.widen"]
    write_companions = widen_module._write_companions
    monkeypatch.setattr(widen_module, "_write_companions", write_and_damage)
    with pytest.raises(OutputError, match=r"`model.safetensors` is not what was written"):
        widen(saved("Llama-untied"), tmp_path / "wide", 2)
    assert not (tmp_path / "wide").exists()
    monkeypatch.undo()
    assert widen(saved("Llama-untied"), tmp_path / "wide", 2, resume=True).verification.agrees  # it is written again
    assert listing(tmp_path) == ["wide"]
