"""torchtitan: weights at the top level of one distributed checkpoint a step, beside the optimizer's state.

The checkpoint contains no sizes. `--debug.save_config_file config.json` makes torchtitan write them, together with
everything else that it builds the model from; a model of this family is a handful of them.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from shlex import quote
from typing import TYPE_CHECKING, Any

from mupscale_cli.checkpoints.containers.kinds import DISTRIBUTED
from mupscale_cli.checkpoints.layouts.base import ConfigPlace, Layout
from mupscale_cli.checkpoints.libraries import Library
from mupscale_cli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

_LENGTH = 64  # of the sequences that verification computes, at most


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


def _build(torchtitan: Any, sizes: Mapping[str, Any]) -> nn.Module:
    """Build a Llama 3, with the attention that also runs on a CPU in float64."""
    llama3 = importlib.import_module(f"{torchtitan.__name__}.models.llama3")
    attention = importlib.import_module(f"{torchtitan.__name__}.models.common.attention")
    config = _resized(llama3.model_registry("debugmodel", attn_backend="flex").model, sizes)
    for block in config.layers:
        block.attention.inner_attention = attention.ScaledDotProductAttention.Config()
    model: nn.Module = config.build()
    return model


def _resized(config: Any, sizes: Mapping[str, Any]) -> Any:
    """Give the config of a Llama 3 of torchtitan other sizes, in place; return it."""
    dim, ffn, eps = (sizes[key] for key in ("dim", "hidden_dim", "norm_eps"))
    heads, kv_heads, head_dim = (sizes[key] for key in ("n_heads", "n_kv_heads", "head_dim"))
    block = config.layers[0]
    for part in (config, block.attention):
        part.dim = dim
    for norm in (config.norm, block.attention_norm, block.ffn_norm):
        norm.normalized_shape, norm.eps = dim, eps
    for part in (block.attention, block.attention.qkv_linear):
        part.n_heads, part.n_kv_heads, part.head_dim = heads, kv_heads, head_dim
    block.attention.rope.dim, block.attention.rope.max_seq_len = head_dim, _LENGTH
    config.vocab_size = config.tok_embeddings.num_embeddings = sizes["vocab_size"]
    config.tok_embeddings.embedding_dim = dim
    config.enable_weight_tying = sizes.get("enable_weight_tying", False)
    for linear, sums, rows in (
        (block.attention.qkv_linear.wqkv, dim, (heads + 2 * kv_heads) * head_dim),
        (block.attention.wo, heads * head_dim, dim),
        (block.feed_forward.w1, dim, ffn),
        (block.feed_forward.w2, ffn, dim),
        (block.feed_forward.w3, dim, ffn),
        (config.lm_head, dim, sizes["vocab_size"]),
    ):
        linear.in_features, linear.out_features = sums, rows
    config.layers = [copy.deepcopy(block) for _ in range(sizes["n_layers"])]
    return config


def _optimizers(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes of the optimizers in a saved config."""
    groups = run.get("optimizer", {}).get("param_groups", ())
    return tuple(dict.fromkeys(group["optimizer_name"] for group in groups))


def _next_lines(path: str) -> tuple[str, ...]:
    wide = quote(path)
    return (
        f"mupscale hparams {wide} --lr LR --weight-decay WD --decay all --format torchtitan  # the narrow run's own",
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
    optimizers=lambda _, run: _optimizers(run),
    config=Sizes("config.json"),
    recipe="torchtitan",
    library=Library("torchtitan", None, "hidden_dim", _build),
    next_lines=_next_lines,
)
