"""Three ways to scale a readout that shares the embedding."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_runner import run
from helpers import randomize
from mupscale_cli.architecture.loading import load_recipe
from mupscale_cli.errors import PlanError, RecipeError
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from small_models.established import T5
from training import save_training


def test_untying_makes_the_readout_a_separate_scaled_tensor(saved, tmp_path):
    source = saved("Llama-tied", dtype=torch.bfloat16)
    result = widen(source, tmp_path / "wide", 3, dtype="float64", tie="untie")
    assert result.verification.agrees
    assert result.verification.rounding is None
    narrow, wide = load_file(source / "model.safetensors"), load_file(tmp_path / "wide" / "model.safetensors")
    shares = wide["lm_head.weight"].unflatten(1, (48, 3)).double()
    assert torch.equal(shares.sum(2), narrow["model.embed_tokens.weight"].double())
    assert torch.equal(wide["model.norm.weight"], narrow["model.norm.weight"].repeat_interleave(3))
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert result.record["tie"] == "untie"
    assert verify(tmp_path / "wide", dtype="float64").agrees


def test_folding_rounds_in_bfloat16_and_untying_does_not(saved, tmp_path):
    source = saved("Gemma-tied", dtype=torch.bfloat16)
    folded = widen(source, tmp_path / "folded", 3, dtype="float64", tie="fold").verification
    assert folded.agrees
    assert folded.rounding.max_rel > 1e-4
    untied = widen(source, tmp_path / "untied", 4, dtype="float64", tie="untie").verification
    assert untied.agrees
    assert untied.rounding is None  # 1/sqrt(4) of the embedding is exact


def test_a_config_key_is_preferred_to_folding(saved):
    def norm(tie):
        plan = plan_widening(saved("Granite-tied"), factor=2, tie=tie)
        keys = {change.key: change.after for change in plan.config_changes}
        return plan.tie, next(t for t in plan.tensors if t.target.name == "model.norm.weight").coefficient, keys

    assert norm(None)[:2] == ("config", 1)
    assert norm(None)[2]["logits_scaling"] == 6.0
    assert norm("fold")[:2] == ("fold", 1 / 2)
    assert "logits_scaling" not in norm("fold")[2]
    assert norm("untie")[2]["tie_word_embeddings"] is False


def test_a_config_value_too_large_to_scale_is_an_error(saved, tmp_path):
    source = shutil.copytree(saved("Granite-tied"), tmp_path / "narrow")
    file = source / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "logits_scaling": 10**400}))
    with pytest.raises(RecipeError, match="too large to scale"):
        plan_widening(source, factor=2)


def test_ways_that_do_not_apply_are_refused(saved):
    with pytest.raises(PlanError, match="does not share the embedding"):
        plan_widening(saved("Llama-untied"), factor=2, tie="fold")
    with pytest.raises(PlanError, match='`llama` does not allow `tie="config"`') as caught:
        plan_widening(saved("Llama-tied"), factor=2, tie="config")
    assert caught.value.hint == "allowed: fold, untie"
    with pytest.raises(PlanError, match="does not share the embedding"):
        plan_widening(saved("Bert-pooler"), factor=2, tie="untie")


def test_the_moments_of_a_shared_tensor_cannot_be_untied(tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw")
    with pytest.raises(PlanError, match="shared moments for embedding and readout"):
        widen(source, tmp_path / "wide", 2, tie="untie")
    result = run(
        "widen", str(source), "-o", str(tmp_path / "wide"), "--factor", "2", "--tie", "untie", "--optimizer", "none"
    )
    assert result.code == 0


def test_a_checkpoint_that_names_the_shared_tensor_after_the_readout(saved, tmp_path):
    """`safetensors.torch.save_model` can write such files; the optimizer uses the other name of the tensor."""
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw")
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, file, {"format": "pt"})
    text = (source / "config.json").read_text()
    assert '"tie_word_embeddings": true' in text
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        'extends: llama\nmatch: {model_type: [llama]}\ntensors: {"{prefix}embed_tokens.weight?": "., embed"}\n'
    )
    widen(source, tmp_path / "wide", 2, recipe=recipe, verify=False)
    state = torch.load(tmp_path / "wide" / "optimizer.pt", weights_only=True)
    names = [name for group in state["param_groups"] for name in group["param_names"]]
    assert state["state"][names.index("model.embed_tokens.weight")]["exp_avg"].shape == (50, 96)


def test_flan_t5_has_a_separate_readout(tmp_path):
    import transformers

    config = transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    model = randomize(transformers.T5ForConditionalGeneration(config)).eval()
    model.save_pretrained(tmp_path / "narrow")
    file = tmp_path / "narrow" / "model.safetensors"
    save_file({**load_file(file), "lm_head.weight": torch.randn(50, 32)}, file, {"format": "pt"})
    settings = tmp_path / "narrow" / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "tie_word_embeddings": False}))
    result = widen(tmp_path / "narrow", tmp_path / "wide", 2, dtype="float64")
    assert result.verification.agrees
    assert result.plan.tie is None


def test_the_only_possible_way_is_the_default(tmp_path):
    """OLMo's norms have no parameters to fold into, so a tied readout can only be untied."""
    import transformers

    from small_models.established import SIZES

    model = randomize(transformers.OlmoForCausalLM(transformers.OlmoConfig(**SIZES, tie_word_embeddings=True))).eval()
    model.save_pretrained(tmp_path / "narrow")
    result = widen(tmp_path / "narrow", tmp_path / "wide", 3, dtype="float64")
    assert result.verification.agrees
    assert result.plan.tie == "untie"
    assert "lm_head.weight" in load_file(tmp_path / "wide" / "model.safetensors")


@pytest.mark.parametrize(
    ("tie", "says"),
    [
        ("{when: true}", "needs both"),
        ("{when: true, ways: [glue]}", "unknown way `glue`"),
        ("{when: true, ways: [untie]}", "`untie` needs `shares`"),
        ('{when: true, ways: [fold], shares: {"a.*": b}}', "the name of a single tensor"),
        ("{when: true, ways: [fold], how: x}", "unknown key `how`"),
    ],
)
def test_mistakes_in_recipes_are_located(tie, says, tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text(f"axes: {{x: n}}\ntie: {tie}\ntensors: {{w: x}}\n")
    with pytest.raises(RecipeError, match=says):
        load_recipe(file)
