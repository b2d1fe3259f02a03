"""The record of a widening."""

import json
import shutil

from mupscale_cli.checkpoints.digests import file_digest
from mupscale_cli.tasks.widen import widen
from outputs import merged


def test_the_record_describes_the_widening(saved, tmp_path):
    source = shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    widened = widen(source, tmp_path / "outputs" / "wide", 2, {"ffn": 3})
    record = json.loads((widened.output / "mupscale.json").read_text())
    assert record == widened.record
    assert record["source"]["path"] == "../narrow"
    assert {name: axis["factor"] for name, axis in record["axes"].items()} == {
        "embed": 2,
        "kv": 2,
        "g": 1,
        "d": 1,
        "ffn": 3,
    }
    assert record["recipe"]["name"] == "llama"
    files = {
        name: {"bytes": (source / name).stat().st_size, "xxh128": file_digest(source / name)}
        for name in ("model.safetensors", "config.json", "generation_config.json")
    }
    assert record["source"]["files"] == files
    wide = merged(widened.output)
    listed = [name for rule in record["rules"] for name in rule["tensors"]]
    assert sorted(listed) == sorted(wide)
    assert record["parameters"]["after"] == sum(len(data) // 4 for _, _, data in wide.values())
    assert record["verification"]["agrees"] is True
    assert str(tmp_path) not in json.dumps(record)
