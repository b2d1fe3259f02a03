"""Pipelines of diffusers are refused with the command for each of their components."""

import pytest

from mupscale_cli.checkpoints.pipelines import refuse_pipeline
from mupscale_cli.errors import CheckpointError

NAMES = (
    "model_index.json",
    "v1-5-pruned.safetensors",
    "scheduler/scheduler_config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


def test_components_are_listed_with_what_to_do():
    with pytest.raises(CheckpointError, match="`here/sd` is a pipeline") as error:
        refuse_pipeline("here/sd", NAMES)
    text, unet = error.value.excerpt.splitlines()
    assert text == "  text_encoder  stays as it is, since other components read its output"
    assert unet == "  unet          mupscale widen here/sd/unet --factor 2"
    assert "hf download" not in error.value.hint


def test_a_pipeline_on_the_hub_is_downloaded_first():
    with pytest.raises(CheckpointError) as error:
        refuse_pipeline("org/sd", NAMES, is_remote=True)
    assert error.value.hint.startswith("run `hf download org/sd --local-dir sd` first")
    assert "mupscale widen sd/unet" in error.value.excerpt


def test_only_an_index_at_the_top_makes_a_pipeline():
    assert refuse_pipeline("model", (*NAMES[1:], "other/model_index.json")) is None
