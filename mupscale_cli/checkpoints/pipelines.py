"""Recognizing pipelines: folders of diffusers whose subfolders are models of their own, which are widened one by one."""

from __future__ import annotations

from collections.abc import Collection

from mupscale_cli.errors import CheckpointError
from mupscale_cli.libraries import library_named

_INDEX = "model_index.json"
_WEIGHTS = (".safetensors", ".bin")


def refuse_pipeline(title: str, names: Collection[str], *, is_remote: bool = False) -> None:
    """Refuse a folder that holds a pipeline, and say how to widen its components.

    Args:
        title: path or Hub id of the folder, for the commands.
        names: names of the files in the folder and in its subfolders.
        is_remote: whether the folder is on the Hub, from where a component has to be downloaded first.

    Raises:
        CheckpointError: the folder holds a pipeline.
    """
    if _INDEX not in names:
        return
    own = library_named("diffusers").weights[0].partition(".")[0]
    holders = {name.rpartition("/")[0]: False for name in sorted(names) if "/" in name and name.endswith(_WEIGHTS)}
    holders |= {name.rpartition("/")[0]: True for name in sorted(names) if name.rpartition("/")[2].startswith(own)}
    width = max(map(len, holders), default=0)
    lines = [
        f"  {name:{width}}  "
        + (
            f"mupscale widen {title.rstrip('/').rpartition('/')[2] if is_remote else title}/{name} --factor 2"
            if is_wide
            else "its output would become wider, which other components read"
        )
        for name, is_wide in holders.items()
    ]
    folder = title.rpartition("/")[2]
    raise CheckpointError(
        f"`{title}` is a pipeline of diffusers, whose components are widened one by one",
        excerpt="\n".join(lines),
        hint=(f"run `hf download {title} --local-dir {folder}` first; " if is_remote else "")
        + "inputs and outputs of these components keep their sizes, so a wide one can replace the narrow one in a copy of "
        f"the pipeline, without a change of {_INDEX}",
    )
