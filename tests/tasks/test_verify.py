"""Verify checkpoints on disk: find the source, notice changes, choose the newest checkpoint."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_runner import run
from helpers import MLP_MODULE, save_mlp
from mupscale_cli.errors import CheckpointError, MupscaleError, VerifyError
from mupscale_cli.tasks.recorded import newest_widened
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.result import CannotVerify


@pytest.fixture(scope="module")
def widened_pair(saved, tmp_path_factory):
    """A folder with `narrow` and an unverified `wide`."""
    folder = tmp_path_factory.mktemp("pair")
    shutil.copytree(saved("Llama-tied"), folder / "narrow")
    widen(folder / "narrow", folder / "wide", 3, verify=False)
    return folder


@pytest.fixture
def pair(widened_pair, tmp_path):
    """A copy of the pair for one test."""
    return shutil.copytree(widened_pair, tmp_path / "pair")


@pytest.fixture
def mlp_pair(tmp_path):
    """A pair of single files and the option that builds their model."""
    (tmp_path / "net.py").write_text(MLP_MODULE)
    widen(save_mlp(tmp_path / "mlp.safetensors"), factor=2)
    return tmp_path / "mlp-x2.safetensors", f"{tmp_path / 'net.py'}:build"


def record_of(directory):
    return json.loads((directory / "mupscale.json").read_text())


def change_record(directory, **values):
    (directory / "mupscale.json").write_text(json.dumps({**record_of(directory), **values}))


def change_weights(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


# Finding the source ---------------------------------------------------------------------------


def test_the_record_is_enough_to_verify(pair):
    found = verify(pair / "wide", dtype="float64")
    assert found.agrees
    assert found.function.max_rel < 1e-12


def test_a_pair_that_moved_together_is_verified(pair, tmp_path, monkeypatch):
    (tmp_path / "disk" / "models").mkdir(parents=True)
    pair.rename(tmp_path / "disk" / "models" / "moved")
    assert verify(tmp_path / "disk" / "models" / "moved" / "wide").agrees
    monkeypatch.chdir(tmp_path / "disk" / "models" / "moved" / "wide")
    assert verify(".").agrees


def test_a_wide_checkpoint_that_moved_alone_has_no_source(pair, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    wide = (pair / "wide").rename(tmp_path / "elsewhere" / "wide")
    with pytest.raises(CheckpointError, match="mupscale verify NARROW WIDE"):
        verify(wide)
    assert verify(wide, pair / "narrow").agrees


def test_the_source_in_another_folder_is_found_from_anywhere(saved, tmp_path, monkeypatch):
    shutil.copytree(saved("Llama-tied"), tmp_path / "in" / "narrow")
    monkeypatch.chdir(tmp_path / "in")
    widen("narrow", tmp_path / "out" / "deep" / "wide", 2, verify=False)
    monkeypatch.chdir("/")
    assert verify(tmp_path / "out" / "deep" / "wide").agrees


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_source_is_named(name, pair):
    file = pair / "narrow" / name
    data = bytearray(file.read_bytes())
    if name == "config.json":
        data += b"\n"
    else:
        data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        verify(pair / "wide")
    with pytest.raises(CheckpointError, match=name):
        verify(pair / "wide", pair / "narrow")


def test_a_touched_source_is_unchanged(pair):
    for file in (pair / "narrow").iterdir():
        os.utime(file, (1, 1))
    assert verify(pair / "wide").agrees


def test_files_that_are_not_carried_may_change(pair):
    (pair / "narrow" / "README.md").write_text("news")
    (pair / "wide" / "README.md").write_text("more news")
    assert verify(pair / "wide").agrees
    (pair / "narrow" / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        verify(pair / "wide")


def test_a_file_of_the_source_widened_by_itself_changes_nothing(pair):
    """Its output and its config are written beside it, in the folder of the source."""
    single = widen(pair / "narrow" / "model.safetensors", factor=2, verify=False)
    assert (pair / "narrow" / "model-x2.config.json").is_file()
    assert single.output.parent == pair / "narrow"
    assert verify(pair / "wide").agrees
    assert not list(widen(pair / "narrow", pair / "again", 2, verify=False).output.glob("*x2*"))


def test_a_new_file_of_the_source_is_named(pair):
    (pair / "narrow" / "special_words.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"`special_words\.json` of .* was not there when") as caught:
        verify(pair / "wide")
    assert "move `special_words.json` out of the folder" in caught.value.hint


def test_another_model_is_not_the_source(pair, saved):
    with pytest.raises(CheckpointError, match="is not the file"):
        verify(pair / "wide", saved("Llama-untied"))


def test_a_checkpoint_without_a_record_is_refused(pair):
    with pytest.raises(CheckpointError, match="was not written by mupscale"):
        verify(pair / "narrow")
    (pair / "wide" / "mupscale.json").unlink()
    with pytest.raises(CheckpointError, match="was not written by mupscale"):
        verify(pair / "wide", pair / "narrow")


@pytest.mark.parametrize("version", [3, 0, "1", None, 1.5])
def test_a_record_of_another_format_is_refused(version, pair):
    change_record(pair / "wide", format_version=version)
    with pytest.raises(CheckpointError, match="upgrade mupscale"):
        verify(pair / "wide")


@pytest.mark.parametrize(
    "values",
    [{"axes": {}}, {"axes": {"embed": {}}}, {"axes": None}, {"recipe": {}}, {"source": {}}, {"source": None}],
    ids=str,
)
def test_a_damaged_record_is_an_error_for_users(values, pair):
    change_record(pair / "wide", **values)
    with pytest.raises(MupscaleError):
        verify(pair / "wide")


def test_a_user_recipe_is_found_again(saved, tmp_path):
    pair = tmp_path / "pair"
    shutil.copytree(saved("Llama-tied"), pair / "narrow")
    (pair / "mine.yaml").write_text("extends: llama\n")
    widen(pair / "narrow", pair / "wide", 2, recipe=pair / "mine.yaml", verify=False)
    moved = pair.rename(tmp_path / "moved")
    assert verify(moved / "wide").agrees
    (moved / "mine.yaml").rename(tmp_path / "renamed.yaml")
    with pytest.raises(MupscaleError, match=r"mine\.yaml"):
        verify(moved / "wide")
    assert verify(moved / "wide", recipe=tmp_path / "renamed.yaml").agrees


def test_a_source_below_a_link_is_found(pair, tmp_path):
    """Paths in the record are relative to the output itself, not to a link to it."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "wide").symlink_to(pair / "wide", target_is_directory=True)
    assert verify(tmp_path / "links" / "wide").agrees


