"""Fuzz targets: functions that take bytes and may raise only `MupscaleError`.

The first byte decides whether the rest is the text to read, or chooses changes to a valid document. With the latter,
random bytes get past the first checks. This module needs no fuzzer, so tests can replay bytes that once found a bug.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.architecture.loading import load_recipe, recipe_files
from mupscale_cli.checkpoints.containers.nested import check_structure, walk
from mupscale_cli.checkpoints.containers.places import place_name
from mupscale_cli.checkpoints.containers.torch_file import blank_tensor
from mupscale_cli.checkpoints.header import StoredTensor, parse_header
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.cli.render import record_text
from mupscale_cli.dtypes import DTYPES, TensorSpec, dtype_of
from mupscale_cli.errors import MupscaleError
from mupscale_cli.optimizers.content import locate_optimizer, widen_content
from mupscale_cli.optimizers.finding import open_optimizer
from mupscale_cli.optimizers.hyperparameters import Settings, hyperparameters
from mupscale_cli.optimizers.order import names_by_order
from mupscale_cli.optimizers.recorded import scaled_tensors
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.optimizers.scheduler import widen_scheduler
from mupscale_cli.plan import Request, make_plan
from mupscale_cli.record.changes import output_changed
from mupscale_cli.record.reading import check_record, recorded_method, recorded_request
from mupscale_cli.record.types import Record
from mupscale_cli.tasks.card import card_section
from mupscale_cli.tasks.planning import choose_recipe

MODELS = json.loads((Path(__file__).parent / "models.json").read_text())
_MAX_CHANGES = 4
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    2**31,
    2**63,
    2**64,
    10**30,
    10**4000,
    0.0,
    -0.0,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x",
    "..",
    "../x",
    "/etc/passwd",
    "a\\b",
    "C:x",
    "\0",
    "\ud800",
    "\x1b[2J",
    "9" * 5000,
    "{a}",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    [1, 2, 3],
    ["a", "b"],
    {"a": 1},
    {"a": {"b": []}},
    [1.5, float("nan")],
    [0] * 100,
    "model.safetensors",
    "llama",
    "cpu",
    "float32",
)


class Choices:
    """Decisions read from bytes; zeros after the last byte."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def below(self, count: int) -> int:
        """Return a number from 0 to count - 1."""
        size = 1 if count <= 256 else 2
        number = int.from_bytes(self.data[self.position : self.position + size], "little")
        self.position += size
        return number % count

    @property
    def rest(self) -> bytes:
        return self.data[self.position :]


def corrupted(document: Any, choices: Choices) -> Any:
    """Return a document with some values changed, removed or added."""
    document = copy.deepcopy(document)
    for _ in range(1 + choices.below(_MAX_CHANGES)):
        parent, key, value = [document], 0, document
        while isinstance(value, (dict, list)) and value and choices.below(8):
            parent, keys = value, list(value) if isinstance(value, dict) else range(len(value))
            key = keys[choices.below(len(keys))]
            value = parent[key]
        new, other = (copy.deepcopy(HOSTILE[choices.below(len(HOSTILE))]) for _ in range(2))
        match choices.below(6):
            case 0 if parent is not document and isinstance(parent, dict):
                del parent[key]
            case 1 if isinstance(value, dict):
                value[str(new)[:99]] = other
            case 2 if isinstance(value, list):
                value.append(new)
            case 3 if isinstance(parent, dict):
                parent[str(new)[:99]] = parent.pop(key)
            case _:
                if value is document:
                    document = new
                else:
                    parent[key] = new
    return document


def document_bytes(data: bytes, good: Any) -> bytes:
    """Return the text of a document: the bytes themselves, or a valid document with changes."""
    if data[:1] and data[0] % 2:
        return data[1:]
    return json.dumps(corrupted(good, Choices(data[1:])), ensure_ascii=bool(data[:1])).encode(errors="surrogatepass")


def folder_of(**files: bytes) -> contextlib.AbstractContextManager[Path]:
    """Create a temporary folder with files; `__` in a name stands for a dot."""

    @contextlib.contextmanager
    def temporary():
        folder = Path(tempfile.mkdtemp(prefix="hostile-"))
        try:
            for name, content in files.items():
                (folder / name.replace("__", ".")).write_bytes(content)
            yield folder
        finally:
            shutil.rmtree(folder)

    return temporary()


