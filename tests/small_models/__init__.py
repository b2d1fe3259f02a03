"""Tiny models of every family, by kind: class of transformers, class of its config, and settings."""

from typing import Any

from small_models import decoders, documents, established, images, retrieval, speech
from small_models.encoders import ENCODERS
from small_models.multimodal import MULTIMODAL

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **established.MODELS,
    **decoders.MODELS,
    **ENCODERS,
    **MULTIMODAL,
    **speech.MODELS,
    **retrieval.MODELS,
    **images.MODELS,
    **documents.MODELS,
}
