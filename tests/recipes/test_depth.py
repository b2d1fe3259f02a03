"""Deeper models of every architecture, in float64: new blocks are the identity, or are refused with the reason."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from helpers import MODELS, change_config, save_model
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import PlanError
from mupscale_cli.plan import Size
from mupscale_cli.plan.depth import stack_sizes
from mupscale_cli.tasks.planning import identity_plan, plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

# Reasons not to add blocks that are the identity, by the beginning of a case and its stack.
REFUSED = {
    **dict.fromkeys(("Bert-", "Roberta-", "XLMRoberta-", "Camembert-", "DistilBert-"), "normalizes the sum"),
    **dict.fromkeys(("Electra-", "DebertaV2-", "Bart-", "OPT-projected"), "normalizes the sum"),
    **dict.fromkeys(("Ernie-", "Data2VecText-", "RoFormer-", "BigBird-", "LayoutLM-"), "normalizes the sum"),
    **dict.fromkeys(("BertGeneration", "Longformer-", "MPNet-", "BlenderbotSmall-"), "normalizes the sum"),
    **dict.fromkeys(("PLBart-", "Mvp-", "LED-", "Marian-"), "normalizes the sum"),
    **dict.fromkeys(("Wav2Vec2-", "Hubert-", "UniSpeech-", "UniSpeechSat-"), "is not recognized"),
    "SwitchTransformers-": "which of them have experts",
    "ModernBert-": "the first block has no norm",
    "Qwen3VLMoe-images text.layers": "behind its first blocks",
    "Qwen3VL-images text.layers": "behind its first blocks",
}
# Stacks whose blocks must keep their number: new ones stand behind them.
UNMOVED = ("HYV4-untied layers", "HYV4VL-images text.layers")
IN_STAGES = ("Swin", "ConvNext", "ResNet")  # their blocks have no number of their own
# One case for each way to write to the residual stream and to name blocks.
CASES = [
    *("Llama-tied", "GPT2-tied", "GPTNeoX-tied", "Mixtral-untied", "Gemma2-tied", "ViT-classifier", "Mamba2-tied"),
    "OlmoHybrid-tied",  # norms behind the projections of some blocks, and none in others
    "JetMoe-tied",  # a bias of a module with several weights
    "Ernie4_5_Moe-tied",  # a config that names the last block of a kind
]


def deepen(source, target, **options):
    widened = widen(source, target, dtype="float64", **options)
    assert widened.verification is not None, widened.skipped
    assert widened.verification.agrees, widened.verification
    assert widened.verification.max_rel < 1e-14
    return widened


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("layers", "place"), [(3, "start"), (4, "interleaved")])
def test_new_blocks_are_the_identity(case, layers, place, saved, tmp_path):
    widened = deepen(saved(case), tmp_path / "deep", layers=layers, layers_at=place)
    assert widened.verification.max_rel == 0
    assert widened.verification.num_modules > 3
    assert widened.record["blocks"]["layers"]["wide_size"] == layers


@pytest.mark.slow
@pytest.mark.parametrize("case", MODELS)
def test_every_stack_of_every_model(case, saved, tmp_path):
    source = saved(case)
    plan = identity_plan(open_checkpoint(source))
    sizes = stack_sizes(plan.recipe, [tensor.source.name for tensor in plan.tensors], plan.config)
    assert bool(sizes) != case.startswith(IN_STAGES)
    for stack, size in sizes.items():
        stated = plan.recipe.fixed.get(stack)
        tables = (reason for start, reason in REFUSED.items() if f"{case} {stack}".startswith(start))
        reason = next(tables, stated and re.escape(stated))
        for wide_size in (size + 1, 2 * size):
            options = {"axes": {stack: Size(wide_size)}}
            if f"{case} {stack}".startswith(UNMOVED):
                with pytest.raises(PlanError, match="must keep it"):
                    plan_widening(source, **options)
                options["layers_at"] = "end"
            if reason is None:
                deepen(source, tmp_path / f"{stack}{wide_size}", **options)
            else:
                with pytest.raises(PlanError, match=reason):
                    plan_widening(source, **options)


def test_encoder_and_decoder_are_separate_stacks(saved, tmp_path):
    """The relative positions of T5 stay in the first block, even if that is new."""
    options = {"axes": {"encoder_layers": 2, "decoder_layers": 1.5}, "layers_at": "start"}
    with pytest.raises(PlanError, match="names 1 position"):
        plan_widening(saved("T5-tied"), axes={"num_layers": 2, "decoder_layers": 1.5}, layers_at="0")
    widened = deepen(saved("T5-tied"), tmp_path / "deep", **options)
    config = json.loads((tmp_path / "deep" / "config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (4, 3)
    biases = [name for name in load_file(tmp_path / "deep" / "model.safetensors") if "relative" in name]
    assert {name.split(".")[2] for name in biases} == {"0"}
    assert widened.record["blocks"]["decoder_layers"] == {"size": 2, "wide_size": 3, "sources": [0, 0, 1], "new": [0]}
    with pytest.raises(PlanError, match="2 stacks of blocks"):
        plan_widening(saved("T5-tied"), layers=4)


def test_config_follows_the_blocks(saved, tmp_path):
    """Lists, numbers and counts of blocks in the config; a wrong type of attention would change the function."""
    types = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
    deepen(save_model(tmp_path / "narrow", "Gemma2-tied", **types), tmp_path / "types", layers=5)
    config = json.loads((tmp_path / "types" / "config.json").read_text())
    assert config["layer_types"] == [*["sliding_attention"] * 3, *["full_attention"] * 2]
    deepen(saved("Qwen3Moe-untied"), tmp_path / "moe", layers=4, layers_at="2,0")
    assert json.loads((tmp_path / "moe" / "config.json").read_text())["mlp_only_layers"] == [0, 1, 2]
    plan = plan_widening(saved("DeepseekV3-untied"), layers=4)
    assert plan.config["first_k_dense_replace"] == 2
    with pytest.raises(PlanError, match="the first 1 block of `layers` differ"):
        plan_widening(saved("DeepseekV3-untied"), layers=3, method="stack")


def test_a_pattern_that_the_model_repeats_is_as_long_as_its_list(saved, tmp_path):
    pattern = ["recurrent", "attention", "attention", "recurrent"]
    source = save_model(tmp_path / "narrow", "RecurrentGemma-tied", num_hidden_layers=4, block_types=pattern)
    with pytest.raises(PlanError, match="the model gives every 4 blocks a pattern"):
        plan_widening(source, layers=6, layers_at="0,1")
    assert plan_widening(source, layers=8).blocks["layers"].sources == (0, 1, 2, 3) * 2
    change_config(source, block_types=None)
    with pytest.raises(PlanError, match="the model gives every 3 blocks a pattern"):
        plan_widening(source, layers=5, layers_at="start")


def test_patterns_by_number_allow_only_some_places(saved, tmp_path):
    source = save_model(tmp_path / "narrow", "GptOss-tied")
    change_config(source, layer_types=None)
    with pytest.raises(PlanError, match="the model gives every 2 blocks a pattern") as error:
        plan_widening(source, layers=3, layers_at="start")
    assert "such as 4" in error.value.hint
    assert plan_widening(source, layers=3).blocks["layers"].new == (2,)  # behind the last block, as in the pattern
    assert plan_widening(source, layers=4).blocks["layers"].sources == (0, 1, 0, 1)
    numbered = save_model(tmp_path / "numbered", "GPT2-tied", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(PlanError, match="compute with their own number"):
        plan_widening(numbered, layers=3)
    deepen(numbered, tmp_path / "deep", layers=3, layers_at="end")


def test_width_and_depth_commute(saved, tmp_path):
    source = saved("Llama-tied")
    widen(source, tmp_path / "both", 2, layers=3, verify=False)
    widen(source, tmp_path / "wide", 2, verify=False)
    widen(tmp_path / "wide", tmp_path / "wide-deep", layers=3, verify=False)
    widen(source, tmp_path / "deep", layers=3, verify=False)
    widen(tmp_path / "deep", tmp_path / "deep-wide", 2, verify=False)
    both, *others = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("both", "wide-deep", "deep-wide")
    )
    data = [content[int.from_bytes(content[:8], "little") + 8 :] for content in (both, *others)]
    assert data[0] == data[1] == data[2]


def test_zeros_are_where_blocks_write(saved, tmp_path):
    deepen(saved("Llama-untied"), tmp_path / "deep", layers=3, layers_at="end")
    tensors = load_file(tmp_path / "deep" / "model.safetensors")
    new = {name.removeprefix("model.layers.2."): value for name, value in tensors.items() if ".layers.2." in name}
    zero = {name for name, value in new.items() if not value.any()}
    writers = {"self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.down_proj.weight", "mlp.down_proj.bias"}
    assert zero == writers
    assert all(torch.equal(new[name], tensors[f"model.layers.1.{name}"]) for name in new.keys() - zero)


def test_verification_knows_the_positions(saved, tmp_path):
    """The recorded blocks are compared with those that they copy, and old blocks train as before."""
    widened = widen(saved("Qwen3-tied"), tmp_path / "deep", 2, layers=4, dtype="float64")
    assert widened.verification.max_rel < 1e-14
    found = verify(tmp_path / "deep", steps=3)
    assert found.agrees
    assert found.training.frozen == ("layers",)
    assert found.training.steps_agree


def test_stacked_blocks_compute_another_function(saved, tmp_path):
    widened = widen(saved("Llama-untied"), tmp_path / "deep", layers=4, method="stack", dtype="float64")
    assert widened.record["blocks"]["layers"]["sources"] == [0, 1, 0, 1]
    assert not widened.verification.keeps_function
    assert widened.verification.max_rel > 1e-3
    tensors = load_file(tmp_path / "deep" / "model.safetensors")
    for name in tensors:
        if ".layers.2." in name:
            assert torch.equal(tensors[name], tensors[name.replace(".2.", ".0.")])


def test_a_config_with_another_number_of_blocks_is_refused(tmp_path):
    change_config(save_model(tmp_path / "narrow"), num_hidden_layers=3)
    with pytest.raises(PlanError, match="no tensor of block 2"):
        plan_widening(tmp_path / "narrow", layers=4)


def test_a_backbone_returns_the_states_behind_the_same_blocks(tmp_path):
    """DPT reads BEiT's states by the places that its config lists; the copy of a block stands behind it."""
    source = save_model(tmp_path / "narrow", "DPT-beit")
    before = json.loads((source / "config.json").read_text())["backbone_config"]
    blocks = before["num_hidden_layers"]
    deepen(source, tmp_path / "deep", layers=blocks + 1, layers_at="0")
    after = json.loads((tmp_path / "deep" / "config.json").read_text())["backbone_config"]
    assert after["out_indices"] == [place + 1 for place in before["out_indices"]]
    assert after["stage_names"] == ["stem", *(f"stage{number}" for number in range(1, blocks + 2))]
