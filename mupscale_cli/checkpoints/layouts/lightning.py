"""Lightning: one `.ckpt` with the state dict of the module, lists of optimizers and schedulers, and its arguments."""

from __future__ import annotations

from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout


def _next_lines(path: str) -> tuple[str, ...]:
    return (
        f"Trainer(callbacks=[mupscale.WideCallback({path!r})]).fit(module, data, ckpt_path={path!r})",
        "# with a module of the wide sizes; `Module.load_from_checkpoint` reads them if the file has them",
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
