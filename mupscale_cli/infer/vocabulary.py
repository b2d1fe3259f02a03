"""The names that configs and models use: keys, axes and modules whose names reveal their meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

HIDDEN, HEADS = 48, 4  # hidden size and number of heads of a tiny model


@dataclass(frozen=True, slots=True)
class Meaning:
    """The meaning of a config key.

    Attributes:
        counts: the short name of the things that the key counts: an axis, or something else such as `layers`. It is
            empty if there is no short name.
        keys: a regular expression of the keys.
        sizes: sizes for a tiny model. Of several keys with this meaning, each takes the next size, so that they differ.
    """

    counts: str
    keys: str
    sizes: tuple[int, ...] = ()


_FEED_FORWARD = (40, 28, 36, 44, 52, 60)
_RANKS = (20, 18, 14, 22)
# The first pattern that matches a key decides. Some sizes are multiples because architectures require that.
_MEANINGS = tuple(
    Meaning(*row)
    for row in (
        ("", r"reassemble_hidden_size", (HIDDEN,)),  # that of the backbone
        ("vocab", r".*vocab.*size.*|vocab_sizes?|n_vocab|entity_vocab_size", (53,)),
        ("", r"num_kv_shared_layers", (2,)),
        ("", r".*dense_replace|num_dense_layers|.*dense_layers", (1,)),
        ("layers", r"num_hidden_layers|n_layers?|num_layers", (4,)),
        ("", r".*(num|n)_(?:\w+_)?layers?|num_(?:\w+_)?blocks|.*_layers", (4,)),
        ("", r".*_(period|interval|every_n|step)", (2,)),
        ("", r".*_offset", (1,)),
        ("positions", r".*max.*(position|seq|source|target|len)\w*|n_positions|n_ctx|context_length", (64,)),
        ("positions", r"max_.*_embeddings", (64,)),
        ("embed", r"hidden_size|n_embd|d_model|dim|n_embed|embed_dim|hidden_dim|model_dim|emb_dim", (HIDDEN,)),
        ("emb", r"word_embed_proj_dim|embedding_size|d_embed|input_embedding_size", (HIDDEN,)),
        ("", r"embedding_dim|emb_hidden_size|output_embedding_size|decoder_hidden_size|lru_width", (HIDDEN,)),
        ("", r"attention_hidden_size|mamba_d_ssm", (2 * HIDDEN,)),
        ("d", r"attention_head_dim", (2 * HIDDEN // HEADS,)),
        ("", r"mamba_headdim", (2 * HIDDEN // HEADS,)),
        ("kv", r".*(kv_heads|key_value_heads|head_kv|kv_head|kv_n_heads|multi_query_group_num).*", (2,)),
        ("lkv", r"linear_num_key_heads", (2,)),
        ("mh", r"mamba_(num|n)_heads", (8,)),
        ("", r".*mamba.*(n|num)_heads", (8,)),
        ("", r"index_n_heads", (2,)),
        ("lv", r"linear_num_value_heads", (HEADS,)),
        (
            "",
            r"(?=.*(mamba|linear|index|ssm|lru|hash|cross|key_value)).*((num|n)_(\w+_)?heads?|attention_heads)",
            (HEADS,),
        ),
        ("h", r".*((num|n)_(\w+_)?heads?|attention_heads|n_head)", (HEADS,)),
        ("", r".*_heads", (HEADS,)),
        ("rope", r"qk_rope_head_dim", (8,)),
        ("", r".*rotary_dim", (8,)),
        ("q_rank", r"q_lora_rank", _RANKS),
        ("kv_rank", r"kv_lora_rank", _RANKS),
        ("r", r"time_step_rank|mamba_dt_rank", _RANKS),
        ("", r".*lora_rank|.*_rank", _RANKS),
        ("p", r"mamba_(head_dim|d_head)", (12,)),
        ("", r".*mamba.*(head_dim|d_head)", (12,)),
        ("nope", r"qk_nope_head_dim", (12,)),
        ("", r".*nope_head_dim", (12,)),
        ("", r"qk_head_dim", (20,)),
        ("dv", r"v_head_dim", (10, 14)),
        ("ldv", r"linear_value_head_dim", (10, 14)),
        ("", r"value_head_dim", (10, 14)),
        ("ldk", r"linear_key_head_dim", (8,)),
        ("d", r"head_dim|d_kv|d_head|kv_channels", (8,)),
        ("", r".*(head_dim|d_head|dim_head|d_kv|head_size|kv_channels)", (8,)),
        ("moe_ffn", r"moe_intermediate_size|moe_ffn_hidden_size|expert_ffn_hidden_size", _FEED_FORWARD),
        ("shared_ffn", r"shared_expert_intermediate_size|shared_intermediate_size", _FEED_FORWARD),
        ("decoder_ffn", r"decoder_ffn_dim", _FEED_FORWARD),
        (
            "ffn",
            r"intermediate_size|(encoder_)?ffn_dim|d_ff|n_inner|ffn_hidden_size|inner_dim|mlp_hidden_size|dff",
            _FEED_FORWARD,
        ),
        ("", r".*(intermediate_(size|dim)|ffn_(dim|size|hidden_size)|d_ff|dim_ff|dff|mlp_dim)", _FEED_FORWARD),
        ("", r".*(n_inner|d_inner|inner_dim|feedforward\w*|mlp_hidden\w*)", _FEED_FORWARD),
        (
            "",
            r"n_group|num_group|num_expert_groups?",
            (2,),
        ),  # with several groups, copies of experts would change which groups are chosen
        ("", r"topk_group", (1,)),
        ("", r".*(num|n)_shared_experts?", (1,)),
        ("chosen", r".*(top_?k(?:_\w+)?|experts_per_tok(en)?|.*_per_tok(en)?)|moe_k", (2,)),
        ("experts", r"num_local_experts|num_experts|n_routed_experts|moe_num_experts|n_experts", (4,)),
        ("", r".*(num|n)_(?:\w+_)?experts", (4,)),
        ("n", r"state_size|ssm_state_size|mamba_d_state", (6,)),
        ("", r".*(state_size|d_state|ssm_state)", (6,)),
        ("ng", r"(mamba_)?n_groups", (2,)),
        ("", r".*n_groups", (2,)),
        ("", r".*(sliding_window|window)(_size)?", (8,)),
        ("", r".*chunk.*|.*block_size", (8,)),
        ("", r".*codebook_size", (16,)),  # a power of two
        ("", r"image_size", (32,)),
        ("", r"hidden_size_per_layer_input", (10,)),
        ("x", r"expand|mamba_expand"),
    )
)
_UNKNOWN = Meaning("", "")
_KINDS = frozenset(each.counts for each in _MEANINGS) | {"g"}  # of axes
_LANGUAGE = ("text", "language", "llm", "lm", "decoder", "thinker", "talker")  # the part whose axes have plain names

# Keys that do not count units of a layer, but positions, layers, tokens or groups of experts.
NO_UNITS = re.compile(
    r".*(vocab|position|layer(s|_types)?$|_ids?$|token|window|kernel|seed|length|seq|chunk|block|num_labels|patch|"
    r"image|channels|stride|depth|period|interval|offset|_step$|version|max_|_every|num_beams|num_return|rope_theta|"
    r"pretraining_tp|axial|num_buckets|distance|iter|n_ctx|_freq|conv|group_size|rotary|_layer_num|dense|"
    r"pos_emb_(height|width|time)|num_(\w+_)?queries|"
    r"topk|top_k|per_tok|languages|type_vocab|num_hash|n_special|n_langs|local_size|nextn|mtp|_idx|index$|scale$).*"
)
# Keys whose lists are not the widths of stages.
NO_WIDTHS = re.compile(r".*(queries|head|depth|layer|patch|image|label|channel|kernel|stride|group|ratio|_id|window).*")
# Keys whose lists name some of the blocks by number, rather than what a model returns behind blocks.
BLOCK_NUMBERS = re.compile(r"(?!.*(out_|feature)).*_(ind(ex(es)?|ices)|idxs?|layers|layer_ids)")
TOKEN_IDS = re.compile(r".*(_id|_ids|token_index|_token)$")
# Keys that a tiny model leaves as they are.
KEPT = re.compile(
    r".*(kernel|conv|stride|seed|num_labels|num_channels|patch|image_embedding|_version|depth|dtype|expand|num_return|num_beams).*"
)
EXPERTS_PER_TOKEN = re.compile(r".*(per_tok|top_k|topk)(?!.*group).*")

HEAD_SIZES = ("d", "nope", "rope", "p")  # axes inside one head
ROTATED = ("d", "rope")  # those that rotary positions may depend on
# Axes that a bare factor does not widen. They must be named.
BY_NAME = re.compile(r"g|d|e|n|r|p|dv|ldk|ldv|nope|rope|.*rank.*|.*lora.*|.*head_dim.*|.*experts.*")
ABOUT = {
    "embed": "the residual stream",
    "kv": "key/value heads, each with its query heads",
    "g": "query heads of one key/value head",
    "h": "attention heads",
    "d": "one head",
    "ffn": "neurons of the feed-forward layer",
    "moe_ffn": "neurons of one expert",
    "shared_ffn": "neurons of the shared expert",
    "experts": "experts; k times as many are chosen, and each keeps its share",
    "n": "states of one channel",
}

# Modules that compute what attention compares and mixes, as opposed to its output.
INNER = re.compile(
    r"(q|k|v|qkv|kv|query|key|value|query_key_value|c_attn|qkv_proj|[qkv]_proj|kv_proj|wqkv|w_pack|[qkv]_lin|att_proj|"
    r"(query|key|value)_proj|w_?[qkv]|q_a_proj|q_b_proj|kv_b_proj|to_[qkv]|[qkv]_attn|g_proj|gate_proj|query_global|"
    r"key_global|value_global|in_proj|in_proj_weight|in_proj_bias)",
    re.IGNORECASE,
)
# Names of such modules that belong to attention wherever they are, and of those that follow them.
INNER_ALONE = re.compile(
    r"(q|k|v|qkv|kv|query|key|value|query_key_value|c_attn|qkv_proj|[qkv]_proj|kv_proj|wqkv|w_pack|[qkv]_lin|att_proj|"
    r"(query|key|value)_proj|w[qkv]|w_[qkv]|to_(qkv|kv|[qkv])|(in_proj_)(weight|bias))",
    re.IGNORECASE,
)
OUTER = re.compile(
    r"((o|c|out|output|fc_out|attn_out)_?)?(proj|lin|dense)|o|out|wo|w_o|to_out|(proj|fc)_out", re.IGNORECASE
)
INNER_NORM = re.compile(r"(q|k|query|key)_?(layer)?_?norm", re.IGNORECASE)
QUERY = re.compile(r"(q|query|q_proj|q_lin|query_proj|w_?q|to_q|q_b_proj|q_attn|query_global)", re.IGNORECASE)
FUSED = re.compile(r"(c_attn|qkv|qkv_proj|query_key_value|wqkv|w_pack|in_proj\w*|att_proj)", re.IGNORECASE)
# Tables whose rows are looked up rather than multiplied.
LOOKED_UP = re.compile(r".*(position|token|embedding|table)s?(\.weight)?$")


def module_of(tensor: str) -> str:
    """Return the name of a tensor's module without its parents: `q_proj` for `attn.q_proj.weight`."""
    owner, _, leaf = tensor.rpartition(".")
    return owner.rpartition(".")[2] if leaf in ("weight", "bias") else leaf


