"""Recognize files and folders that hold no safetensors weights, by their names and first bytes, and say what they are.

The first kind that fits counts. Nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from mupscale_cli.text import listed

_LONGEST = 16  # bytes of a magic number
_LFS = b"version https://"
_BINARY = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_TEXT = frozenset({*b"\t\n\r", *range(32, 127)})  # bytes of plain text
_TRANSFORMERS = "from transformers import AutoModelForCausalLM as M; "


@dataclass(frozen=True, slots=True)
class OtherFormat:
    """A form of weights, or of what people take for weights.

    Attributes:
        about: what it is, with an article.
        hint: how to get weights that can be widened.
        files: patterns of a file's name.
        inside: patterns of names in a folder; any one is enough.
        magic: the first bytes of a file, of any name.
    """

    about: str
    hint: str
    files: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    magic: bytes = b""


_OTHER_FRAMEWORK = (
    'with transformers 4 and that framework, `python -c "'
    + _TRANSFORMERS
    + "M.from_pretrained('DIR', {}=True).save_pretrained('OUT')\"` writes safetensors"
)
_OLD_TORCH = (
    "save it again: `python -c \"import torch; torch.save(torch.load('FILE', map_location='cpu', weights_only=True), "
    "'FILE.new.pt')\"`"
)
_TORCH = "if torch can load it, save its tensors again with `torch.save`"
OTHER_FORMATS = (
    OtherFormat(
        "a GGUF file of llama.cpp",
        'transformers reads it: `python -c "from transformers import AutoModelForCausalLM as M, GgufConfig as C; '
        "M.from_pretrained('DIR', gguf_file='NAME', quantization_config=C(dequantize=True)).save_pretrained('OUT')\"`; "
        "the weights that it was made from are better",
        ("*.gguf",),
        ("*.gguf",),
        b"GGUF",
    ),
    OtherFormat(
        "an adapter (LoRA) without its base model",
        "widen it with its base model, `mupscale widen BASE --adapter DIR`; or merge it first with peft, "
        "`PeftModel.from_pretrained(base, 'DIR').merge_and_unload().save_pretrained('OUT')`",
        ("adapter_config.json", "adapter_model.*"),
        ("adapter_config.json", "adapter_model.*"),
    ),
    OtherFormat(
        "source code in Python",
        "name the weights; `--model FILE:FUNCTION` says which function builds their model",
        ("*.py",),
    ),
    OtherFormat(
        "the index of a model's weight files",
        "pass the folder that contains it",
        ("*.safetensors.index.json", "*.bin.index.json"),
    ),
    OtherFormat(
        "a part of a DeepSpeed checkpoint",
        "pass the folder that holds `latest`, or the folder of a step with the files of all processes; "
        "`python zero_to_fp32.py DIR OUT --safe_serialization` in that folder extracts the weights alone; put "
        "config.json beside them",
        ("zero_pp_rank_*", "bf16_zero_pp_rank_*", "mp_rank_*_model_states.pt"),
        ("zero_to_fp32.py", "global_step*", "zero_pp_rank_*", "bf16_zero_pp_rank_*", "mp_rank_*_model_states.pt"),
    ),
    OtherFormat(
        "a part of a distributed checkpoint of torch", "pass the folder that contains it", ("*.distcp", ".metadata")
    ),
    OtherFormat(
        "a distributed checkpoint of torch without its `.metadata`",
        "copy that file too; if the run was stopped before it wrote the file, which it does last, pass an earlier step",
        inside=("*.distcp", "pytorch_model_fsdp_*"),
    ),
    OtherFormat(
        "a Megatron checkpoint in the old format `torch`",
        "convert it with the run's own command and `--ckpt-convert-format torch_dist --ckpt-convert-save OUT`",
        ("model_optim_rng.pt",),
        ("latest_checkpointed_iteration.txt", "iter_[0-9]*", "mp_rank_*"),
    ),
    OtherFormat(
        "a checkpoint of NeMo 2",
        "`nemo llm export path=DIR target=hf output_path=OUT` converts it",
        inside=("context",),
    ),
    OtherFormat(
        "a checkpoint of NeMo 1, an archive",
        "convert it with `scripts/checkpoint_converters/convert_MODEL_nemo_to_hf.py` of NeMo",
        ("*.nemo",),
        ("*.nemo",),
    ),
    OtherFormat(
        "an orbax checkpoint of JAX",
        "load it with `orbax.checkpoint.PyTreeCheckpointer().restore(os.path.abspath('DIR'))` and save the arrays, "
        "under the names that transformers uses, with `safetensors.flax.save_file`",
        ("_CHECKPOINT_METADATA", "manifest.ocdbt"),
        ("_CHECKPOINT_METADATA", "manifest.ocdbt", "ocdbt.process_*", "_METADATA"),
    ),
    OtherFormat(
        "Flax weights",
        _OTHER_FRAMEWORK.format("from_flax"),
        ("flax_model*.msgpack", "*.msgpack"),
        ("flax_model*.msgpack", "*.msgpack"),
    ),
    OtherFormat(
        "TensorFlow weights",
        _OTHER_FRAMEWORK.format("from_tf"),
        ("tf_model*.h5", "*.h5", "*.ckpt.index", "saved_model.pb"),
        ("tf_model*.h5", "*.h5", "*.ckpt.index", "saved_model.pb"),
        b"\x89HDF\r\n\x1a\n",
    ),
    OtherFormat(
        "a CTranslate2 model",
        "widen the model that it was converted from, and convert that again: `ct2-transformers-converter --model WIDE "
        "--output_dir OUT`",
        inside=("shared_vocabulary.*", "source_vocabulary.*", "vocabulary.*"),
        magic=b"\x06\x00\x00\x00",
    ),
    OtherFormat(
        "an ONNX model",
        "widen the model that it was exported from, and export that again: `optimum-cli export onnx --model WIDE OUT` "
        "(optimum needs transformers 4)",
        ("*.onnx", "*.onnx_data"),
        ("*.onnx",),
    ),
    OtherFormat(
        "weights of MLX",
        "convert them with `mlx.core.save_safetensors('model.safetensors', mlx.core.load('weights.npz'))`; dequantize "
        "quantized ones first, `mlx_lm.convert --hf-path DIR -d --mlx-path OUT`",
        ("weights*.npz",),
        ("weights*.npz",),
    ),
    OtherFormat(
        "arrays of NumPy",
        "save them as safetensors: `safetensors.numpy.save_file(dict(numpy.load('FILE')), 'model.safetensors')`",
        ("*.npz", "*.npy"),
        ("*.npz", "*.npy"),
        b"\x93NUMPY",
    ),
    OtherFormat(
        "a model of rust-bert",
        "widen the model that it was converted from, and convert that again",
        ("rust_model.ot", "*.ot"),
        ("rust_model.ot",),
    ),
    OtherFormat("a torch file from before torch 1.6", _OLD_TORCH, magic=b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."),
    OtherFormat(
        "torch weights in a form that mupscale does not read",
        _TORCH,
        ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle"),
        ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.bin"),
    ),
    OtherFormat(
        "a data set",
        "pass a model",
        ("dataset_info.json", "*.parquet", "*.arrow"),
        ("dataset_info.json", "dataset_dict.json", "*.parquet", "*.arrow", "*.jsonl"),
    ),
    OtherFormat(
        "the folder of a training run",
        "pass one of its checkpoints, such as `DIR/checkpoint-1000`",
        inside=("checkpoint-[0-9]*", "epoch_[0-9]*", "step_[0-9]*"),
    ),
    OtherFormat(
        "a config without weights", "pass the model's folder or its weight file", ("*config.json",), ("config.json",)
    ),
    OtherFormat(
        "a tokenizer without a model",
        "pass the folder of the model's weights",
        ("tokenizer*.json", "*.model", "vocab.*", "merges.txt"),
        ("tokenizer.json", "tokenizer_config.json", "*.model", "vocab.*"),
    ),
    OtherFormat(
        "a JSON or text file", "pass a safetensors file or a model's folder", ("*.json", "*.txt", "*.md", "*.yaml")
    ),
)
POINTER = OtherFormat("a pointer of Git LFS instead of the file", "fetch the file: `git -C DIR lfs pull`")
EMPTY_FILE = OtherFormat("an empty file", "download or save it again: what wrote it did not finish")
TEXT = OtherFormat(
    "text under the name of a weight file",
    "look into it: a failed download may be a web page; download or save it again",
)
EMPTY = OtherFormat("an empty folder", "download or save the checkpoint again")
UNKNOWN_FILE = OtherFormat(
    "a file of a format that mupscale does not know", "pass a safetensors file or a model's folder"
)
UNKNOWN_FOLDER = OtherFormat("", "pass a model's folder or a safetensors file")  # described by what it contains
_MOST_NAMED = 3  # names of files in a description


@dataclass(frozen=True, slots=True)
class Description:
    """What a path is that holds no safetensors weights, and how to get weights from it.

    Attributes:
        about: what it is, with an article.
        hint: how to get weights that can be widened.
        predicate: the same as a predicate: `is a GGUF file of llama.cpp`, `contains `notes.txt``.
    """

    about: str
    hint: str
    predicate: str


def describe(path: Path) -> Description:
    """Describe an existing file or folder that holds no safetensors weights."""
    if path.is_dir():
        return describe_folder(path, sorted(inner.name for inner in path.iterdir()))
    start = b""
    with suppress(OSError), path.open("rb") as file:
        start = file.read(_LONGEST)
    if path.suffix in _BINARY and (damaged := _damaged(path, start)) is not None:
        return _described(damaged, path.parent, path.name)
    fitting = (
        kind for kind in OTHER_FORMATS if _fits(kind.files, path.name) or (kind.magic and start.startswith(kind.magic))
    )
    return _described(next(fitting, UNKNOWN_FILE), path.parent, path.name)


def _damaged(path: Path, start: bytes) -> OtherFormat | None:
    """Return what a file is that has the name of a binary one and cannot be one; None if it can."""
    if not start:
        return EMPTY_FILE if path.is_file() else None
    if start == _LFS:
        return POINTER
    return TEXT if _TEXT.issuperset(start) else None


def describe_folder(folder: Path, names: Collection[str]) -> Description:
    """Describe a folder without safetensors weights, given the names of what it contains, which may be remote."""
    fitting = ((kind, name) for kind in OTHER_FORMATS for name in names if _fits(kind.inside, name))
    kind, name = next(fitting, (UNKNOWN_FOLDER if names else EMPTY, ""))
    verb = "is" if "folder" in kind.about else "contains"
    return replace(
        _described(kind, folder, name), predicate=f"{verb} {kind.about or listed(sorted(names), _MOST_NAMED)}"
    )


def _described(kind: OtherFormat, folder: Path, name: str) -> Description:
    """Fill the placeholders of a kind's hint."""
    places = {"DIR": str(folder), "FILE": str(folder / name), "NAME": name}
    hint = re.sub(r"\b(DIR|FILE|NAME)\b", lambda match: places[match[1]], kind.hint)
    return Description(kind.about, hint, f"is {kind.about}")


def _fits(patterns: Collection[str], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
