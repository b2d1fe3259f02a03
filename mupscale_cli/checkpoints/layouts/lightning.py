"""Lightning: one `.ckpt` with the state dict of the module, lists of optimizers and schedulers, and its arguments."""

from __future__ import annotations

from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout


def _next_lines(path: str) -> tuple[str, ...]:
    return (
        "# with a module of the wide sizes, as `load_from_checkpoint` makes it if the file has them:",
        "import mupscale",
        f"trainer = Trainer(callbacks=[mupscale.WideCallback({path!r})])",
        f"trainer.fit(module, data, ckpt_path={path!r})",
    )


LIGHTNING = Layout(
    name="lightning",
    title="Lightning",
    patterns=("*.ckpt",),
    marks=("state_dict", "pytorch-lightning_version"),
    weights=("state_dict",),
    state=("optimizer_states",),
    config=ConfigPlace(key="hyper_parameters", mark="model_type"),
    next_lines=_next_lines,
)