def part_of(key: str) -> str:
    """Return the part that a dotted config key belongs to: `vision`. It is empty for the language model."""
    section = re.fullmatch(r"(?:.*\.)?(\w+?)_(?:config|cfg)\.\w+", key)
    return "" if section is None or section[1] in _LANGUAGE else section[1]


def kind_of(axis: str) -> str:
    """Return the name of an axis without that of its part: `embed` for `vision_embed`."""
    words = axis.split("_")
    return next((some for start in range(len(words)) if (some := "_".join(words[start:])) in _KINDS), axis)


@cache
def meaning(key: str) -> Meaning:
    """Return the meaning of a config key by its name, the last one if it is dotted; that of an unknown key is empty."""
    name = key.rpartition(".")[2]
    return next((each for each in _MEANINGS if re.fullmatch(each.keys, name)), _UNKNOWN)


def names_blocks(key: str, value: object) -> bool:
    """Return whether a key of a config has a list of some blocks' numbers, by its name and content."""
    if not isinstance(value, list) or not BLOCK_NUMBERS.fullmatch(key.rpartition(".")[2]):
        return False
    return are_distinct(value)


def are_distinct(value: list[object]) -> bool:
    """Return whether a list has numbers from 0 on, none of them twice: a property of each block repeats."""
    return all(type(item) is int and item >= 0 for item in value) and len(set(value)) == len(value)
