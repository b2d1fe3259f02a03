"""Recognize pipelines of diffusers, whose subfolders are models of their own, and say how to widen these."""

from __future__ import annotations

from collections.abc import Collection

from mupscale_cli.checkpoints.libraries import DIFFUSERS
from mupscale_cli.errors import OtherFormatError

_INDEX = "model_index.json"
_WEIGHTS = (".safetensors", ".bin")


def refuse_pipeline(title: str, names: Collection[str], *, is_remote: bool = False) -> None:
    """Refuse a folder that holds a pipeline, and say how to widen its components.

    Args:
        title: path or Hub id of the folder.
        names: names of the files in the folder and in its subfolders.
        is_remote: whether the folder is on the Hub, from where it has to be downloaded first.

    Raises:
        OtherFormatError: the folder holds a pipeline.
    """
    if _INDEX not in names:
        return
    root = title.rpartition("/")[2] if is_remote else title
    own = DIFFUSERS.weights[0].partition(".")[0]
    parts = [name.rpartition("/") for name in sorted(names) if "/" in name and name.endswith(_WEIGHTS)]
    components = {folder: file.startswith(own) for folder, _, file in parts}
    width = max(map(len, components), default=0)
    rows = (
        f"  {name:{width}}  "
        + (
            f"mupscale widen {root}/{name} --factor 2"
            if keeps_sizes
            else "stays as it is, since other components read its output"
        )
        for name, keeps_sizes in components.items()
    )
    download = f"run `hf download {title} --local-dir {root}` first; " if is_remote else ""
    raise OtherFormatError(
        f"`{title}` is a pipeline of diffusers, whose components are widened one by one",
        excerpt="\n".join(rows),
        hint=f"{download}a wide UNet, transformer or autoencoder reads and returns tensors of the same sizes as the "
        f"narrow one, so it can replace that in a copy of the pipeline; `{_INDEX}` stays as it is",
    )
