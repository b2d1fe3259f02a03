"""Files of trainers that are known and not widened: one message says whose they are and what to do instead."""

import pytest
import torch
from torch.distributed.checkpoint import save

from mupscale_cli.checkpoints.layouts.opening import Choice
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import CheckpointError

WEIGHTS = {"decoder.embed_tokens.weight": torch.zeros(3, 2)}
FAIRSEQ = {
    "args": None,
    "cfg": {},
    "model": WEIGHTS,
    "optimizer_history": [{"num_updates": 4}],
    "extra_state": {"e": 1},
}
MODDED = {"step": 10, "code": "import torch", "model": WEIGHTS, "optimizers": [{"state": {}, "param_groups": []}]}
FILES = {
    "checkpoint_last.pt": (FAIRSEQ, "of fairseq, whose models"),
    "state_step000010.pt": (MODDED, "of modded-nanogpt, each of whose scripts"),
}


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_torch_could_read_is_refused_by_its_trainer(name, is_folder, tmp_path):
    content, about = FILES[name]
    torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=about) as refused:
        open_checkpoint(tmp_path if is_folder else tmp_path / name)
    assert "--layout torch --recipe FILE" in refused.value.hint
    assert open_checkpoint(tmp_path / name, Choice(layout="torch")).tensors.keys() == WEIGHTS.keys()


@pytest.mark.parametrize("place", ["", "step=10", "step=10/weights"])
def test_nemo_2_is_not_taken_for_megatron(place, tmp_path):
    weights = tmp_path / "step=10" / "weights"
    save({"module.output_layer.weight": torch.zeros(3, 2)}, checkpoint_id=weights, no_dist=True)
    torch.save({"pytorch-lightning_version": "2.4.0", "state_dict": {}}, weights / "common.pt")
    (weights / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    (tmp_path / "step=10" / "context").mkdir()
    with pytest.raises(CheckpointError, match="of NeMo 2, which keeps the sizes") as refused:
        open_checkpoint(tmp_path / place)
    assert "nemo llm export" in refused.value.hint
