"""Journals of finished shards, also damaged ones."""

import json
import os
from dataclasses import asdict

import pytest

from mupscale_cli.checkpoints.journal import JOURNAL, FinishedShard, Journal, journal_name, read_journal
from mupscale_cli.errors import CheckpointError

SHARD = FinishedShard("model.safetensors", "0" * 32, {"w": 0.5}, {"w": 1}, ["w"])
WRONG = {
    "file": [None, 1, "../x", "", ["x"], {}],
    "digest": [None, 1, [], {}],
    "stds": [None, [], "x", {"w": "1"}, {"w": None}, {"w": True}, {"w": -1}, {"w": float("nan")}, {"w": []}],
    "nonfinite": [None, [], {"w": 0.5}, {"w": True}, {"w": -1}, {"w": "1"}],
    "overflowed": [None, {}, "w", [1], [None], [["w"]]],
}


def test_the_journals_of_all_processes_are_merged(tmp_path):
    Journal(tmp_path / "output", "same", {"a": SHARD}).save()
    other = FinishedShard("b", "1", {}, {}, [])
    Journal(tmp_path / "output", "same", {}, journal_name(1)).note(other)
    Journal(tmp_path / "output", "another", {"c": SHARD}, journal_name(2)).save()
    journal = read_journal(tmp_path / "output")
    assert journal == Journal(tmp_path / "output", "same", {SHARD.file: SHARD, "b": other})
    assert read_journal(tmp_path) is None


def damaged():
    good = asdict(SHARD)
    yield from ("", "{", "[]", "null", "1", '"x"', "\x00", "{}")
    for content in (
        {"fingerprint": 1, "shards": []},
        {"fingerprint": "x"},
        *({"fingerprint": "x", "shards": shards} for shards in (None, {}, "x", 1, [1], [None], ["x"], [[]], [{}])),
        *({"fingerprint": "x", "shards": [{**good, name: value}]} for name in WRONG for value in WRONG[name]),
        {"fingerprint": "x", "shards": [{**good, "more": 1}]},
        {"fingerprint": "x", "shards": [{name: value for name, value in good.items() if name != "digest"}]},
    ):
        yield json.dumps(content)


@pytest.mark.parametrize("text", list(damaged()))
def test_a_damaged_journal_is_one_message(text, tmp_path):
    (tmp_path / JOURNAL).write_text(text)
    with pytest.raises(CheckpointError, match="journal"):
        read_journal(tmp_path / "output")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are part of POSIX")
def test_a_pipe_as_journal_is_one_message(tmp_path):
    os.mkfifo(tmp_path / JOURNAL)
    with pytest.raises(CheckpointError, match="journal"):
        read_journal(tmp_path / "output")
