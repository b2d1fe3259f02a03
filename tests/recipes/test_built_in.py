"""Every built-in recipe on random models of the reference implementation, in float64."""

from pathlib import Path

import pytest
import torch
import transformers

import mupscale_cli
from helpers import MLP_MODULE, MODELS, build, save_mlp, save_model
from mupscale_cli.architecture.loading import matched_values
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import ConfigError, PlanError, SizeError
from mupscale_cli.plan.names import ParameterNames
from mupscale_cli.tasks.check import check_model
from mupscale_cli.tasks.planning import identity_plan, plan_widening
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.planned import narrow_tensors
from small_models import (
    decoders,
    documents,
    encoders,
    image_text,
    image_text_experts,
    images,
    readers,
    retrieval,
    speech,
)
from small_models.established import ONLY_NAMES

# `pytest -m slow` tries every axis of every other case.
# The tied models have the same layers, and other types are only names in a recipe.
UNTIED = ("Llama-untied", "GPT2-untied", "Mixtral-untied", "Olmo-untied", "NanoChat-untied")
SLOW = {case for case in MODELS if case.endswith("-untied") and case not in UNTIED} | ONLY_NAMES
SLOW |= decoders.RARE | encoders.RARE | retrieval.RARE | speech.RARE | images.RARE | image_text.RARE | documents.RARE
SLOW |= image_text_experts.RARE | readers.RARE
# Another head, name or tie of layers that are widened here; `test_hub_forms.test_other_heads` has all kinds of heads.
SLOW |= {"Bert-pooler", "Bert-pretraining", "Roberta-classifier", "Roberta-tokens", "Bart-plain", "Bart-classifier"}
SLOW |= {"T5-encoder", "Vilt-questions", "Vilt-retrieval", "Electra-discriminator", "Electra-classifier"}
SLOW |= {"OPT-projected-classifier", "DebertaV2-classifier", "ViT-pooler", "ModernBert-classifier", "InternVL-norms"}
SLOW |= {"DistilBert-classifier", "Camembert-tied", "MT5-gated", "DeepseekV2-lite", "Mixtral-tied", "Llava-siglip"}
# Recipes that change a few lines of one that is widened here: relatives of Llama, Qwen3 and their mixtures of experts.
SLOW |= {"Helium-tied", "HunYuanDenseV1-tied", "Jais2-tied", "GraniteSWA-tied", "Exaone-tied", "Ernie4_5-tied"}
SLOW |= {"FlexOlmo-tied", "HunYuanMoEV1-tied", "Ernie4_5_Moe-tied", "Phimoe-tied", "ExaoneMoe-tied", "AriaText-tied"}
SLOW |= {"MiniMaxM2-tied", "GraniteMoeShared-tied", "Apertus15-tied"}
SLOW |= {"SmolLM3-tied", "Nemotron-tied", "Apertus-tied", "Starcoder2-tied", "GraniteMoe-tied", "Cohere2-tied"}
SLOW |= {"Dots1-tied", "Olmo3-tied", "Exaone4-tied", "Gemma-tied", "VaultGemma-tied", "Glm4MoeLite-tied", "Afmoe-tied"}
SLOW |= {"Lfm2Moe-tied", "Laguna-tied", "Bamba-tied", "MiniCPM3-tied", "DeepseekV2-tied", "Qwen3_5Text-tied"}
# Relatives of GPT-2, OPT, BERT and BART, and image encoders that change a few lines of one that is widened here.
SLOW |= {"CodeGen-tied", "BioGpt-tied", "GPTBigCode-multi", "Falcon-multi", "StableLm-parallel", "Roberta-causal"}
SLOW |= {"DistilBert-tied", "MPNet-tied", "BertGeneration", "MBart-tied", "Pegasus-tied", "BigBirdPegasus-tied"}
SLOW |= {"DeiT-teacher", "Dinov2-gated", "Dinov2Registers", "ConvNextV2-classifier", "CLIPVision-projection"}
SLOW |= {"SiglipText-head", "VipLlava-clip", "Qwen25VL-images", "PaliGemma-siglip", "Glm4vMoe-images", "WavLM-group"}
EVERY_AXIS = ["GPT2-tied", pytest.param("T5-tied", marks=pytest.mark.slow)]
# Types whose class renames what it reads, by a rule that precedes another and with a prefix that others end in.
RENAMED = ("BailingHybrid-untied", "XLMRoberta-tied")
SEVERAL_HEADS = ("logits of a left-padded batch", "logits of cached generation")


