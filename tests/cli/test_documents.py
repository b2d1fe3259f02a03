"""The JSON documents that commands print."""

import json

import pytest

from cli_runner import run


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (["widen", "NARROW", "--factor", "2", "--dry-run"], {"recipe", "axes", "tensors", "bytes", "files", "config"}),
        (["verify", "WIDE"], {"agrees", "function", "weights", "config", "files"}),
        (["inspect", "NARROW"], {"recipe", "axes", "tensors"}),
        (["inspect", "WIDE"], {"recipe", "axes", "tensors", "record"}),
        (["hparams", "WIDE", "--lr", "1e-3"], {"groups", "formulas", "optimizer"}),
        (["recipes", "list"], {"recipes"}),
    ],
)
def test_json_prints_exactly_one_document(command, keys, saved, widened):
    places = {"NARROW": str(saved("Qwen3-tied")), "WIDE": str(widened)}
    result = run(*(places.get(word, word) for word in command), "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert keys <= document.keys()
    assert document["schema_version"] == 1


def test_json_of_widen_contains_its_record(saved, tmp_path):
    result = run("widen", str(saved("Llama-tied")), "--factor", "2", "-o", str(tmp_path / "wide"), "--json")
    document = json.loads(result.out)
    record = json.loads((tmp_path / "wide" / "mupscale.json").read_text())
    assert document["output"] == str(tmp_path / "wide")
    assert {key: document[key] for key in record} == record
    assert record["verification"]["agrees"] is True


def test_verify_records_its_result(widened):
    assert run("verify", str(widened), "--dtype", "float32").code == 0
    assert json.loads((widened / "mupscale.json").read_text())["verification"]["function"]["dtype"] == "float32"
