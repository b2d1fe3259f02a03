"""Read training data: token ids from a file, or text encoded with the checkpoint's tokenizer."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mupscale_cli.checkpoints.json_files import parse_json
from mupscale_cli.errors import SweepError
from mupscale_cli.files import require_plain

Tokens = NDArray[Any]
_FORMATS = ".bin, .npy, .safetensors, .pt (token ids), .txt, .jsonl, or a folder of a Hugging Face dataset"
_RAW_TYPES = {"uint16": np.uint16, "uint32": np.uint32}
_HELD_OUT = 10  # the last 1/10 of the tokens is not trained on
_MAX_HELD_OUT_SEQUENCES = 64
_BYTES = 256  # vocabulary of a model that reads bytes


@dataclass(frozen=True)
class Split:
    """Tokens to train on, and held-out sequences to measure the loss on.

    Attributes:
        train: token ids, (tokens,).
        held_out: token ids, (sequences, length); the same for every trial.
    """

    train: Tokens
    held_out: Tokens


def read_tokens(path: Path, tokenizer: Path, vocab_size: int, data_type: str = "auto") -> Tokens:
    """Read token ids; `.bin` and `.npy` files are memory-mapped.

    Args:
        path: file or folder of the data.
        tokenizer: folder of the tokenizer that encodes text.
        vocab_size: vocabulary size of the model.
        data_type: number type of a `.bin` file; `auto` is uint16 where the vocabulary fits.

    Returns:
        Token ids, (tokens,).

    Raises:
        SweepError: the data cannot be read, or does not fit the vocabulary.
    """
    if not path.exists():
        raise SweepError(f"`{path}` does not exist", hint=f"check the path; readable are {_FORMATS}")
    try:
        for file in path.rglob("*") if path.is_dir() else (path,):
            if not file.is_dir():
                require_plain(file)
        tokens = _read(path, tokenizer, vocab_size, data_type)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise SweepError(f"cannot read `{path}`: {error}") from error
    if tokens.size == 0:
        raise SweepError(f"`{path}` holds no tokens")
    if tokens.dtype.kind not in "iu":
        raise SweepError(f"`{path}` holds numbers of type {tokens.dtype}, expected token ids (integers)")
    least, largest = int(tokens.min()), int(tokens.max())
    if least < 0 or largest >= vocab_size:
        raise SweepError(
            f"`{path}` holds the token {least if least < 0 else largest}, the model's tokens are 0 to {vocab_size - 1}",
            hint="use the model's tokenizer, or set the number type with `--data-type uint16` or `uint32`",
        )
    return tokens


def _read(path: Path, tokenizer: Path, vocab_size: int, data_type: str) -> Tokens:
    if path.is_dir():
        return _from_dataset(path, tokenizer, vocab_size)
    if path.suffix == ".bin":
        return _from_raw(path, vocab_size, data_type)
    if path.suffix == ".npy":
        array: Tokens = np.load(path, mmap_mode="r")
        return array.reshape(-1)
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return _only({name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118 (not a mapping)
    if path.suffix in (".pt", ".pth"):
        content = _load_pickle(path)
        return _only(content if isinstance(content, Mapping) else {"tokens": content}, path)
    if path.suffix == ".txt":
        return _encode(iter([path.read_text(encoding="utf-8")]), tokenizer, vocab_size, path)
    if path.suffix == ".jsonl":
        return _from_rows(_json_rows([path]), tokenizer, vocab_size, path)
    raise SweepError(f"`{path}` has an unknown format", hint=f"known: {_FORMATS}")


def _from_raw(path: Path, vocab_size: int, data_type: str) -> Tokens:
    if data_type == "auto":
        data_type = "uint16" if vocab_size <= 1 << 16 else "uint32"
    if data_type not in _RAW_TYPES:
        raise SweepError(f"unknown `--data-type {data_type}`", hint="known: auto, uint16, uint32")
    dtype = np.dtype(_RAW_TYPES[data_type]).newbyteorder("<")
    if path.stat().st_size == 0 or path.stat().st_size % dtype.itemsize:
        raise SweepError(
            f"`{path}` has {path.stat().st_size} bytes, expected a positive multiple of {dtype.itemsize} ({data_type})"
        )
    return np.memmap(path, dtype=dtype, mode="r")


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise SweepError(f"cannot read `{path}`: {error}") from error


def _only(tensors: Mapping[str, Any], path: Path) -> Tokens:
    """Return the tensor of token ids; among several, the one named `input_ids` or `tokens`."""
    named = [tensors[name] for name in ("input_ids", "tokens") if name in tensors] or list(tensors.values())
    if len(named) != 1 or not isinstance(named[0], torch.Tensor):
        raise SweepError(
            f"`{path}` holds {', '.join(f'`{name}`' for name in tensors) or 'nothing'}; "
            "expected one tensor of token ids, or one named `input_ids`"
        )
    array: Tokens = named[0].reshape(-1).numpy()
    return array


def _from_dataset(path: Path, tokenizer: Path, vocab_size: int) -> Tokens:
    lines, tables = sorted(path.rglob("*.jsonl")), sorted(path.rglob("*.parquet"))
    is_saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if lines and not is_saved:
        return _from_rows(_json_rows(lines), tokenizer, vocab_size, path)
    if not tables and not is_saved:
        raise SweepError(
            f"`{path}` is not a dataset: it has no .jsonl or .parquet files, and `save_to_disk` did not write it",
            hint=f"known: {_FORMATS}",
        )
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise SweepError(
            f"reading `{path}` needs the datasets library, which is not installed", hint="`pip install datasets`"
        ) from error
    datasets.disable_progress_bars()
    try:
        if is_saved:
            rows = datasets.load_from_disk(str(path))
        else:
            rows = datasets.load_dataset("parquet", data_files=[str(file) for file in tables], split="train")
    except Exception as error:
        raise SweepError(f"datasets cannot read `{path}`: {error}") from error
    if isinstance(rows, Mapping):
        rows = rows["train"] if "train" in rows else next(iter(rows.values()))
    return _from_rows(iter(rows), tokenizer, vocab_size, path)


def _json_rows(files: list[Path]) -> Iterator[Mapping[str, Any]]:
    for file in files:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = _json(line) if line.strip() else {}
                if not isinstance(row, dict):
                    raise SweepError(f"`{file}`, line {number}: not a JSON object")
                if row:
                    yield row


def _json(line: str) -> Any:
    """Parse a line of JSON; return None if it is invalid."""
    try:
        return parse_json(line)
    except ValueError:
        return None


def _from_rows(rows: Iterator[Mapping[str, Any]], tokenizer: Path, vocab_size: int, path: Path) -> Tokens:
    """Join rows of `input_ids`, or encode rows of `text`."""
    first = next(rows, None)
    if first is None:
        raise SweepError(f"`{path}` holds no rows")
    column = next((name for name in ("input_ids", "text") if name in first), None)
    if column is None:
        raise SweepError(f"the rows of `{path}` have neither `text` nor `input_ids`, only {', '.join(first)}")

    def values() -> Iterator[Any]:
        for row in (first, *rows):
            if column not in row:
                raise SweepError(f"a row of `{path}` has no `{column}`, only {', '.join(row)}")
            yield row[column]

    if column == "input_ids":
        return np.concatenate([np.asarray(value, dtype=np.int64) for value in values()])
    return _encode(values(), tokenizer, vocab_size, path)


def _encode(texts: Iterator[str], folder: Path, vocab_size: int, path: Path) -> Tokens:
    """Encode texts, each followed by the tokenizer's end-of-text token if it has one."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        if vocab_size != _BYTES:
            raise SweepError(
                f"`{path}` is text, but `{folder}` has no tokenizer",
                hint="save the tokenizer in the model's folder, or give token ids (.bin, .npy, .safetensors, .pt)",
            )
        return np.frombuffer("".join(texts).encode(), dtype=np.uint8)  # the model reads bytes
    from mupscale_cli.sweep.models import load_tokenizer

    tokenizer = load_tokenizer(folder)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    pieces = []
    for text in texts:
        if not isinstance(text, str):
            raise SweepError(f"`{path}` has a `text` of type {type(text).__name__}, expected a string")
        pieces.append(np.asarray([*tokenizer(text, add_special_tokens=False)["input_ids"], *end], dtype=np.int64))
    return np.concatenate(pieces)


def split(tokens: Tokens, length: int, name: Path) -> Split:
    """Hold out the last tenth of the tokens; the loss is measured on its first sequences, at most 64.

    Args:
        tokens: token ids, (tokens,).
        length: tokens per sequence.
        name: path of the data, for messages.

    Raises:
        SweepError: there are too few tokens for one held-out sequence.
    """
    first = len(tokens) - len(tokens) // _HELD_OUT
    num_sequences = min((len(tokens) - first) // length, _MAX_HELD_OUT_SEQUENCES)
    if num_sequences < 1:
        raise SweepError(
            f"`{name}` has {len(tokens)} tokens; sequences of {length} need at least {_HELD_OUT * length}, "
            "because a tenth is held out",
            hint="give more data, or a smaller `--length`",
        )
    held_out = tokens[first : first + num_sequences * length].reshape(num_sequences, length)
    return Split(tokens[:first], np.array(held_out, dtype=np.int64))
