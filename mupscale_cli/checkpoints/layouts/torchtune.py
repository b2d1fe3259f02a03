"""torchtune's own checkpointer: a bare state dict, beside the config.json of the model that it fine-tunes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mupscale_cli.checkpoints.containers.kinds import TORCH_FILE
from mupscale_cli.checkpoints.layouts.base import Layout, StateFiles


def _next_lines(path: str) -> tuple[str, ...]:
    """Name what the run's config and its recipe have to know of the wide model."""
    folder = Path(path)
    return (
        f"tune run RECIPE --config RUN.yaml resume_from_checkpoint=True checkpointer.output_dir={folder.parent} \\",
        f"  checkpointer.checkpoint_files=[{folder.name}/model-00001-of-00001.bin] \\",
        f"  checkpointer.recipe_checkpoint={folder.name}/recipe_state.pt  # and the wide sizes in the section `model`",
        "# with this line in `_setup_optimizer` of the recipe (`tune cp RECIPE FILE` copies it):",
        "  optimizer = config.instantiate(cfg_optimizer, self._model.parameters())",
        f"+ import mupscale; mupscale.scale_optimizer(optimizer, self._model, {path!r})",
    )


_PATTERNS = ("model-00001-of-00001.bin", "ft-model-*.bin", "*.pt")
_MARKS = ("layers.0.attn.output_proj.weight", "layers.0.sa_norm.scale")

TORCHTUNE = Layout(
    name="torchtune",
    title="torchtune",
    patterns=_PATTERNS,
    marks=_MARKS,
    weights=("",),
    state_files=StateFiles(lambda _: "recipe_state.pt", lambda *_: TORCH_FILE),
    recipe="torchtune",
    next_lines=_next_lines,
)
TORCHTUNE_QWEN = replace(
    TORCHTUNE,
    name="torchtune-qwen",
    title="torchtune's Qwen2",
    marks=(*_MARKS, "layers.0.attn.q_proj.bias"),
    recipe="torchtune_qwen",
)
