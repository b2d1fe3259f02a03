"""Bare models, classifiers, reward models and every other class of a type that has a recipe compute the same."""

from collections.abc import Iterator

import pytest
import transformers
from transformers.models.auto import modeling_auto

from helpers import MODELS, randomize
from mupscale_cli.tasks.widen import widen
from small_models import decoders

TASKS = (
    *("MODEL", "MODEL_FOR_SEQUENCE_CLASSIFICATION", "MODEL_FOR_TOKEN_CLASSIFICATION", "MODEL_FOR_QUESTION_ANSWERING"),
    *("MODEL_FOR_MULTIPLE_CHOICE", "MODEL_FOR_PRETRAINING", "MODEL_FOR_MASKED_LM", "MODEL_FOR_CAUSAL_LM"),
    *("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "MODEL_FOR_NEXT_SENTENCE_PREDICTION", "MODEL_FOR_TEXT_ENCODING"),
)
FAST = {
    *("LlamaModel", "LlamaForSequenceClassification", "Qwen3ForTokenClassification", "GPT2ForSequenceClassification"),
    *("BertForMultipleChoice", "BartForCausalLM", "BeitForSemanticSegmentation", "Blip2ForImageTextRetrieval"),
    *("BrosSpadeEEForTokenClassification", "SwinBackbone"),
}
# Classes of no task above, or that need settings: a case whose settings they take, and what they add.
STAGES = {"out_features": ["stage1", "stage2"]}
MAPS = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "auxiliary_channels": 12, "auxiliary_num_convs": 2}
BEAMS = {"start_n_top": 3, "end_n_top": 3}
RETRIEVAL = {
    "image_text_hidden_size": 20,
    "qformer_config": {**MODELS["Blip2-images"][2]["qformer_config"], "use_qformer_text_input": True},
}
FURTHER = {
    "SwinBackbone": ("Swin-masked", STAGES),
    "MaskFormerSwinBackbone": ("MaskFormerSwin", STAGES),
    "ConvNextBackbone": ("ConvNext-classifier", {**STAGES, "num_stages": 2}),
    "ConvNextV2Backbone": ("ConvNextV2-classifier", {**STAGES, "num_stages": 2}),
    "HieraBackbone": ("Hiera", STAGES),
    "BrosSpadeEEForTokenClassification": ("Bros", {}),
    "BrosSpadeELForTokenClassification": ("Bros", {"n_relations": 2}),
    "BeitForMaskedImageModeling": ("Beit-classifier", {"vocab_size": 50, "use_mask_token": True}),
    "BeitForSemanticSegmentation": ("Beit-classifier", {**MAPS, "auxiliary_concat_input": True}),
    "Data2VecVisionForSemanticSegmentation": ("Data2VecVision-classifier", MAPS),
    "XLMForQuestionAnswering": ("XLM-tied", BEAMS),
    "XLNetForQuestionAnswering": ("XLNet-tied", BEAMS),
    "FlaubertForQuestionAnswering": ("Flaubert-tied", BEAMS),
    "VisualBertForMultipleChoice": ("VisualBert", {}),
    "VisualBertForQuestionAnswering": ("VisualBert", {}),
    "VisualBertForVisualReasoning": ("VisualBert", {}),
    "VisualBertForRegionToPhraseAlignment": ("VisualBert", {}),
    "MvpForCausalLM": ("Mvp-tied", {"use_prompt": True, "prompt_length": 5, "prompt_mid_dim": 12}),
    "Blip2ForImageTextRetrieval": ("Blip2-images", RETRIEVAL),
    "Blip2TextModelWithProjection": ("Blip2-images", RETRIEVAL),
    "Blip2VisionModelWithProjection": ("Blip2-images", RETRIEVAL),
}
# Decoders whose cache, in transformers, has as many layers as the encoder.
EVEN = {"decoder_layers": 2}


def heads() -> Iterator[tuple[str, str]]:
    """Yield the classes of the types among the tests' models, each with a case whose settings it takes."""
    seen = {head for head, _, _ in MODELS.values()}
    known = frozenset(dir(transformers))  # looking for a class by `hasattr` would import the modules of all models
    for case, (_, config, _) in MODELS.items():
        model_type = getattr(transformers, config).model_type
        for task in TASKS:
            names = getattr(modeling_auto, f"{task}_MAPPING_NAMES").get(model_type, ())
            for name in (names,) if isinstance(names, str) else names:
                if name not in seen and name in known and name not in FURTHER:
                    seen.add(name)
                    yield case, name


# Why a class is left out.
LEFT_OUT = {
    "ReformerForMaskedLM": "the settings are a decoder's",
    "Emu3ForCausalLM": "it takes the language model's config",
    **dict.fromkeys(("Qwen3_5ForCausalLM", "MllamaTextModel", "Emu3TextModel"), "it takes the language model's config"),
    "UniSpeechForPreTraining": "it replaces random features by others, and returns nothing that its heads compute",
    "UniSpeechSatForPreTraining": "transformers computes nothing with its heads, so nothing could be compared",
    "LlavaModel": "transformers cannot run it: it asks a tower of CLIP for a `patch_size` that the tower lacks",
    **dict.fromkeys(
        ("Wav2Vec2BertModel", "Wav2Vec2ConformerModel"),
        "its stream is heads times dimensions, and a bare model's states are compared as copies of one axis",
    ),
    "VideoMAEForPreTraining": "it takes a mask of the patches that it predicts, which verification does not make",
    "InstructBlipVideoModel": "it returns the outputs of its parts, and no tensor of its own",
    "HGNetV2Backbone": "it returns maps of several sizes and nothing else",
    "Gemma3nModel": "its towers need timm",
    **dict.fromkeys(
        ("InklingModel", "Inkling2TextModel", "Inkling2LoopTextModel", "MistralLarge4Model"),
        "transformers saves a bare model under names half published and half its own, which the recipes do not know",
    ),
    "SpeechT5Model": "it reads states of the model's width, which other classes make of sound or text",
    "T5GemmaEncoderModel": "it takes a config without a decoder",
}


@pytest.mark.parametrize(
    ("case", "head"),
    [
        pytest.param(case, head, id=head, marks=() if head in FAST else pytest.mark.slow)
        for case, head in (*heads(), *((case, head) for head, (case, _) in FURTHER.items()))
        if head not in LEFT_OUT
    ],
)
def test_a_head_computes_the_same(case, head, tmp_path):
    _, config_class, settings = MODELS[case]
    _, more = FURTHER.get(head, (case, {}))
    config = getattr(transformers, config_class)(
        **{**settings, **(EVEN if "decoder_layers" in settings else {}), **more}
    )
    config._experts_implementation = "eager"  # the other implementations lack float64
    model = getattr(transformers, head)(config)
    randomize(model if case in decoders.FLOAT32 else model.double()).save_pretrained(tmp_path / "narrow")
    verification = widen(tmp_path / "narrow", tmp_path / "wide", 2, dtype="float64").verification
    assert verification.agrees, verification
    assert verification.max_rel < 1e-12
