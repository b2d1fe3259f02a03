"""Training data: token ids from a file, or from text with the checkpoint's tokenizer."""

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

Tokens = NDArray[Any]
_KINDS = ".bin, .npy, .safetensors, .pt (token ids), .txt, .jsonl, or a folder of a Hugging Face dataset"
_RAW_TYPES = {"uint16": np.uint16, "uint32": np.uint32}
_HELD_OUT = 10  # the last tenth is not trained on
_MAX_HELD_OUT_SEQUENCES = 64
_BYTES = 256


@dataclass(frozen=True)
class Split:
    """Tokens to train on, and sequences to measure the loss on.

    Attributes:
        train: ids, one after the other.
        held_out: ids, (sequences, length); the same for every trial.
    """

    train: Tokens
    held_out: Tokens


def read_tokens(path: Path, tokenizer: Path, vocab_size: int, data_type: str = "auto") -> Tokens:
    """Token ids, one after the other; read as they are needed where the format allows it.

    Args:
        path: of the data.
        tokenizer: the folder where a tokenizer for text may be.
        vocab_size: of the model.
        data_type: of the numbers in a raw file; `auto` is uint16 where the vocabulary fits.

    Raises:
        SweepError: it cannot be read, or is not for this vocabulary.
    """
    if not path.exists():
        raise SweepError(f"there is no data at `{path}`", hint=f"known: {_KINDS}")
    try:
        tokens = _read(path, tokenizer, vocab_size, data_type)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise SweepError(f"cannot read `{path}`: {error}") from error
    if tokens.size == 0:
        raise SweepError(f"`{path}` holds no tokens")
    if tokens.dtype.kind not in "iu":
        raise SweepError(f"`{path}` holds numbers of type {tokens.dtype}, expected whole numbers: token ids")
    least, largest = int(tokens.min()), int(tokens.max())
    if least < 0 or largest >= vocab_size:
        raise SweepError(
            f"`{path}` holds the token {least if least < 0 else largest}, the model knows 0 to {vocab_size - 1}",
            hint="it was made with another tokenizer, or is of another type: `--data-type uint16` or `uint32`",
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
            return _only({name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118 (no mapping)
    if path.suffix in (".pt", ".pth"):
        content = _load_pickle(path)
        return _only(content if isinstance(content, Mapping) else {"tokens": content}, path)
    if path.suffix == ".txt":
        return _encode(iter([path.read_text(encoding="utf-8")]), tokenizer, vocab_size, path)
    if path.suffix == ".jsonl":
        return _from_rows(_json_rows([path]), tokenizer, vocab_size, path)
    raise SweepError(f"`{path}` is of no kind that is known", hint=f"known: {_KINDS}")


def _from_raw(path: Path, vocab_size: int, data_type: str) -> Tokens:
    if data_type == "auto":
        data_type = "uint16" if vocab_size <= 1 << 16 else "uint32"
    if data_type not in _RAW_TYPES:
        raise SweepError(f"`--data-type {data_type}` is not known", hint="known: auto, uint16, uint32")
    kind = np.dtype(_RAW_TYPES[data_type]).newbyteorder("<")
    if path.stat().st_size == 0 or path.stat().st_size % kind.itemsize:
        raise SweepError(f"`{path}` has {path.stat().st_size} bytes, no whole number of {data_type} above 0")
    return np.memmap(path, dtype=kind, mode="r")


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise SweepError(f"cannot read `{path}`: {error}") from error


def _only(tensors: Mapping[str, Any], path: Path) -> Tokens:
    """The tensor of ids: `input_ids` or `tokens` if there are several."""
    named = [tensors[name] for name in ("input_ids", "tokens") if name in tensors] or list(tensors.values())
    if len(named) != 1 or not isinstance(named[0], torch.Tensor):
        raise SweepError(
            f"`{path}` holds {', '.join(f'`{name}`' for name in tensors) or 'nothing'}; "
            "expected one tensor of token ids, or one that is called `input_ids`"
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
            f"`{path}` is no dataset: it holds neither .jsonl nor .parquet files, and `save_to_disk` did not write it",
            hint=f"known: {_KINDS}",
        )
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise SweepError(
            f"`{path}` is read with the datasets library, which is not installed", hint="pip install datasets"
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
    try:
        return parse_json(line)
    except ValueError:
        return None


def _from_rows(rows: Iterator[Mapping[str, Any]], tokenizer: Path, vocab_size: int, path: Path) -> Tokens:
    """Rows of `input_ids` as they are, rows of `text` encoded."""
    first = next(rows, None)
    if first is None:
        raise SweepError(f"`{path}` holds no rows")
    column = next((name for name in ("input_ids", "text") if name in first), None)
    if column is None:
        raise SweepError(f"the rows of `{path}` have neither `text` nor `input_ids`: {', '.join(first)}")

    def values() -> Iterator[Any]:
        for row in (first, *rows):
            if column not in row:
                raise SweepError(f"a row of `{path}` has no `{column}`: {', '.join(row)}")
            yield row[column]

    if column == "input_ids":
        return np.concatenate([np.asarray(value, dtype=np.int64) for value in values()])
    return _encode(values(), tokenizer, vocab_size, path)


def _encode(texts: Iterator[str], folder: Path, vocab_size: int, path: Path) -> Tokens:
    """The ids of texts, with the token for the end of a text between them if there is one."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        if vocab_size != _BYTES:
            raise SweepError(
                f"`{path}` is text, and there is no tokenizer in `{folder}`",
                hint="save the tokenizer beside the model, or give token ids (.bin, .npy, .safetensors, .pt)",
            )
        return np.frombuffer("".join(texts).encode(), dtype=np.uint8)  # the model reads bytes
    from mupscale_cli.sweep.models import load_tokenizer

    tokenizer = load_tokenizer(folder)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    pieces = []
    for text in texts:
        if not isinstance(text, str):
            raise SweepError(f"`{path}` has a `text` that is {type(text).__name__}")
        pieces.append(np.asarray([*tokenizer(text, add_special_tokens=False)["input_ids"], *end], dtype=np.int64))
    return np.concatenate(pieces)


def split(tokens: Tokens, length: int, name: Path) -> Split:
    """The last tenth is held out; the beginning of it is what the loss is measured on.

    Args:
        tokens: all of them.
        length: tokens a sequence.
        name: of the data, for messages.

    Raises:
        SweepError: there are too few.
    """
    first = len(tokens) - len(tokens) // _HELD_OUT
    num_sequences = min((len(tokens) - first) // length, _MAX_HELD_OUT_SEQUENCES)
    if num_sequences < 1:
        raise SweepError(
            f"`{name}` has {len(tokens)} tokens; sequences of {length} need at least {_HELD_OUT * length}, "
            "of which a tenth is held out",
            hint="give more data, or a smaller `--length`",
        )
    held_out = tokens[first : first + num_sequences * length].reshape(num_sequences, length)
    return Split(tokens[:first], np.array(held_out, dtype=np.int64))
