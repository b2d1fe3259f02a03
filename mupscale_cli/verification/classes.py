"""The class of transformers that a config names: which it is, its config, and its model without data."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from mupscale_cli.checkpoints.config import architecture_of, untagged
from mupscale_cli.checkpoints.libraries import TRANSFORMERS
from mupscale_cli.checkpoints.scratch import scratch_folder
from mupscale_cli.verification.result import CannotVerify

# What a model may be for, in the order in which classes whose parameters have the same names are chosen.
_TASKS = (
    "ForMaskedLM",
    "ForCausalLM",
    "ForSeq2SeqLM",
    "ForImageTextToText",
    "ForPreTraining",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForImageClassification",
    "",
)


def model_class_of(transformers: Any, config: Mapping[str, Any], names: Collection[str]) -> Any:
    """Return the class that config.json names; or else the class with parameters of these names."""
    own_code = " (mupscale does not run the checkpoint's own code, `auto_map`)" if config.get("auto_map") else ""
    model_type = config.get("model_type")
    if model_type is not None and str(model_type) not in transformers.CONFIG_MAPPING:
        raise CannotVerify(
            f"transformers {transformers.__version__} has no model type `{model_type}`{own_code}; "
            "give your own model with `--model module.py:build`"
        )
    architecture = architecture_of(config)
    if architecture is None:
        return _class_by_names(transformers, config, frozenset(names))
    model_class = getattr(transformers, architecture, None)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise CannotVerify(
            f"transformers has no model class `{architecture}`, which config.json names{own_code}; "
            "give your own model with `--model module.py:build`"
        )
    return model_class


def _class_by_names(transformers: Any, config: Mapping[str, Any], names: frozenset[str]) -> Any:
    """Return the class of a model type that has the fewest parameters other than those with some names.

    Raises:
        CannotVerify: transformers makes no model of this config.
    """
    if config.get("model_type") is None:
        raise CannotVerify(
            "config.json does not say which class builds this model",
            hint="add `--model FILE:FUNCTION`, or a class of transformers as `architectures`",
        )
    try:
        built = transformers.AutoConfig.for_model(**untagged(config))
    except Exception as error:  # the config may be anything
        raise CannotVerify(
            f"config.json names no class in `architectures`, and transformers rejects it as a config of "
            f"`{config['model_type']}`: {error}"
        ) from error
    best, fewest = None, math.inf
    for task in _TASKS:
        auto = getattr(transformers, f"AutoModel{task}")
        if type(built) not in auto._model_mapping:  # noqa: SLF001 (it has no other name)
            continue
        with torch.device("meta"):
            model = auto.from_config(copy.deepcopy(built))
        if (different := len(names ^ {name for name, _ in model.named_parameters()})) < fewest:
            best, fewest = type(model), different
    if best is None:
        raise CannotVerify("config.json names no class in `architectures`; add it")
    return best


def read_config(transformers: Any, model_class: Any, config: Mapping[str, Any]) -> Any:
    """Return the content of a config.json as a class reads it; an automatic class has no config of its own."""
    config_class = getattr(model_class, "config_class", None) or transformers.AutoConfig
    with scratch_folder() as directory:
        (directory / TRANSFORMERS.config).write_text(json.dumps(config), encoding="utf-8")
        return config_class.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def without_data(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the model that a function builds, with shapes and types but no data."""
    with torch.device("meta"):
        return build()