def widen_and_check(source, tmp_path, factor=None, axes=None, **options):
    widened = widen(source, tmp_path / "wide", factor, axes, dtype="float64", **options)
    verification = widened.verification
    assert verification is not None
    assert verification.agrees, verification
    assert verification.max_rel < 1e-12
    assert verification.worst_module is None or verification.worst_module.max_rel < 1e-12
    return verification


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in MODELS]
)
def test_all_axes_widen_together(case, saved, tmp_path):
    verification = widen_and_check(saved(case), tmp_path, 2)
    assert verification.num_modules > 3
    if MODELS[case][0].endswith(("ForCausalLM", "LMHeadModel")):
        expected = {"logits", *SEVERAL_HEADS} - decoders.NOT_COMPARED.get(case, set())
        assert expected <= {comparison.what for comparison in verification.comparisons}


@pytest.mark.parametrize("case", EVERY_AXIS)
def test_every_axis_with_every_tie(case, saved):
    checked = check_model(saved(case, dtype=torch.float64))
    assert len(checked.trials) > 4
    assert checked.passed, [trial for trial in checked.trials if trial.problem]
    assert not checked.mistakes
    assert 0 < checked.worst < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in MODELS if case not in EVERY_AXIS])
def test_every_axis_of_every_model(case, saved):
    checked = check_model(saved(case, dtype=torch.float32 if case in decoders.FLOAT32 else torch.float64))
    assert checked.passed, (checked.mistakes, [trial for trial in checked.trials if trial.problem])


@pytest.mark.parametrize(
    "case", [case if case in RENAMED else pytest.param(case, marks=pytest.mark.slow) for case in MODELS]
)
def test_every_parameter_of_the_class_is_planned_in_its_shape(case, saved):
    """Else its optimizer state has no tensor to follow."""
    names = ParameterNames(plan_widening(saved(case), factor=2))
    named = ((name, p) for name, p in build(case).named_parameters() if not name.endswith(decoders.UNNAMED))
    trained = {name: p.shape for name, p in named if p.requires_grad}
    planned = {name: {tensor.source.shape for tensor in names.find(name)} for name in trained}
    assert planned == {name: {shape} for name, shape in trained.items()}


@pytest.mark.parametrize(
    "case",
    [
        *("Qwen2VL-images", "Dots3Note-images", "LightOnOcr-images"),  # the names of other checkpoints end in theirs
        *(pytest.param(case, marks=pytest.mark.slow) for case in MODELS),
    ],
)
def test_every_parameter_of_the_class_is_reached_by_a_tensor(case, saved):
    """Else the steps of both models cannot be compared."""
    model = build(case)
    named = dict(model.named_parameters(remove_duplicate=False))
    reached = {
        id(named[source]) for _, (_, source) in narrow_tensors(identity_plan(open_checkpoint(saved(case)), None), model)
    }
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in reached]
    assert not [name for name in missing if not name.endswith(decoders.UNNAMED)]


def test_a_factor_of_a_norms_gain_does_not_stand_in_front_of_the_norm(saved, tmp_path):
    """There the norm would undo it, except for its eps."""
    widen_and_check(saved("InternVL-norms"), tmp_path, None, {"vision.embed": 2, "vision.d": 2})


def test_axes_with_different_factors(saved, tmp_path):
    widen_and_check(saved("Qwen3-tied"), tmp_path, 2, {"g": 3, "ffn": 4})


@pytest.mark.parametrize("case", ["Llama-tied", "Gemma-tied", "GPT2-tied", "ResNet-basic"])
def test_bfloat16_weights_widen_as_exactly(case, saved, tmp_path):
    widen_and_check(saved(case, dtype=torch.bfloat16), tmp_path, 3)


def test_stack_of_linear_layers_needs_no_config(tmp_path):
    (tmp_path / "net.py").write_text(MLP_MODULE)
    source = save_mlp(tmp_path / "net.safetensors")
    for factor in (2, 3):
        output, model = tmp_path / f"wide{factor}.safetensors", f"{tmp_path / 'net.py'}:build"
        widened = widen(source, output, factor, dtype="float64", model=model)
        assert widened.verification.agrees
        assert widened.verification.max_rel < 1e-12


