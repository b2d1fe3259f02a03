"""Opening checkpoints: the files that belong to them, and contradictions between files."""

import json

import pytest
import torch
from safetensors.torch import save, save_file

from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import CheckpointError


def test_a_directory_tells_what_becomes_of_its_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(save({"a": torch.zeros(2)}))
    for name in ("config.json", "tokenizer.json", "merges.txt", "LICENSE", "README.md", "trainer_state.json", "x.bin"):
        (tmp_path / name).write_text("{}")
    found = open_checkpoint(tmp_path)
    fates = {file.name: file.fate for file in found.plan_files()}
    assert {fates.pop(name) for name in ("tokenizer.json", "merges.txt", "LICENSE")} == {"carried"}
    assert (fates.pop("model.safetensors"), fates.pop("config.json")) == ("widened", "rewritten")
    assert fates == dict.fromkeys(("README.md", "trainer_state.json", "x.bin"), "left behind")
    assert found.files_beside.keys() == {"tokenizer.json", "merges.txt", "LICENSE"}
    assert found.config == {}
    assert found.record is None


def test_a_file_finds_the_config_of_its_own_name_first(tmp_path):
    (tmp_path / "net.safetensors").write_bytes(save({"a": torch.zeros(2)}))
    assert open_checkpoint(tmp_path / "net.safetensors").config is None
    (tmp_path / "config.json").write_text('{"x": 1}')
    assert open_checkpoint(tmp_path / "net.safetensors").config == {"x": 1}
    (tmp_path / "net.config.json").write_text('{"x": 2}')
    assert open_checkpoint(tmp_path / "net.safetensors").config == {"x": 2}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "no valid `weight_map`"),
        ({"weight_map": {"a": "/etc/passwd"}}, "not a safetensors file in the same folder"),
        ({"weight_map": {"a": "..\\x.safetensors"}}, "not a safetensors file in the same folder"),
        ({"weight_map": {"a": "s1.safetensors", "c": "s1.safetensors"}}, "places `c` in"),
        ({"weight_map": {"b": "s1.safetensors", "d": "s2.safetensors"}}, "`a` is in both"),
    ],
)
def test_an_index_that_contradicts_its_shards_is_refused(index, message, tmp_path):
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "s1.safetensors")
    save_file({"a": torch.zeros(1), "d": torch.zeros(1)}, tmp_path / "s2.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_an_index_chooses_among_tensors_of_one_name_and_need_not_list_all(tmp_path):
    """Transformers loads every tensor of the shards that an index names, whether the index lists it or not."""
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "s1.safetensors")
    save_file({"a": torch.ones(1), "d": torch.zeros(1)}, tmp_path / "s2.safetensors")
    for chosen in ("s1.safetensors", "s2.safetensors"):
        index = {"weight_map": {"a": chosen, "b": "s1.safetensors", "d": "s2.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert open_checkpoint(tmp_path).tensors["a"].file.name == chosen
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "s1.safetensors"}}))
    assert set(open_checkpoint(tmp_path).tensors) == {"a", "b"}


def test_a_folder_of_checkpoints_is_no_checkpoint_but_names_them(tmp_path):
    for step in (5, 40, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file({"a": torch.zeros(1)}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
    with pytest.raises(CheckpointError, match="`checkpoint-100`, `checkpoint-40`, `checkpoint-5`") as error:
        open_checkpoint(tmp_path)
    assert f"`{tmp_path / 'checkpoint-100'}`" in error.value.hint
