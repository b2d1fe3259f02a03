"""What counts as the output of a model."""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Backbone, Dinov2Config
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BackboneOutput, BaseModelOutput

from helpers import randomize
from mupscale_cli import verify, widen
from mupscale_cli.errors import VerifyError
from mupscale_cli.verification.compared_outputs import compare_outputs
from mupscale_cli.verification.outputs import main_and_others, output_tensor


def test_the_output_of_a_backbone_is_its_first_feature_map():
    maps = (torch.zeros(2), torch.ones(3))
    assert output_tensor(BackboneOutput(feature_maps=maps)) is maps[0]


def test_the_output_has_a_usual_name_or_comes_first():
    states, more = torch.zeros(2), torch.ones(3)
    assert output_tensor(BaseModelOutput(last_hidden_state=states, hidden_states=(more, states))) is states
    assert output_tensor((torch.tensor(1), (more, states))) is more


def test_an_output_without_numbers_is_refused():
    with pytest.raises(VerifyError, match="returns BackboneOutput, expected a tensor"):
        output_tensor(BackboneOutput(feature_maps=()))


def test_every_output_has_the_path_to_it_and_the_main_one_comes_first():
    @dataclass
    class Inner:
        scores: torch.Tensor
        count: int = 3

    first, states, scores, extra, token = (torch.full((2,), float(i)) for i in range(5))
    output = BaseModelOutput(last_hidden_state=states, hidden_states=(first, states))
    output["inner"] = Inner(scores)
    output["nested"] = {"list": [extra, {"token": token}], "tokens": torch.tensor([1])}
    output["cache"] = DynamicCache()
    found = main_and_others(output)
    assert {name: float(value[0]) for name, value in found.items()} == {
        "last_hidden_state": 1,
        "hidden_states.0": 0,
        "inner.scores": 2,
        "nested.list.0": 3,
        "nested.list.1.token": 4,
    }
    assert next(iter(found)) == "last_hidden_state"
    assert list(main_and_others((states, (first, extra)))) == ["logits", "output 1.0", "output 1.1"]
    assert list(main_and_others(states)) == ["logits"]
    assert list(main_and_others(BackboneOutput(feature_maps=(first, states)))) == ["feature_maps.0", "feature_maps.1"]


@pytest.mark.parametrize("place", [0, 1])
def test_every_feature_map_of_a_backbone_is_compared(place, tmp_path):
    """What the maps do not share, here the values of the last block, is seen only in the second."""
    config = Dinov2Config(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        out_features=["stage1", "stage2"],
    )
    randomize(Dinov2Backbone(config)).save_pretrained(tmp_path / "narrow")
    found = widen(tmp_path / "narrow", tmp_path / "wide", 2).verification
    assert found.agrees
    names = ["feature_maps.0 (each unit 2 times)", "feature_maps.1 (each unit 2 times)"]
    assert [comparison.what for comparison in found.comparisons][:2] == names
    file = tmp_path / "wide/model.safetensors"
    tensors = load_file(file)
    tensors[f"encoder.layer.{place}.layer_scale2.lambda1"][3] *= 2  # no module whose output is compared
    save_file(tensors, file, metadata={"format": "pt"})
    after = verify(tmp_path / "wide", only=("function",)).function
    differ = [comparison.what for comparison in after.comparisons if not comparison.max_rel <= after.tolerance]
    assert set(names[place:]) <= set(differ)
    assert not set(names[:place]) & set(differ)


def test_lists_with_an_entry_for_each_block_are_skipped_if_blocks_are_added():
    before = {"logits": torch.ones(2, 3), "states.0": torch.ones(2), "states.1": torch.zeros(2), "last": torch.ones(2)}
    after = {**before, "states.1": torch.ones(2), "states.2": torch.zeros(2)}
    assert [found.what for found in compare_outputs(before, after, None)] == ["logits", "last"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_difference_beside_hidden_logits_is_as_large_as_without_them(dtype):
    """The lowest number of a type would make every other difference look like rounding."""
    low = torch.finfo(dtype).min
    logits = torch.tensor([2.0, low], dtype=dtype)
    for wide, difference in ((logits, 0), (torch.tensor([3.0, low], dtype=dtype), 0.5)):
        (found,) = compare_outputs({"logits": logits}, {"logits": wide}, None)
        assert found.max_rel == difference
    (found,) = compare_outputs({"logits": logits}, {"logits": torch.ones_like(logits)}, None)
    assert found.max_rel >= 0.5


@pytest.mark.parametrize(("low", "shown"), [(-torch.inf, torch.inf), (torch.finfo(torch.float32).min, 1)])
def test_scores_that_both_models_hide_are_no_difference(low, shown):
    hidden = torch.tensor([1.0, low])
    before = {"logits": torch.ones(2), "scores": hidden, "empty": torch.zeros(0)}
    for wide, difference in ((hidden, 0), (torch.tensor([2.0, low]), 1), (torch.ones(2), shown)):
        (_, found) = compare_outputs(before, {**before, "scores": wide}, None)
        assert (found.what, found.max_rel) == ("scores", difference)
