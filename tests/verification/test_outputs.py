"""What counts as the output of a model."""

import pytest
import torch
from transformers.modeling_outputs import BackboneOutput, BaseModelOutput

from mupscale_cli.errors import VerifyError
from mupscale_cli.verification.outputs import output_tensor


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
