"""Opening adapters as peft saves them: `adapter_model.safetensors` and `adapter_config.json` in a folder."""

from __future__ import annotations

from pathlib import Path

from mupscale_cli.checkpoints.digests import files_digest
from mupscale_cli.checkpoints.fates import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mupscale_cli.checkpoints.formats.base import Folder
from mupscale_cli.checkpoints.formats.safetensors import Safetensors
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.listing import list_files, require_own_file
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import CheckpointError
from mupscale_cli.files import identities


def has_adapter(folder: Path) -> bool:
    """Return whether a folder contains an adapter, perhaps beside the weights of a model."""
    return all((folder / name).is_file() for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG))


def open_adapter(folder: Path) -> Checkpoint:
    """Read the headers and the config of an adapter.

    Returns:
        A checkpoint whose config is the adapter's.

    Raises:
        CheckpointError: the folder contains no adapter, or an invalid one.
    """
    weights, config = folder / ADAPTER_WEIGHTS, folder / ADAPTER_CONFIG
    if missing := next((file for file in (config, weights) if not file.is_file()), None):
        is_pickle = missing == weights and (folder / "adapter_model.bin").exists()
        raise CheckpointError(
            f"`{folder}` contains no adapter: it has no `{missing.name}`",
            hint="its weights are a pickle; load the adapter with peft and save it again"
            if is_pickle
            else "name the folder that peft's `save_pretrained` wrote",
        )
    sizes = dict(list_files(folder))
    opened = identities(folder / name for name, size in sizes.items() if size is not None)
    found = Safetensors().read(Folder(folder, frozenset()), (weights,))
    content = read_json(require_own_file(config))
    return Checkpoint(folder, False, (weights,), found.tensors, content, found.metadata, opened=opened, sizes=sizes)


def adapter_digest(folder: Path) -> str:
    """Return the XXH3-128 of the digests of an adapter's config and weights."""
    return files_digest((folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS))