# Findings -------------------------------------------------------------------------------------


def test_a_changed_weight_is_found(pair):
    change_weights(pair / "wide", lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].mul_(1.001))
    found = verify(pair / "wide")
    assert not found.agrees
    assert found.function.first_difference.what == "model.layers.1.mlp.up_proj"


def test_a_missing_weight_is_an_error(pair):
    change_weights(pair / "wide", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(VerifyError, match="up_proj"):
        verify(pair / "wide", only=["function"])
    found = verify(pair / "wide")
    assert found.weights.differences == ("`model.layers.1.mlp.up_proj.weight` is missing",)
    assert "up_proj" in found.skipped["function"]


def test_a_config_that_does_not_fit_the_weights_is_an_error(pair):
    file = pair / "wide" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "intermediate_size": 80}))
    with pytest.raises(VerifyError):
        verify(pair / "wide", only=["function"])
    found = verify(pair / "wide")
    assert found.config.differences == ("`intermediate_size` is 80, expected 120",)
    assert found.function is None
    assert not found.agrees


def test_a_missing_reference_model_is_reported(mlp_pair):
    with pytest.raises(CannotVerify, match="model="):
        verify(mlp_pair[0], only=["function"])
    found = verify(mlp_pair[0])
    assert found.agrees  # as far as it was compared
    assert "--model" in found.incomplete.message
    result = run("verify", str(mlp_pair[0]))
    assert result.code == 2
    assert "`--only weights --only config --only files` skips the comparison" in result.err
    result = run("verify", str(mlp_pair[0]), "--model", "nowhere.py:build")
    assert result.code == 2
    assert "nowhere.py" in result.err
    assert "--only" not in result.err
    assert run("verify", str(mlp_pair[0]), "--only", "weights", "--only", "config", "--only", "files").code == 0


