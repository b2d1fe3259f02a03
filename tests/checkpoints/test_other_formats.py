"""What people take for weights is recognized by names and first bytes, and the message names what converts it."""

import json
import re
import shutil
import zipfile

import pytest
import torch

from cli_runner import run
from mupscale_cli.checkpoints.other_formats import OTHER_FORMATS
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import OtherFormatError


def legacy_torch_file(path):
    torch.save({"x": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


# Files of a folder by name, their content (or what writes it), and words of the message and of the hint.
FOLDERS = [
    ({"model-q4.gguf": b"GGUF\3\0\0\0"}, "a GGUF file", "gguf_file='model-q4.gguf'"),
    ({"flax_model.msgpack": b"x", "config.json": b"{}"}, "Flax weights", "from_flax=True"),
    ({"tf_model.h5": b"\x89HDF\r\n\x1a\n"}, "TensorFlow weights", "from_tf=True"),
    ({"model.bin": b"\6\0\0\0", "shared_vocabulary.txt": b"a"}, "a CTranslate2 model", "ct2-transformers-converter"),
    ({"model.bin": b"\6\0\0\0", "vocabulary.json": b"[]", "config.json": b"{}"}, "a CTranslate2 model", "ct2-"),
    ({"model.onnx": b"x", "config.json": b"{}"}, "an ONNX model", "optimum-cli export onnx"),
    ({"weights.npz": b"PK", "config.json": b"{}"}, "weights of MLX", "mlx.core.load"),
    ({"rust_model.ot": b"x", "config.json": b"{}"}, "a model of rust-bert", "widen the model"),
    ({"_CHECKPOINT_METADATA": b"{}", "manifest.ocdbt": b"x"}, "an orbax checkpoint", "PyTreeCheckpointer"),
    ({"zero_to_fp32.py": b"", "latest": b"global_step3"}, "a part of a DeepSpeed checkpoint", "python zero_to_fp32.py"),
    ({"global_step3/mp_rank_00_model_states.pt": b"x"}, "a part of a DeepSpeed checkpoint", "zero_to_fp32.py"),
    ({"pytorch_model_fsdp_0/__0_0.distcp": b"x"}, "without its `.metadata`", "an earlier step"),
    ({"__0_0.distcp": b"x"}, "without its `.metadata`", "an earlier step"),
    ({"latest_checkpointed_iteration.txt": b"3"}, "a Megatron checkpoint", "--ckpt-convert-format torch_dist"),
    ({"weights/x": b"", "context/io.json": b"{}"}, "a checkpoint of NeMo 2", "nemo llm export path="),
    ({"llama.nemo": b"x"}, "a checkpoint of NeMo 1", "convert_MODEL_nemo_to_hf.py"),
    ({"pytorch_model.bin": legacy_torch_file, "config.json": b"{}"}, "torch weights in a form", "torch.save"),
    ({"adapter_config.json": b"{}", "adapter_model.bin": b"x"}, "an adapter", "merge"),
    ({"train.parquet": b"PAR1"}, "a data set", "pass a model"),
    (
        {"checkpoint-40/trainer_state.json": b"{}", "trainer_log.txt": b""},
        "the folder of a training run",
        "checkpoint-",
    ),
    ({"config.json": b"{}", "README.md": b""}, "a config without weights", "pass the model's folder"),
    ({"tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}, "a tokenizer without a model", "pass the folder"),
    ({}, "an empty folder", "download"),
    ({"photo.jpg": b"x"}, "contains `photo.jpg`", "pass a model's folder"),
]


def write(folder, files):
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
    return folder


@pytest.mark.parametrize(("files", "about", "hint"), FOLDERS, ids=[about for _, about, _ in FOLDERS])
def test_a_folder_is_recognized(files, about, hint, tmp_path):
    folder = write(tmp_path / "given", files)
    with pytest.raises(OtherFormatError, match=about) as refusal:
        open_checkpoint(folder)
    assert hint in refusal.value.text
    shown = run("inspect", str(folder), "--json")
    assert shown.code == 0
    document = json.loads(shown.out)
    assert (document["schema"], document["tensors"]) == ("description", None)
    assert about in document["about"]
    assert hint in document["hint"]
    refused = run("widen", str(folder), "--factor", "2")
    assert refused.code == 2
    assert about in refused.err


@pytest.mark.parametrize(
    ("name", "content", "about"),
    [
        ("model.gguf", b"GGUF\3\0\0\0", "a GGUF file"),
        ("renamed.bin", b"GGUF\3\0\0\0", "a GGUF file"),
        ("config.json", b"{}", "a config without weights"),
        ("model.safetensors.index.json", b"{}", "the index of a model's weight files"),
        ("tokenizer.json", b"{}", "a tokenizer"),
        ("flax_model.msgpack", b"x", "Flax weights"),
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n", "TensorFlow weights"),
        ("model.onnx", b"x", "an ONNX model"),
        ("weights.npz", b"PK", "weights of MLX"),
        ("a.npy", b"\x93NUMPY", "arrays of NumPy"),
        ("rust_model.ot", b"x", "a model of rust-bert"),
        ("model.bin", b"\6\0\0\0", "a CTranslate2 model"),
        ("old", legacy_torch_file, "a torch file from before"),
        ("data.parquet", b"PAR1", "a data set"),
    ],
)
def test_a_file_is_recognized(name, content, about, tmp_path):
    file = write(tmp_path / "given", {name: content}) / name
    with pytest.raises(OtherFormatError, match=about):
        open_checkpoint(file)
    shown = run("inspect", str(file))
    assert shown.code == 0
    assert about in shown.out


def test_every_format_has_a_name_and_a_way_on():
    for each in OTHER_FORMATS:
        assert each.files or each.inside or each.magic, each
        assert each.hint


def test_weights_beside_other_formats_are_opened(saved):
    folder = saved("Llama-untied", attention_bias=False)
    (folder / "model.gguf").write_bytes(b"GGUF")
    assert open_checkpoint(folder).tensors


def truncated_torch_file(path):
    torch.save({"x": torch.zeros(2000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/weights.bin", b"x")


@pytest.mark.parametrize(
    ("content", "about", "hint"),
    [
        (b"", "is an empty file", "save it again"),
        (b"<!DOCTYPE html>\n<html>", "is text under the name of a weight file", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS", "lfs pull"),
        (truncated_torch_file, "before the list of contents", "again"),
        (legacy_torch_file, "a torch file from before torch 1.6", "torch.save"),
        (other_archive, r"without `data.pkl`.* holds `model/weights.bin`", "inside"),
    ],
    ids=["empty", "text", "pointer", "truncated", "legacy", "other-zip"],
)
@pytest.mark.parametrize("name", ["last.pt", "last.ckpt", "pytorch_model.bin"])
def test_a_damaged_file_of_torch_is_described(content, about, hint, name, tmp_path):
    file = write(tmp_path / "given", {name: content}) / name
    for options in ((), ("--layout", "torch")):
        refused = run("widen", str(file), "--factor", "2", *options)
        assert refused.code == 2
        shown = " ".join(refused.err.split())
        assert re.search(about, shown), shown
        assert hint in shown


def test_a_folder_with_the_name_of_a_file_is_read_as_a_folder(saved, tmp_path):
    folder = shutil.copytree(saved("Llama-tied"), tmp_path / "epoch-1.ckpt")
    assert len(open_checkpoint(folder).tensors) == len(open_checkpoint(saved("Llama-tied")).tensors)
