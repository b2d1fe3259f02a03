"""Tiny models of texts with places on a page, paths in markup, or features of images."""

from __future__ import annotations

from typing import Any

from small_models.encoders import ENCODER

# Each case: class in transformers, config class, settings.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LayoutLMv3": (
        "LayoutLMv3ForTokenClassification",
        "LayoutLMv3Config",
        {
            **ENCODER,
            "max_2d_position_embeddings": 64,
            "coordinate_size": 6,
            "shape_size": 4,
            "input_size": 32,
            "patch_size": 8,
            "rel_pos_bins": 8,
            "rel_2d_pos_bins": 8,
        },
    ),
    "Lilt": (
        "LiltForTokenClassification",
        "LiltConfig",
        {**ENCODER, "hidden_size": 48, "max_2d_position_embeddings": 64, "channel_shrink_ratio": 2},
    ),
    "Bros": ("BrosForTokenClassification", "BrosConfig", {**ENCODER, "hidden_size": 64}),
    "MarkupLM": (
        "MarkupLMForTokenClassification",
        "MarkupLMConfig",
        {
            **ENCODER,
            "xpath_unit_hidden_size": 8,
            "max_depth": 5,
            "max_xpath_tag_unit_embeddings": 20,
            "max_xpath_subs_unit_embeddings": 20,
            "tag_pad_id": 19,
            "subs_pad_id": 19,
        },
    ),
    "VisualBert": ("VisualBertForPreTraining", "VisualBertConfig", {**ENCODER, "visual_embedding_dim": 12}),
}

RARE = frozenset(MODELS) - {"LayoutLMv3"}