def safetensors(text: bytes, size: int) -> bytes:
    """Return a safetensors file with this header and `size` zero bytes of data."""
    return struct.pack("<Q", len(text)) + text + bytes(size)


@cache
def specs_of(case: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in MODELS[case]["specs"])


def header_of(specs: Any) -> tuple[dict[str, Any], int]:
    """Return a valid header, and the number of bytes of data after it."""
    entries, end = {}, 0
    for spec in specs:
        start, end = end, end + spec.num_bytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
    return entries, end


@cache
def plan_of(case: str = "Llama-tied") -> Any:
    config = MODELS[case]["config"]
    recipe = load_recipe(config["model_type"], config)
    return make_plan(recipe, specs_of(case), config, Request(2))


_FEW = (TensorSpec("a.weight", "F32", (2, 3)), TensorSpec("b", "BF16", (4,)), TensorSpec("c", "I64", ()))


def header(data: bytes) -> None:
    """Read a header: `checkpoints.header`."""
    entries, size = header_of(_FEW)
    whole = safetensors(document_bytes(data, {**entries, "__metadata__": {"format": "pt"}}), size)
    parse_header(io.BytesIO(whole), Path("x.safetensors"))
    parse_header(io.BytesIO(data), Path("x.safetensors"))


def folder(data: bytes) -> None:
    """Open a folder with an index, a config and a record: `checkpoints.reading`, `record.reading`."""
    entries, size = header_of(_FEW)
    shard = safetensors(json.dumps(entries).encode(), size)
    which = Choices(data).below(3)
    good = (
        {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(entries, "model-1.safetensors")},
        MODELS["GPT2-tied"]["config"],
        MODELS["Llama-tied"]["record"],
    )[which]
    texts = [json.dumps({"weight_map": dict.fromkeys(entries, "model-1.safetensors")}).encode(), b"{}", b"{}"]
    texts[which] = document_bytes(data[1:], good)
    names = ("model__safetensors__index__json", "config__json", "mupscale__json")
    with folder_of(**dict(zip(names, texts, strict=True)), **{"model-1__safetensors": shard}) as path:
        checkpoint = open_checkpoint(path)
        if checkpoint.record is not None:
            output_changed(check_record(checkpoint.record, path), checkpoint)
        assert all(file.parent == path for file in (*checkpoint.files, *checkpoint.carried_files))


def recipe(data: bytes) -> None:
    """Read a recipe and plan with it: `architecture`, `plan`."""
    choices = Choices(data)
    if choices.below(2):
        text = choices.rest
    else:
        files = recipe_files()
        text = files[choices.below(len(files))].read_bytes()
        for _ in range(1 + choices.below(_MAX_CHANGES)):
            place = choices.below(len(text) or 1)
            kind = choices.below(4)
            word = _WORDS[choices.below(len(_WORDS))]
            length = choices.below(20)
            text = text[:place] + (word if kind else b"") + text[place + (length if kind < 3 else 0) :]
    with folder_of(mine__yaml=text) as path:
        config = MODELS["Llama-tied"]["config"]
        loaded = load_recipe(path / "mine.yaml", config)
        make_plan(loaded, specs_of("Llama-tied"), config, Request(2))


_WORDS = (
    b"{",
    b"}",
    b"[",
    b"]",
    b"(",
    b")",
    b"*",
    b"**",
    b"{a,b}",
    b"{first}",
    b"{last}",
    b"{embed}",
    b"{/kv}",
    b"{(kv g)}",
    b"^",
    b"|",
    b"@",
    b"/",
    b"//",
    b"+",
    b"-",
    b"~",
    b"==",
    b" or ",
    b" and ",
    b"not ",
    b"offset ",
    b"embed",
    b"hidden_size",
    b"0",
    b"9" * 30,
    b"0.5",
    b"1e9",
    b"'",
    b'"',
    b": ",
    b"\n ",
    b"- ",
    b"? ",
    b"&a ",
    b"*a",
    b"!!python/object ",
    b"<<: ",
    b"keep",
    b"omit",
    b"when: ",
    b"dims: ",
    b"from shapes",
    b"varies",
    b"extends: ../x\n",
    b"\xff",
    "\u0663".encode(),
    b"\0",
)


