"""Tiny models of images: encoders, classifiers and encoders beside texts."""

from __future__ import annotations

from typing import Any

# Each case: class in transformers, config class, settings.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {}
# Cases that the default run leaves out, since another case has the same shape.
RARE = frozenset(MODELS)
