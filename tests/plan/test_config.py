"""The config of a widened model."""

import json
import shutil

import pytest

from mupscale_cli.architecture.document import parse_document
from mupscale_cli.architecture.parsing import parse_recipe
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import PlanError
from mupscale_cli.plan import Request, make_plan
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen
from outputs import merged


def test_widening_changes_only_the_sizes_in_the_config(saved, tmp_path):
    source = shutil.copytree(saved("Qwen3-tied"), tmp_path / "narrow")
    before = json.loads((source / "config.json").read_text())
    before["of_my_own"] = {"hidden_size": 48, "ü": [1.5, None]}
    (source / "config.json").write_text(json.dumps(before))
    widen(source, tmp_path / "wide", 2, {"ffn": 3}, verify=False)
    after = json.loads((tmp_path / "wide" / "config.json").read_text())
    new = {"hidden_size": 96, "num_key_value_heads": 4, "num_attention_heads": 8, "intermediate_size": 120}
    assert after == {**before, **new}


ITEMS = """
match: {model_type: [items]}
axes: {a: {size: from shapes}}
widen: [a]
config: {"sizes[1]": "sizes[1] | a", "stages[0][2]": a}
tensors: {"w": "a, ."}
"""


def items_plan(config):
    recipe = parse_recipe("items", "items.yaml", "", parse_document(ITEMS, "items.yaml"), {})
    return make_plan(recipe, [TensorSpec("w", "F32", (4, 3))], config, Request(factor=2))


def test_items_of_lists_are_changed_alone():
    config = {"sizes": [3, 8, 5], "stages": [["x", 1, 4], ["y"]], "other": [1]}
    plan = items_plan(config)
    assert plan.config == {"sizes": [3, 16, 5], "stages": [["x", 1, 8], ["y"]], "other": [1]}
    assert [(change.key, change.before, change.after) for change in plan.config_changes] == [
        ("sizes[1]", 8, 16),
        ("stages[0][2]", 4, 8),
    ]
    assert config["sizes"] == [3, 8, 5]


def test_a_list_without_the_item_is_an_error():
    with pytest.raises(PlanError, match=r"config.json has no item `sizes\[1\]`"):
        items_plan({"sizes": [3], "stages": [["x", 1, 4]]})


UNUSED = """
match: {model_type: [unused]}
axes: {a: {size: width}, b: {size: count}}
widen: [a, b]
config: {width: a, count: b, chosen: chosen | b, product: a * b}
tensors: {"w": "a, .", "e.*b?": "a, ."}
"""


@pytest.mark.parametrize("count", [{"count": 0}, {"count": None}, {}])
def test_a_key_for_an_axis_that_no_tensor_has_stays(count):
    recipe = parse_recipe("unused", "unused.yaml", "", parse_document(UNUSED, "unused.yaml"), {})
    config = {"width": 4, "chosen": 2, "product": 0, **count}
    plan = make_plan(recipe, [TensorSpec("w", "F32", (4, 3))], config, Request(factor=2))
    assert plan.config == {**config, "width": 8}


@pytest.mark.parametrize("case", ["Llama-tied", "Gemma3-untied", "GPT2-untied", "ResNet-bottleneck"])
def test_transformers_builds_the_widened_shapes_from_the_config(case, saved, tmp_path):
    import transformers

    widen(saved(case), tmp_path / "wide", 2, verify=False)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "wide")
    model = getattr(transformers, config.architectures[0])(config)
    stored = {name: shape for name, (_, shape, _) in merged(tmp_path / "wide").items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert stored.items() <= expected.items()
    tied = {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()
    assert expected.keys() - stored.keys() <= tied


def test_settings_by_the_number_of_a_block_are_scaled_where_they_are(saved, tmp_path):
    """Step 3.7 repeats the number of heads for every block that has another one than the others."""
    widened = widen(saved("Step3p7-images"), tmp_path / "wide", axes={"text.kv": 3}, verify=False)
    text = json.loads((widened.output / "config.json").read_text())["text_config"]
    assert text["per_layer_config"] == {"1": {"num_attention_heads": 18}}
    assert (text["num_attention_heads"], text["num_sliding_attention_heads"]) == (12, 18)


def test_a_key_that_the_config_lacks_and_keeps_lacking_is_no_change(saved):
    plan = plan_widening(saved("Qwen3_5Text-tied"), factor=2)
    assert not [change for change in plan.config_changes if change.before == change.after]
