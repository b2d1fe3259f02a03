"""Safetensors headers: compatible with the library, and checked when they are read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from mupscale_cli.checkpoints.header import encode_header, read_header, replace_metadata
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError, is_printable

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


names = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__" and is_printable(name))


dtypes = st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3"])


headers = st.dictionaries(names, st.tuples(dtypes, shapes), max_size=5)


@given(headers, st.dictionaries(st.text(max_size=5), st.text(max_size=9)))
def test_the_library_reads_our_headers(tmp_path_factory, tensors, metadata):
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


def test_metadata_is_replaced_in_place(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(encode_header([TensorSpec("a", "F32", (2,))], {"format": "pt"}, reserve=500) + b"12345678")
    size = file.stat().st_size
    replace_metadata(file, {"format": "pt", "mupscale": "x" * 400})
    assert file.stat().st_size == size
    assert read_header(file).metadata["mupscale"] == "x" * 400
    assert file.read_bytes().endswith(b"12345678")


def test_data_starts_on_a_page_boundary():
    assert len(encode_header([TensorSpec("a", "F32", (2,))], {})) % 4096 == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}', "duplicate keys"),
        ('{"a": 1}', "not an object"),
        ('{"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 4]}}', "no data type"),
        ('{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "no valid shape"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', "-4 bytes of data"),
        ('{"a": {"dtype": "F32", "shape": [99999999999999999999], "data_offsets": [0, 4]}}', "no valid shape"),
        ('{"__metadata__": {"a": 1}}', "mapping of strings"),
        ("\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}} ', "end at byte"),
    ],
)
def test_invalid_headers_are_refused(text, message, tmp_path):
    data = text.encode("latin-1")
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(data).to_bytes(8, "little") + data + b"123456")
    with pytest.raises(CheckpointError, match=message):
        read_header(file)
