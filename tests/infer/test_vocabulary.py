"""The meanings of the names of config keys and modules."""

import pytest

from mupscale_cli.infer.vocabulary import QUERY, meaning, module_of


@pytest.mark.parametrize(
    ("key", "counts", "size"),
    [
        ("hidden_size", "embed", 48),
        ("n_embd", "embed", 48),
        ("num_attention_heads", "h", 4),
        ("decoder_attention_heads", "h", 4),
        ("num_key_value_heads", "kv", 2),
        ("multi_query_group_num", "kv", 2),
        ("mamba_num_heads", "mh", 8),
        ("cross_attention_num_heads", "", 4),
        ("head_dim", "d", 8),
        ("qk_nope_head_dim", "nope", 12),
        ("intermediate_size", "ffn", 40),
        ("moe_intermediate_size", "moe_ffn", 40),
        ("num_experts_per_tok", "chosen", 2),
        ("num_hidden_layers", "layers", 4),
        ("vocab_size", "vocab", 53),
        ("temperature", "", None),
    ],
)
def test_meaning_of_config_keys(key, counts, size):
    known = meaning(key)
    assert (known.counts, next(iter(known.sizes), None)) == (counts, size)


@pytest.mark.parametrize(
    ("tensor", "module"), [("h.0.attn.q_proj.weight", "q_proj"), ("h.0.attn.in_proj_bias", "in_proj_bias"), ("w", "w")]
)
def test_module_of_tensor(tensor, module):
    assert module_of(tensor) == module
    assert bool(QUERY.fullmatch(module)) == (module == "q_proj")
