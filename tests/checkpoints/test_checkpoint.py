"""Safetensors headers, checkpoints on disk, and output that appears only when it is complete."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from mupscale_cli.checkpoints.header import encode_header, read_header, replace_metadata
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.checkpoints.rows import RowReader
from mupscale_cli.checkpoints.staging import Staging, replace_json
from mupscale_cli.checkpoints.writing import ShardWriter
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError, OutputError, is_printable

# Headers --------------------------------------------------------------------------------------

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
names = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__" and is_printable(name))
dtypes = st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3"])
headers = st.dictionaries(names, st.tuples(dtypes, shapes), max_size=5)


@given(headers, st.dictionaries(st.text(max_size=5), st.text(max_size=9)))
def test_the_library_reads_the_headers_that_are_written(tmp_path_factory, tensors, metadata):
    specs = [TensorSpec(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    file = tmp_path_factory.mktemp("header") / "x.safetensors"
    size = sum(spec.num_bytes for spec in specs)
    file.write_bytes(encode_header(specs, metadata) + bytes(size))
    with safe_open(file, framework="pt") as opened:
        assert set(opened.keys()) == set(tensors)
        assert (opened.metadata() or {}) == metadata
        for spec in specs:
            assert tuple(opened.get_slice(spec.name).get_shape()) == spec.shape
            assert opened.get_slice(spec.name).get_dtype() == spec.dtype
    header = read_header(file)
    assert {tensor.spec for tensor in header.tensors} == set(specs)
    assert header.metadata == metadata


def test_headers_of_the_library_are_read(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor(1.5), "c": torch.zeros(0, 4), "d": torch.ones(2).bool()}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert {stored.spec.name for stored in header.tensors} == tensors.keys()
    with RowReader() as reader:
        for stored in header.tensors:
            buffer = bytearray(stored.spec.num_bytes)
            reader.read(stored, 0, memoryview(buffer))
            expected = tensors[stored.spec.name]
            assert stored.spec.shape == tuple(expected.shape)
            assert bytes(buffer) == expected.numpy().tobytes()


def test_metadata_are_replaced_in_place(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(encode_header([TensorSpec("a", "F32", (2,))], {"format": "pt"}, reserve=500) + b"12345678")
    size = file.stat().st_size
    replace_metadata(file, {"format": "pt", "mupscale": "x" * 400})
    assert file.stat().st_size == size
    assert read_header(file).metadata["mupscale"] == "x" * 400
    assert file.read_bytes().endswith(b"12345678")


def test_data_begin_on_a_page():
    assert len(encode_header([TensorSpec("a", "F32", (2,))], {})) % 4096 == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}', "twice"),
        ('{"a": 1}', "not an object"),
        ('{"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 4]}}', "no data type"),
        ('{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "no valid shape"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', "-4 bytes of data"),
        ('{"a": {"dtype": "F32", "shape": [99999999999999999999], "data_offsets": [0, 4]}}', "no valid shape"),
        ('{"__metadata__": {"a": 1}}', "mapping of texts"),
        ("\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}} ', "end at byte"),
    ],
)
def test_headers_that_are_not_believed(text, message, tmp_path):
    data = text.encode("latin-1")
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(data).to_bytes(8, "little") + data + b"123456")
    with pytest.raises(CheckpointError, match=message):
        read_header(file)


# Checkpoints ----------------------------------------------------------------------------------


def test_a_directory_knows_what_goes_along(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(save({"a": torch.zeros(2)}))
    for name in ("config.json", "tokenizer.json", "merges.txt", "LICENSE", "README.md", "trainer_state.json", "x.bin"):
        (tmp_path / name).write_text("{}")
    found = open_checkpoint(tmp_path)
    assert {file.name for file in found.carried_files} == {"tokenizer.json", "merges.txt", "LICENSE"}
    assert {file.name for file in found.left_files} == {"README.md", "trainer_state.json", "x.bin"}
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
        ({}, "no `weight_map`"),
        ({"weight_map": {"a": "/etc/passwd"}}, "not a safetensors file beside it"),
        ({"weight_map": {"a": "..\\x.safetensors"}}, "not a safetensors file beside it"),
        ({"weight_map": {"a": "s1.safetensors", "c": "s1.safetensors"}}, "says that `c` is in"),
        ({"weight_map": {"a": "s1.safetensors"}}, "which `model.safetensors.index.json` does not name"),
        ({"weight_map": {"a": "s1.safetensors", "b": "s1.safetensors", "d": "s2.safetensors"}}, "`a` is both in"),
    ],
)
def test_indices_that_do_not_belong(index, message, tmp_path):
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "s1.safetensors")
    save_file({"a": torch.zeros(1), "d": torch.zeros(1)}, tmp_path / "s2.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(100)}, file)
    (stored,) = read_header(file).tensors
    file.write_bytes(file.read_bytes()[:-50])
    with RowReader() as reader, pytest.raises(CheckpointError, match="changed while it was read"):
        reader.read(stored, 0, memoryview(bytearray(400)))


# Output ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OutputError("full"), KeyboardInterrupt(), SystemExit(143)])
def test_what_is_not_published_leaves_nothing(error, tmp_path):
    with pytest.raises(type(error)), Staging(tmp_path / "out", overwrite=False) as staging:
        (staging.directory / "model.safetensors").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_published_whole(tmp_path):
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


def test_a_shard_must_have_its_planned_size(tmp_path):
    specs = (TensorSpec("a", "F32", (2,)),)
    with pytest.raises(OutputError, match="size"), ShardWriter(tmp_path / "x", specs, {}) as writer:
        writer.write("a", 0, (memoryview(b"1234"),))
    with ShardWriter(tmp_path / "y.safetensors", specs, {"format": "pt"}) as writer:
        writer.write("a", 4, (memoryview(torch.tensor([2.0]).numpy()).cast("B"),))
        writer.write("a", 0, (memoryview(torch.tensor([1.0]).numpy()).cast("B"),))
    assert load_file(tmp_path / "y.safetensors")["a"].tolist() == [1.0, 2.0]


def test_json_is_replaced_in_one_step(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("old")
    with pytest.raises(TypeError):
        replace_json(file, {"a": object()})
    assert file.read_text() == "old"
    replace_json(file, {"a": 1})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
