"""torchtitan: weights at the top level of one distributed checkpoint a step, beside the optimizer's state.

The checkpoint contains no sizes. `--debug.save_config_file config.json` makes torchtitan write them, together with
everything else that it builds the model from; a model of this family is a handful of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mupscale_cli.checkpoints.containers.kinds import DISTRIBUTED
from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout
from mupscale_cli.errors import CheckpointError


class Sizes(ConfigPlace):
    """The sizes of a model, in a file of their own or in the config that torchtitan saves."""

    def read(self, content: Any) -> dict[str, Any] | None:
        if not isinstance(content, Mapping) or "model_spec" not in content:
            return super().read(content)
        spec = content["model_spec"]
        try:
            return _sizes(spec["name"], spec["model"])
        except (KeyError, IndexError, TypeError) as error:
            raise CheckpointError(
                f"`{spec.get('name')}` in the saved config of torchtitan is not built like Llama 3: {error} is missing",
                hint="Llama 3 is the model of torchtitan that can be widened",
            ) from error

    def replaced(self, content: Any, config: Mapping[str, Any]) -> Any:  # noqa: ARG002 (its own file replaces the config)
        return dict(config)


def _sizes(name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    block = model["layers"][0]
    attention = block["attention"]
    return {
        "name": name,
        "dim": model["dim"],
        "n_layers": len(model["layers"]),
        "n_heads": attention["n_heads"],
        "n_kv_heads": attention["n_kv_heads"] or attention["n_heads"],
        "head_dim": attention["qkv_linear"]["head_dim"],
        "hidden_dim": block["feed_forward"]["w1"]["out_features"],
        "vocab_size": model["vocab_size"],
        "norm_eps": model["norm"]["eps"],
        "enable_weight_tying": model["enable_weight_tying"],
    }


def _next_lines(path: str) -> tuple[str, ...]:
    return (
        f"mupscale hparams {path} --lr LR --weight-decay WD --decay all --format torchtitan  # the narrow run's own",
        f"# continue with a model of the sizes in {path}/config.json and with these groups",
    )


TORCHTITAN = Layout(
    name="torchtitan",
    title="torchtitan",
    container=DISTRIBUTED,
    patterns=(".metadata",),
    marks=("layers.0.attention.qkv_linear.wq.weight", "train_state"),
    weights=("",),
    state=("optimizer",),
    config=Sizes("config.json"),
    recipe="torchtitan",
    next_lines=_next_lines,
)