def config(data: bytes) -> None:
    """Plan with a config that may not match the tensors: `plan`, and the recipes' expressions."""
    choices = Choices(data)
    case = list(MODELS)[choices.below(len(MODELS))]
    with folder_of(config__json=document_bytes(choices.rest, MODELS[case]["config"])) as path:
        value = read_json(path / "config.json")
    tensors = {spec.name: StoredTensor(spec, Path("x"), 0) for spec in specs_of(case)}
    checkpoint = Checkpoint(Path("x"), True, (Path("x"),), tensors, value, {})
    chosen = choose_recipe(checkpoint)
    with contextlib.suppress(MupscaleError):
        names_by_order(value, [({}, [0, 1])], {})
    planned = make_plan(chosen, checkpoint.specs, value, Request(2))
    json.dumps(planned.config)


def record(data: bytes) -> None:
    """Read a record as `hparams`, `verify` and the model card do: `record.reading`."""
    with folder_of(mupscale__json=document_bytes(data, MODELS["Llama-tied"]["record"])) as path:
        content = read_json(path / "mupscale.json")
    value = check_record(content, Path("x"))
    readers: tuple[Callable[[], Any], ...] = (
        lambda: scaled_tensors(value),
        lambda: recorded_method(value),
        lambda: record_text(value),
        lambda: card_section(value, "x"),
        *(lambda name=name: hyperparameters(value, Settings(1.0, name, 0.1)) for name in OPTIMIZERS),
        lambda: _plan_from_record(value),
    )
    for read in readers:
        with contextlib.suppress(MupscaleError):
            read()


def _plan_from_record(value: Record) -> None:
    model = MODELS["Llama-tied"]
    chosen = load_recipe("llama", model["config"])
    method, noise = recorded_method(value)
    make_plan(
        chosen,
        specs_of("Llama-tied"),
        model["config"],
        recorded_request(value),
        tie=value["tie"],
        method=method,
        perturbation=noise,
    )


def good_state() -> dict[str, Any]:
    """Return a training checkpoint as JSON, with each tensor as `{"tensor": [dtype, shape]}`."""
    specs = specs_of("Llama-tied")[:3]

    def tensor(shape: Any) -> dict[str, Any]:
        return {"tensor": ["F32", list(shape)]}

    states = {
        str(i): {"step": tensor(()), "exp_avg": tensor(s.shape), "exp_avg_sq": tensor(s.shape)}
        for i, s in enumerate(specs)
    }
    group = {
        "lr": 0.1,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.1,
        "amsgrad": False,
        "params": [0, 1, 2],
        "param_names": [spec.name for spec in specs],
    }
    weights = {spec.name: tensor(spec.shape) for spec in specs_of("Llama-tied")}
    return {"optimizer": {"state": states, "param_groups": [group]}, "model": weights, "step": 7}


def to_content(value: Any) -> Any:
    """Turn JSON into a training checkpoint: tensors become tensors, and numeric keys numbers."""
    if isinstance(value, dict):
        match value.get("tensor"):
            case [str() as dtype, list() as shape] if dtype in DTYPES and _is_shape(shape):
                return blank_tensor(TensorSpec("x", dtype, tuple(shape)))
        return {int(k) if k.isdecimal() and k.isascii() and len(k) < 9 else k: to_content(v) for k, v in value.items()}
    return [to_content(item) for item in value] if isinstance(value, list) else value


def _is_shape(shape: list[Any]) -> bool:
    return len(shape) < 9 and all(type(size) is int and 0 <= size < 1000 for size in shape)


def state(data: bytes) -> None:
    """Widen a training checkpoint of any structure: `optimizers.content`, `nested`, `groups`, `state_plan`."""
    try:
        content = to_content(json.loads(document_bytes(data, good_state())))
    except (ValueError, RecursionError):
        return
    check_structure(content, Path("x"))
    specs = {
        id(tensor): TensorSpec(place_name(place), dtype_of(tensor.dtype).name, tuple(tensor.shape))
        for place, tensor in walk(content)
    }
    root = locate_optimizer(content, None, "x")
    settings = MODELS["Llama-tied"]["config"]
    for policy in ("copy", "reset-new", "reset"):
        with contextlib.suppress(MupscaleError):
            widen_content(
                content, specs, root, plan_of(), policy, settings, lambda g, s: names_by_order(settings, g, s)
            )


