"""Output that appears only when it is complete."""

import json

import pytest

from mupscale_cli.checkpoints.staging import Staging, replace_json
from mupscale_cli.errors import OutputError


@pytest.mark.parametrize("error", [OutputError("full"), KeyboardInterrupt(), SystemExit(143)])
def test_a_failed_run_leaves_nothing_behind(error, tmp_path):
    with pytest.raises(type(error)), Staging(tmp_path / "out", overwrite=False) as staging:
        (staging.directory / "model.safetensors").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_published_as_a_whole(tmp_path):
    with Staging(tmp_path / "deep" / "out", overwrite=False) as staging:
        (staging.directory / "a").write_text("1")
        assert not staging.output.exists()
        staging.publish_directory()
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out" / "a").read_text() == "1"


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(OutputError, match="exists"), Staging(tmp_path / "out", overwrite=False) as staging:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("1")
        staging.publish_directory()
    assert (tmp_path / "out" / "mine").read_text() == "1"


def test_json_is_replaced_atomically(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("old")
    with pytest.raises(TypeError):
        replace_json(file, {"a": object()})
    assert file.read_text() == "old"
    replace_json(file, {"a": 1})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
