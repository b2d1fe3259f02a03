"""Test reading tokens from files of every format."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mupscale_cli.errors import SweepError
from mupscale_cli.sweep.data import read_tokens, split
from sweeps import VOCAB

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def write_data(folder: Path, kind: str) -> Path:
    file = folder / f"data.{kind}"
    if kind == "bin":
        np.array(IDS, dtype="<u2").tofile(file)
    elif kind == "npy":
        np.save(file, np.array(IDS).reshape(2, 4))
    elif kind == "safetensors":
        save_file({"input_ids": torch.tensor(IDS), "mask": torch.ones(8)}, file)
    elif kind == "pt":
        torch.save({"tokens": torch.tensor(IDS)}, file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in (IDS[:4], IDS[4:])))
    else:
        file.mkdir()
        write_data(file, "jsonl")
    return file


@pytest.mark.parametrize("kind", ["bin", "npy", "safetensors", "pt", "jsonl", "folder"])
def test_read_tokens_reads_every_format(kind, tmp_path):
    assert read_tokens(write_data(tmp_path, kind), tmp_path, VOCAB).tolist() == IDS


def test_read_tokens_chooses_the_number_type_by_vocabulary(tmp_path):
    np.array([70_000, 1], dtype="<u4").tofile(tmp_path / "data.bin")
    assert read_tokens(tmp_path / "data.bin", tmp_path, 100_000).tolist() == [70_000, 1]
    with pytest.raises(SweepError, match="the model's tokens are 0 to 49"):
        read_tokens(tmp_path / "data.bin", tmp_path, VOCAB)


def test_text_is_read_as_bytes_for_a_vocabulary_of_256(tmp_path):
    (tmp_path / "data.txt").write_text("né")
    (tmp_path / "rows.jsonl").write_text('{"text": "n"}\n\n{"text": "é"}\n')
    assert read_tokens(tmp_path / "data.txt", tmp_path, 256).tolist() == list("né".encode())
    assert read_tokens(tmp_path / "rows.jsonl", tmp_path, 256).tolist() == list("né".encode())
    with pytest.raises(SweepError, match="has no tokenizer"):
        read_tokens(tmp_path / "data.txt", tmp_path, VOCAB)


def test_text_is_encoded_with_the_tokenizer(tmp_path):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "end": 2}, unk_token="a"))  # noqa: S106 (no secret)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="end").save_pretrained(tmp_path)  # noqa: S106
    (tmp_path / "data.jsonl").write_text('{"text": "b a"}\n{"text": "b"}\n')
    assert read_tokens(tmp_path / "data.jsonl", tmp_path, VOCAB).tolist() == [1, 0, 2, 1, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.csv", b"1,2", "has an unknown format"),
        ("data.bin", b"123", "expected a positive multiple of 2"),
        ("data.bin", b"", "expected a positive multiple of 2"),
        ("data.npy", b"123", "cannot read"),
        ("data.pt", b"123", "cannot read"),
        ("data.safetensors", b"123", "cannot read"),
        ("data.jsonl", b"{", "line 1: not a JSON object"),
        ("data.jsonl", b"", "holds no rows"),
        ("data.jsonl", b'{"title": "a"}', "have neither `text` nor `input_ids`, only title"),
        ("data.jsonl", b'{"input_ids": [1]}\n{"title": "a"}', "a row of .* has no `input_ids`, only title"),
        ("data.jsonl", b'{"input_ids": [50]}', "holds the token 50, the model's tokens are 0 to 49"),
        ("data.jsonl", b'{"input_ids": [-1]}', "holds the token -1"),
        ("data.jsonl", b'{"input_ids": ["a"]}', "cannot read"),
        ("data.jsonl", b'{"input_ids": []}', "holds no tokens"),
        ("data.txt", b"\xff", "cannot read"),
        ("folder/readme.md", b"", "is not a dataset"),
    ],
)
def test_unreadable_data_is_reported(name, content, message, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SweepError, match=message):
        read_tokens(tmp_path / name.split("/")[0], tmp_path, VOCAB)


def test_floating_point_numbers_are_refused(tmp_path):
    np.save(tmp_path / "data.npy", np.ones(3))
    with pytest.raises(SweepError, match="float64, expected token ids"):
        read_tokens(tmp_path / "data.npy", tmp_path, VOCAB)


def test_missing_datasets_library_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "part.parquet").write_bytes(b"")
    with pytest.raises(SweepError, match="not installed") as error:
        read_tokens(tmp_path, tmp_path, VOCAB)
    assert error.value.hint == "`pip install datasets`"


def test_split_holds_out_the_last_tenth(tmp_path):
    data = split(np.arange(200), 8, tmp_path)
    assert len(data.train) == 180
    assert data.held_out.tolist() == [list(range(180, 188)), list(range(188, 196))]
    with pytest.raises(SweepError, match="sequences of 32 need at least 320"):
        split(np.arange(200), 32, tmp_path)