def torchfile(data: bytes) -> None:
    """Read an archive with any pickle in it: `checkpoints.containers.torch_file`, `optimizers.scheduler`."""
    choices = Choices(data)
    kind = choices.below(3)
    body = choices.rest
    if kind == 0:
        good = _saved({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"params": [0]}], "base_lrs": [1.0]})
        body = _corrupted_bytes(good, choices)
    elif kind == 1:
        body = _archive(body)
    else:
        body = _archive(_corrupted_bytes(pickle.dumps({"a": [1, {"b": 2.0}], "base_lrs": [1.0, 2.0]}, 2), choices))
    with folder_of(optimizer__pt=body) as path:
        with contextlib.suppress(MupscaleError):
            widen_scheduler(path / "optimizer.pt", path / "wide.pt", [(0, 0.5), (1, 0.5)])
        optimizer = open_optimizer(path / "optimizer.pt", None)
        optimizer.widen(plan_of(), "copy")


def _saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _archive(text: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        parts = {"data.pkl": text, "version": b"3\n", "byteorder": b"little", "data/0": bytes(64)}
        for name, content in parts.items():
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def _corrupted_bytes(good: bytes, choices: Choices) -> bytes:
    data = bytearray(good)
    for _ in range(1 + choices.below(8)):
        data[choices.below(len(data))] = choices.below(256)
    return bytes(data)


def tensors(data: bytes) -> None:
    """Read optimizer state in safetensors, with an index: `optimizers.formats.safetensors`."""
    states = [
        TensorSpec(f"state.{s.name}.{key}", "F32", s.shape)
        for s in specs_of("Llama-tied")[:2]
        for key in ("exp_avg", "exp_avg_sq")
    ]
    entries, size = header_of(states)
    index: Any = {"weight_map": dict.fromkeys(entries, "optimizer-1.safetensors")}
    is_index = Choices(data).below(2)
    text = document_bytes(data[1:], index if is_index else entries)
    shard = safetensors(json.dumps(entries).encode() if is_index else text, size)
    index_text = text if is_index else json.dumps(index).encode()
    with folder_of(**{"optimizer__safetensors__index__json": index_text, "optimizer-1__safetensors": shard}) as path:
        optimizer = open_optimizer(path / "optimizer.safetensors.index.json", None)
        assert all(tensor.file.parent == path for tensor in optimizer.stored.values())  # type: ignore[attr-defined]
        optimizer.widen(plan_of(), "copy")


def distributed(data: bytes) -> None:
    """Read a distributed checkpoint: `checkpoints.containers.distributed`."""
    from torch.distributed.checkpoint.metadata import Metadata, TensorProperties, TensorStorageMetadata

    good = {
        f"optimizer.state.{s.name}.{key}": ["F32", list(s.shape), ["optimizer", "state", s.name, key]]
        for s in specs_of("Llama-tied")[:2]
        for key in ("exp_avg", "exp_avg_sq")
    }
    try:
        value = json.loads(document_bytes(data, good))
    except (ValueError, RecursionError):
        return
    entries, places = {}, {}
    for name, entry in value.items() if isinstance(value, dict) else ():
        match entry:
            case [dtype, list() as shape, list() as place] if place and _is_shape(shape):
                dtypes = {"F32": torch.float32, "float32": torch.float8_e4m3fn}
                properties = TensorProperties(dtypes.get(str(dtype), torch.int64))
                entries[name] = TensorStorageMetadata(properties, torch.Size(shape), [])
                places[name] = tuple(part if isinstance(part, (str, int)) else "x" for part in place)
            case _:
                entries[name] = entry
    metadata = Metadata(entries, planner_data=places)
    with folder_of(__metadata=pickle.dumps(metadata)) as path:
        optimizer = open_optimizer(path, None)
        optimizer.widen(plan_of(), "copy")


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (header, folder, recipe, config, record, state, torchfile, tensors, distributed)
}


def run(name: str, data: bytes) -> None:
    """Run a target on bytes. Any error other than `MupscaleError` is a bug and is raised."""
    with contextlib.suppress(MupscaleError):
        TARGETS[name](data)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]).read_bytes())