@pytest.mark.parametrize("spoil", [False, True])
def test_the_result_is_stored_in_the_record_and_nowhere_else(spoil, pair):
    if spoil:
        change_weights(pair / "wide", lambda tensors: tensors["model.norm.weight"].mul_(2))
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (pair / "wide").iterdir()}
    record = record_of(pair / "wide")
    assert record["verification"] is None
    found = verify(pair / "wide", dtype="float64", seed=7)
    after = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (pair / "wide").iterdir()}
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["mupscale.json"]
    options = {"only": [], "dtype": "float64", "device": "auto", "own_model": False, "seed": 7, "steps": 0}
    assert record_of(pair / "wide") == {**record, "verification": {**found.as_record(), "options": options}}
    assert found.agrees is not spoil


def test_a_linked_record_is_not_overwritten(pair, tmp_path):
    """The Hub's cache contains links to shared blobs."""
    blob = (pair / "wide" / "mupscale.json").rename(tmp_path / "blob")
    (pair / "wide" / "mupscale.json").symlink_to(blob)
    before = blob.read_bytes()
    assert verify(pair / "wide").agrees
    assert blob.read_bytes() == before
    assert (pair / "wide" / "mupscale.json").is_symlink()


def test_a_single_file_is_verified_and_not_changed(mlp_pair):
    wide, model = mlp_pair
    before = wide.read_bytes()
    assert verify(wide, model=model).agrees
    assert wide.read_bytes() == before


def test_options_reach_the_verification(pair):
    found = verify(pair / "wide", dtype="float32")
    assert found.function.dtype == "float32"
    assert torch.get_default_dtype() == torch.float32


# Which one is meant ---------------------------------------------------------------------------


def stamp(path, time):
    for file in path.iterdir() if path.is_dir() else (path,):
        os.utime(file, (time, time))


def test_the_newest_is_by_weights_and_not_by_record(widened_pair, tmp_path):
    """Verifying an old checkpoint updates its record but does not make it the newest."""
    for number, name in enumerate(("b", "c", "a")):
        stamp(shutil.copytree(widened_pair / "wide", tmp_path / name), 1000 + number)
    assert newest_widened(tmp_path) == tmp_path / "a"
    os.utime(tmp_path / "b" / "mupscale.json", (5000, 5000))
    assert newest_widened(tmp_path) == tmp_path / "a"
    os.utime(tmp_path / "b" / "model.safetensors", (5000, 5000))
    assert newest_widened(tmp_path) == tmp_path / "b"


def test_the_newest_may_be_a_file_or_a_directory(widened_pair, mlp_pair, tmp_path):
    file, _ = mlp_pair
    directory = shutil.copytree(widened_pair / "wide", tmp_path / "wide")
    stamp(file, 1000)
    stamp(directory, 2000)
    assert newest_widened(tmp_path) == directory
    stamp(file, 3000)
    assert newest_widened(tmp_path) == file


def test_broken_and_unwidened_checkpoints_are_ignored(widened_pair, tmp_path):
    wide = shutil.copytree(widened_pair / "wide", tmp_path / "wide")
    stamp(wide, 1000)
    shutil.copytree(widened_pair / "narrow", tmp_path / "narrow")
    save_mlp(tmp_path / "plain.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    assert newest_widened(tmp_path) == wide


@pytest.mark.parametrize("content", [(), ("narrow",)])
def test_a_folder_without_a_widened_checkpoint_is_an_error(content, widened_pair, tmp_path):
    for name in content:
        shutil.copytree(widened_pair / name, tmp_path / name)
    with pytest.raises(CheckpointError, match="no widened checkpoint"):
        newest_widened(tmp_path)
