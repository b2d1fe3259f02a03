"""Rules that every recipe has without stating them: for heads beside the readout and buffers of old checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mupscale_cli.architecture.expressions import parse_expression
from mupscale_cli.architecture.layouts import parse_layout
from mupscale_cli.architecture.patterns import Pattern, parse_pattern
from mupscale_cli.architecture.types import Choice, Recipe, TensorRule

# Heads for sequences, tokens and answers in transformers, and for rewards and values (trl: `v_head.summary`).
HEADS = (
    "score",
    "classifier",
    "qa_outputs",
    "regression_head",
    "value_head",
    "v_head",
    "v_head.summary",
    "reward_head",
)
_READOUTS = (
    "lm_head.weight",
    "embed_out.weight",
    "output_projection.weight",
)  # read the last hidden states, as the heads do
_SCALED_BY_CONFIG = 'tie == "config"'  # such a factor applies to logits only


# Stored by old versions of transformers; later ones compute them.
_BUFFERS = ("**.rotary_emb.inv_freq", "**.position_ids", "**.masked_bias")


def implied_patterns() -> tuple[Pattern, ...]:
    """Return the patterns of the rules that a recipe may have in addition to its own."""
    heads = ",".join(HEADS)
    return tuple(parse_pattern(text) for text in (f"{{{heads}}}.weight", f"{{{heads}}}.bias", *_BUFFERS))


def implied_rules(recipe: Recipe) -> Iterator[TensorRule]:
    """Yield the rules that a recipe has in addition to its own."""
    yield from _head_rules(recipe)
    text = replace(recipe.tensors[0].text, value="omit", as_written=False)
    for name in _BUFFERS:
        yield TensorRule(parse_pattern(f"{name}?"), (Choice(None, "omit", text),), text)


def _head_rules(recipe: Recipe) -> Iterator[TensorRule]:
    """Yield rules for the heads that a recipe does not mention: they sum over what its readout sums over.

    A recipe gets none without a readout behind the last norm, or if that does not tell what a tied one sums over.
    """
    named = (rule for rule in recipe.tensors if not rule.pattern.num_wildcards)
    readout = next((rule for rule in named for name in _READOUTS if recipe.follows(name, rule)), None)
    names = [name for name in HEADS if not recipe.knows(f"{name}.weight")]
    ways = recipe.tie.ways if recipe.tie else ()
    if readout is None or not names or ("fold" in ways and len(readout.choices) == 1):
        return
    text, choices = readout.text, tuple(map(_of_any_rows, readout.choices))
    if "config" in ways:
        choices = (replace(choices[-1], when=parse_expression(_SCALED_BY_CONFIG), condition=text), *choices)
    pattern = f"{{{','.join(names)}}}" if len(names) > 1 else names[0]
    yield TensorRule(parse_pattern(f"{pattern}.weight?"), choices, text)
    bias = replace(text, value=".", as_written=False)
    yield TensorRule(parse_pattern(f"{pattern}.bias?"), (Choice(None, parse_layout(bias.value), bias),), text)


def _of_any_rows(choice: Choice[Any]) -> Choice[Any]:
    """Return a layout whose first dimension may have any size: a head has other outputs than the readout."""
    if choice.value == "keep":  # as the head stays then
        return choice
    text = replace(choice.text, value=f".,{choice.text.value.partition(',')[2]}", as_written=False)
    return replace(choice, value=text.parse(parse_layout), text=text)