def test_config_that_changes_the_structure_is_refused(saved):
    """Embeddings as wide as the residual stream have no projection, so 16 must not grow to 48."""
    with pytest.raises(ConfigError, match="describes another structure"):
        plan_widening(saved("Electra-tied"), axes={"pe": 3})
    assert plan_widening(saved("Electra-tied"), axes={"pe": 2}).factors == {"pe": 2}


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"attn_config.clip_qkv": 8.0}, "limits queries, keys and values to clip_qkv"),
        ({"attn_config.rope": True}, "rotary positions"),
        ({"logit_scale": "inv_sqrt_d_model"}, "divided by the square root of the width"),
        ({"block_overrides": {"order": []}}, "differ from each other"),
    ],
)
def test_settings_of_mpt_that_depend_on_sizes_are_refused(setting, reason, saved):
    with pytest.raises(SizeError, match=reason):
        plan_widening(saved("Mpt-tied"), factor=2, settings=setting)


@pytest.mark.parametrize(
    ("case", "setting", "reason"),
    [
        ("Yoso-tied", {"use_expectation": False}, "hashes queries and keys at random"),
        ("IBert-tied", {"quant_mode": True}, "rounds weights and activations"),
        ("XLM-tied", {"asm": True}, "divides the width of its clusters"),
        ("Deberta-stated", {"talking_head": True}, "talking heads mix the scores"),
        ("TrOCR-tied", {"use_learned_position_embeddings": False}, "computes sinusoidal positions"),
    ],
)
def test_settings_that_a_recipe_does_not_cover_are_refused(case, setting, reason, saved):
    with pytest.raises(PlanError, match=reason):
        plan_widening(saved(case), factor=2, settings=setting)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("Pix2Struct", {"tie_word_embeddings": True}),
        ("Detr-objects", {"position_embedding_type": "learned"}),
        ("ShieldGemma2-images", {"tie_word_embeddings": False}),
    ],
)
def test_rare_switches_of_a_config_widen(case, changes, tmp_path):
    settings = MODELS[case][2]
    if "text_config" in settings and case.startswith("Shield"):
        changes = {**changes, "text_config": {**settings["text_config"], **changes}}
    widen_and_check(save_model(tmp_path / "narrow", case, dtype=torch.float64, **changes), tmp_path, 2)


@pytest.mark.parametrize(
    ("case", "heads"),
    [("Swinv2-classifier", {"num_heads": [2, 2]}), ("Segformer-classifier", {"num_attention_heads": [1, 4]})],
)
def test_stages_with_heads_of_other_sizes_are_refused(case, heads, tmp_path):
    model_class, config_class, settings = MODELS[case]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**{**settings, **heads}))
    model.save_pretrained(tmp_path)
    with pytest.raises(PlanError, match="of its stages have different sizes"):
        plan_widening(tmp_path, factor=2)


@pytest.mark.parametrize("case", ["SEW", "SEWD"])
def test_an_encoder_without_a_layer_behind_its_convolutions_keeps_its_width(case, tmp_path):
    """Its class would add that layer if the widths differed."""
    source = save_model(tmp_path, case, conv_dim=[8, 32])
    plan = plan_widening(source, axes={"ffn": 2})
    assert plan.factors == {"ffn": 2}
    with pytest.raises(SizeError, match="the channels of the last convolution as they are"):
        plan_widening(source, factor=2)


def test_every_transformers_recipe_has_a_test_model():
    """Model types that transformers does not have are exempt, and one whose class cannot run in transformers 5.24.

    A part of a model that has several is tried with it.
    """
    configs = [getattr(transformers, config)(**settings) for _, config, settings in MODELS.values()]
    parts = [getattr(config, name, None) for config in configs for name in config.sub_configs]
    tried = {config.model_type for config in (*configs, *parts) if config is not None}
    recipes = matched_values()
    tried_recipes = {name for model_type in tried for name in recipes.get(model_type, ())}
    named = set(recipes) - {"nanogpt", "nanogpt-mup", "llama4"} - tried
    assert not {model_type for model_type in named if not tried_recipes.intersection(recipes[model_type])}


def test_architecture_takes_one_file_and_no_python():
    """Granite exists only as data: no module of the package mentions its name."""
    sources = list(Path(mupscale_cli.__file__).parent.rglob("*.py"))
    assert sources
    assert not [file for file in sources if "granite" in file.read_text().lower()]
