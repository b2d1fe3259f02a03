"""Meta's config computes the size of the feed-forward layer, so the widened one must give the planned size."""

import pytest

from mupscale_cli.architecture.loading import load_recipe
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.plan import Request, make_plan

# dim, n_heads, n_kv_heads, multiple_of, ffn_dim_multiplier and the size that Meta published
LLAMAS = {
    "1-7B": (4096, 32, 32, 256, None, 11008),
    "1-13B": (5120, 40, 40, 256, None, 13824),
    "2-70B": (8192, 64, 8, 4096, 1.3, 28672),
    "3-8B": (4096, 32, 8, 1024, 1.3, 14336),
    "3.2-1B": (2048, 32, 8, 256, 1.5, 8192),
    "3.2-3B": (3072, 24, 8, 256, 1.0, 8192),
    "3.1-405B": (16384, 128, 8, 4096, 1.2, 53248),
    "exact": (12, 2, 2, 32, None, 32),  # the narrow size is the multiple itself, and the wide formula exceeds it
}


def hidden_size(params):
    """Return what `FeedForward` of llama-models a9c89c4 computes."""
    size, multiple = int(2 * (4 * params["dim"]) / 3), params["multiple_of"]
    assert isinstance(multiple, int)
    if params["ffn_dim_multiplier"] is not None:
        size = int(params["ffn_dim_multiplier"] * size)
    return multiple * ((size + multiple - 1) // multiple)


def plan(case, request):
    dim, heads, kv_heads, multiple, multiplier, inner = LLAMAS[case]
    params = {"dim": dim, "n_layers": 1, "n_heads": heads, "n_kv_heads": kv_heads, "vocab_size": -1}
    params |= {"multiple_of": multiple, "ffn_dim_multiplier": multiplier, "norm_eps": 1e-5}
    assert hidden_size(params) == inner
    keys = kv_heads * dim // heads
    shapes = {"attention.wq": (dim, dim), "attention.wk": (keys, dim), "attention.wv": (keys, dim)}
    shapes |= {"attention.wo": (dim, dim), "attention_norm": (dim,), "ffn_norm": (dim,)}
    shapes |= {"feed_forward.w1": (inner, dim), "feed_forward.w3": (inner, dim), "feed_forward.w2": (dim, inner)}
    shapes = {f"layers.0.{name}": shape for name, shape in shapes.items()}
    shapes |= {"tok_embeddings": (7, dim), "norm": (dim,), "output": (7, dim)}
    specs = [TensorSpec(f"{name}.weight", "BF16", shape) for name, shape in shapes.items()]
    return make_plan(load_recipe("meta_llama", params), specs, params, request)


@pytest.mark.parametrize("case", LLAMAS)
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_the_config_computes_the_size_of_whole_copies(case, factor):
    *_, multiple, multiplier, inner = LLAMAS[case]
    config = plan(case, Request(factor)).config
    assert hidden_size(config) == factor * inner
    assert config["multiple_of"] == factor * multiple
    if case != "exact":
        assert config["ffn_dim_multiplier"] == (multiplier or 1)


@pytest.mark.parametrize("case", LLAMAS)
@pytest.mark.parametrize("growth", [Request(axes={"ffn": 2}), Request(sizes={"ffn": 99_991})])
def test_the_config_computes_other_sizes(case, growth):
    wide = plan(case, growth)
    assert hidden_size(wide.config) == next(axis.wide_size for axis in wide.axes if axis.name == "ffn")
