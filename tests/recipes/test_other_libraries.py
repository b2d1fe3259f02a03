"""Recipes for models of timm and open_clip, against the classes of these libraries in float64.

These libraries need torchvision and are not installed by CI. To run the tests:

    pip install torchvision timm open-clip-torch && pytest tests/recipes/test_other_libraries.py
"""

import json

import pytest
import torch
from other_libraries import CONFIGS, open_clip, save_config, save_tiny
from safetensors.torch import save_file

from mupscale_cli.architecture.loading import load_recipe, recipe_for
from mupscale_cli.checkpoints.libraries import library_of
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.infer.infer import infer_target
from mupscale_cli.plan.conditions import environment
from mupscale_cli.tasks.check import check_model
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen


@pytest.fixture
def tiny(tmp_path):
    def save(case, **options):
        pytest.importorskip("torchvision", exc_type=ImportError)
        pytest.importorskip(library_of(CONFIGS[case]).name, exc_type=ImportError)
        return save_tiny(case, tmp_path / "narrow", **options)

    return save


@pytest.mark.parametrize("case", CONFIGS)
def test_every_axis_grows(case, tiny):
    checked = check_model(tiny(case))
    assert checked.passed, [trial for trial in checked.trials if trial.problem]
    assert not checked.mistakes
    assert 0 < checked.worst < 1e-12


def test_a_text_encoder_of_transformers_stays(tmp_path):
    """open_clip builds it by name, here that of a folder, so only the image encoder grows."""
    pytest.importorskip("open_clip", exc_type=ImportError)
    import transformers

    text = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    text.save_pretrained(tmp_path / "text")
    named = {"hf_model_name": str(tmp_path / "text"), "context_length": 9}
    config = open_clip(text=named)
    config["model_cfg"]["text_cfg"] = named
    source = save_config(config, tmp_path / "narrow")
    widened = widen(source, tmp_path / "wide", 2, dtype="float64")
    assert widened.plan.recipe.name == "open_clip_hf"
    assert widened.verification.agrees
    assert widened.verification.max_rel < 1e-12
    assert {tensor.target.shape == tensor.source.shape for tensor in widened.plan.tensors} == {False, True}


@pytest.mark.parametrize("case", ["timm-vit", "timm-swin", "timm-resnet50", "open_clip-ViT"])
def test_the_wide_folder_loads_as_usual(case, tiny, tmp_path):
    """The library itself builds the wide model from the folder, and nothing tells it the new sizes but the config."""
    source = tiny(case, dtype=torch.float32)
    widen(source, tmp_path / "wide", 2, verify=False)
    library = library_of(CONFIGS[case])
    model = library.load(library.package(), tmp_path / "wide")
    wide = open_checkpoint(tmp_path / "wide")
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        spec.name: spec.shape for spec in wide.specs
    }
    assert wide.files == (tmp_path / "wide" / library.weights[0],)
    assert wide.config_file == tmp_path / "wide" / library.config


@pytest.mark.parametrize("case", ["timm-vit", "open_clip-ViT"])
def test_a_weight_file_alone(case, tiny, tmp_path):
    source = tiny(case)
    library = library_of(CONFIGS[case])
    widened = widen(source / library.weights[0], tmp_path / "wide.safetensors", 2, dtype="float64")
    assert widened.verification.agrees
    assert json.loads((tmp_path / f"wide.{library.config}").read_text()) == widened.plan.config


@pytest.mark.parametrize("case", ["timm-vit", "timm-resnet50", "open_clip-ViT"])
def test_numbered_optimizer_states_train_on(case, tiny, tmp_path):
    """The parameters of an optimizer have the order of the library's own class, in one group or in two."""
    source = tiny(case)
    library = library_of(CONFIGS[case])
    model = library.load(library.package(), source).double().train()
    groups = [{"params": list(model.parameters())}]
    if library.groups is not None:
        parameters = dict(model.named_parameters())
        names = library.groups(library.package(), model)
        groups = [{"params": [parameters[name] for name in group]} for group in names]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, source / library.weights[0])
    torch.save(optimizer.state_dict(), source / "optimizer.pt")
    widened = widen(source, tmp_path / "wide", 2, dtype="float64")
    assert widened.verification.agrees
    assert widened.record["optimizer_state"] is not None
    training = verify(tmp_path / "wide", steps=2).training
    assert training is not None
    assert training.agrees


def test_the_number_of_heads_follows_from_every_name():
    """A config of timm seldom says it, and no shape shows it.

    Exempt are models that the recipes refuse for their other attention layers or a convolutional network in front.
    """
    timm = pytest.importorskip("timm", exc_type=ImportError)
    wrong, known = {}, 0
    for name in timm.list_models():
        recipe = recipe_for({"architecture": name})
        if recipe in ("timm_vit", "timm_eva", "timm_eva_mixed") and "_sapiens2" not in name:
            with torch.device("meta"):
                model = timm.create_model(name)
            attention = next((module for end, module in model.named_modules() if end == "blocks.0.attn"), None)
            is_hybrid = hasattr(model.patch_embed, "backbone")
            if is_hybrid or type(attention).__name__ not in ("Attention", "AttentionRope", "EvaAttention"):
                continue
            found = environment(load_recipe(recipe), {"architecture": name})["heads"]
            known += 1
            if found != attention.num_heads:
                wrong[name] = attention.num_heads, found
    assert known > 200
    assert not wrong


def test_a_recipe_is_drafted_from_a_config_of_timm(tiny, tmp_path):
    source = tiny("timm-vit")
    config = json.loads((source / "config.json").read_text())
    config["model_args"]["mlp_ratio"] = 4
    (source / "config.json").write_text(json.dumps(config))
    inferred = infer_target(str(source))
    assert {"h", "d"}.isdisjoint(inferred.fixed)
    (tmp_path / "mine.yaml").write_text(inferred.text)
    widened = widen(
        source, tmp_path / "wide", axes={"embed": 2, "h": 2}, recipe=tmp_path / "mine.yaml", dtype="float64"
    )
    assert widened.verification.agrees
    assert widened.plan.config["model_args"]["num_heads"] == 6
