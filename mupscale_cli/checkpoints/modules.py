"""Reading the modules of a sentence-transformers folder: what modules.json names, and their configs and headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mupscale_cli.checkpoints.fates import Decision
from mupscale_cli.checkpoints.formats.base import Folder
from mupscale_cli.checkpoints.formats.safetensors import merge_headers
from mupscale_cli.checkpoints.header import StoredTensor, parse_header
from mupscale_cli.checkpoints.json_files import parse_json, read_json
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError
from mupscale_cli.files import SMALL_BYTES, read_errors, read_text
from mupscale_cli.text import shown

MODULES = "modules.json"
MODEL_CONFIG = "config_sentence_transformers.json"
WEIGHTS = "model.safetensors"
_PICKLE = "pytorch_model.bin"


@dataclass(frozen=True)
class Module:
    """A module that a sentence-transformers model applies, in order.

    Attributes:
        folder: its folder within the model's, with `/`; empty for the folder itself.
        type: the class, such as `sentence_transformers.models.Dense`.
        config_file: path of its config within the model's folder; None if it has none.
        config: its config.
        tensors: its tensors by name; those of the transformer are the checkpoint's and not repeated here.
    """

    folder: str
    type: str
    config_file: str | None
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor.spec for tensor in self.tensors.values())

    @property
    def weights_file(self) -> str:
        """The path of its weights within the model's folder."""
        return f"{self.folder}/{WEIGHTS}"


def read_modules(folder: Folder) -> tuple[Module, ...]:
    """Read the modules of a folder, in the order of modules.json; none if the folder has no such file.

    Raises:
        CheckpointError: a file is invalid, or a module's weights are a pickle.
    """
    file = folder.path / MODULES
    if MODULES not in folder.names:
        return ()
    with read_errors(file):
        text = read_text(file, SMALL_BYTES)
    try:
        entries = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"`{file}` is not valid JSON: {error}") from error
    is_list = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if not is_list or not entries:
        raise CheckpointError(f"`{file}` is not a list of modules")
    return tuple(_module(folder, entry) for entry in entries)


def check_place(folder: Folder) -> None:
    """Refuse a model whose transformer lies in a folder of its own, as old versions of sentence-transformers save it.

    Raises:
        CheckpointError: it does.
    """
    inside = next((module.folder for module in read_modules(folder)[:1]), "")
    if any(name.startswith(f"{inside}/") and name.endswith(".safetensors") for name in folder.names if inside):
        raise CheckpointError(
            f"the transformer of `{folder.path}` is in the folder `{inside}`, not beside `{MODULES}`",
            hint="save the model again, which moves it: "
            f"`SentenceTransformer({str(folder.path)!r}).save_pretrained(DIR)`, and widen DIR",
        )


def module_decisions(modules: Sequence[Module], names: Iterable[str]) -> dict[str, Decision]:
    """Return what becomes of the files of modules, by their paths in the model's folder.

    Args:
        modules: the modules.
        names: the paths of all files in the folder.
    """
    weights = {module.weights_file for module in modules if module.tensors}
    folders = {module.folder for module in modules if module.folder}
    inside = [name for name in names if name.rpartition("/")[0] in folders]
    carried = dict.fromkeys((*inside, *([MODULES] if modules else ())), Decision("carried", "of a module"))
    return carried | dict.fromkeys(weights, Decision("widened", "weights of a module"))


def _module(folder: Folder, entry: Mapping[str, Any]) -> Module:
    path, kind = entry.get("path"), entry.get("type")
    if not isinstance(path, str) or not isinstance(kind, str) or not _is_inside(path):
        raise CheckpointError(
            f"`{folder.path / MODULES}` has the module {shown(entry)}, expected a `type` and a `path` in the folder"
        )
    place = path.strip("/")
    prefix = f"{place}/" if place else ""
    names = sorted(name for name in folder.names if name.startswith(prefix) and "/" not in name.removeprefix(prefix))
    configs = [name for name in names if name.endswith("config.json")]
    if not place:
        configs = [name for name in configs if name.startswith("sentence_")]
    config = read_json(folder.path / configs[0]) if configs else {}
    tensors: dict[str, StoredTensor] = {}
    if place and f"{prefix}{WEIGHTS}" in names:
        weights = folder.path / place / WEIGHTS
        with folder.open(weights) as stream:
            tensors = merge_headers([parse_header(stream, weights)], weights)
    elif place and f"{prefix}{_PICKLE}" in names:
        raise CheckpointError(
            f"`{folder.path / place / _PICKLE}` is a pickle, not safetensors",
            hint="load the model with sentence-transformers and save it again with `save_pretrained(DIR)`",
        )
    return Module(place, kind, configs[0] if configs else None, config, tensors)


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return not Path(path).is_absolute() and ".." not in parts and "\\" not in path
