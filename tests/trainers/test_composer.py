"""composer's own Trainer resumes a widened checkpoint, and its losses are those of the narrow run."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import mupscale_cli as mupscale
from mupscale_cli.errors import PlanError

composer = pytest.importorskip("composer")
algorithms = pytest.importorskip("composer.algorithms")

STEPS, SAVED, CLIP = 8, 4, 0.1
REL = 16 * 2**-24  # the losses are computed in float32: some roundings of them
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False}
OPTIMIZERS = {
    "decoupled": lambda model: composer.optim.DecoupledAdamW(model.parameters(), lr=3e-3, weight_decay=1e-2),
    "coupled": lambda model: torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-1),
}


class Losses(composer.Callback):
    """Keeps the loss of each step."""

    def __init__(self):
        self.found = []

    def after_loss(self, state, logger):  # noqa: ARG002 (composer's signature)
        self.found.append(state.loss.item())


class WeightedClipping(composer.Callback):
    """The lines of the page `trainers`."""

    def after_train_batch(self, state, logger):  # noqa: ARG002 (composer's signature)
        mupscale.clip_grad_norm_(state.optimizers[0], CLIP)


def trained(model, optimizer, folder, *clipping, resume=None):
    """Train a model, and return the loss of each step."""
    losses = Losses()
    callbacks = [losses, *(each for each in clipping if isinstance(each, composer.Callback))]
    methods = [each for each in clipping if each not in callbacks]
    tokens = torch.randint(64, (48, 16), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = composer.Trainer(
        model=model,
        train_dataloader=torch.utils.data.DataLoader(rows, batch_size=4),
        max_duration=f"{STEPS}ba",
        optimizers=optimizer,
        schedulers=composer.optim.CosineAnnealingWithWarmupScheduler(t_warmup="2ba", alpha_f=0.1),
        save_folder=str(folder),
        save_interval=f"{SAVED}ba",
        load_path=resume,
        device="cpu",
        callbacks=callbacks,
        algorithms=methods,
        progress_bar=False,
        seed=3,
        run_name="tiny",
    )
    trainer.fit()
    return losses.found


def built(config):
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_((parameter.dim() == 1) + 0.3 * torch.randn(parameter.shape, generator=generator))
    return composer.models.HuggingFaceModel(network)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_wide_run_follows_the_narrow_one(kind, tmp_path):
    make, name = OPTIMIZERS[kind], f"ep0-ba{SAVED}-rank0.pt"
    model = built(SIZES | HEADS)
    clipping = algorithms.GradientClipping(clipping_type="norm", clipping_threshold=CLIP)
    narrow = trained(model, make(model), tmp_path / "narrow", clipping)
    made = mupscale.widen(tmp_path / "narrow" / name, tmp_path / "wide" / name, 2)
    assert made.record["optimizer_state"]["kinds"] == ["decoupledadamw" if kind == "decoupled" else "adamw"]

    saved = torch.load(made.output, weights_only=False)
    assert saved["state"]["metadata"] == torch.load(tmp_path / "narrow" / name, weights_only=False)["state"]["metadata"]
    wide = built(saved["state"]["integrations"]["huggingface"]["model"]["config"]["content"])
    optimizer = make(wide)
    mupscale.scale_optimizer(optimizer, wide, made.output)
    found = trained(wide, optimizer, tmp_path / "on", WeightedClipping(), resume=str(made.output))
    assert len(found) == STEPS - SAVED
    assert found == pytest.approx(narrow[SAVED:], rel=REL)


def test_a_sharded_checkpoint_is_widened_in_kind_and_resumes_as_a_file(tmp_path):
    make, name = OPTIMIZERS["decoupled"], f"ep0-ba{SAVED}"
    model = built(SIZES | HEADS)
    clipping = algorithms.GradientClipping(clipping_type="norm", clipping_threshold=CLIP)
    narrow = trained(model, make(model), tmp_path / "narrow", clipping)
    content = torch.load(tmp_path / "narrow" / f"{name}-rank0.pt", weights_only=False)
    # What composer does with FSDP's shards, which it makes on a GPU only.
    writer, planner = (
        dcp.FileSystemWriter(tmp_path / "shards" / name),
        dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True),
    )
    dcp.save(content, storage_writer=writer, planner=planner, no_dist=True)
    made = mupscale.widen(tmp_path / "shards" / name, tmp_path / "wide" / name, 2)
    assert made.verification.agrees
    assert made.record["optimizer_state"]["kinds"] == ["decoupledadamw"]

    file = tmp_path / "wide.pt"
    dcp_to_torch_save(made.output, file)
    saved = torch.load(file, weights_only=False)
    wide = built(saved["state"]["integrations"]["huggingface"]["model"]["config"]["content"])
    optimizer = make(wide)
    mupscale.scale_optimizer(optimizer, wide, made.output)
    found = trained(wide, optimizer, tmp_path / "on", WeightedClipping(), resume=str(file))
    assert found == pytest.approx(narrow[SAVED:], rel=REL)


def test_an_optimizer_without_a_rule_is_refused_by_its_name(tmp_path):
    model = built(SIZES | HEADS)
    optimizer = composer.optim.DecoupledSGDW(model.parameters(), lr=3e-3, momentum=0.9, weight_decay=1e-2)
    trained(model, optimizer, tmp_path)
    with pytest.raises(PlanError, match="unknown optimizer `DecoupledSGDW`"):
        mupscale.widen(tmp_path / f"ep0-ba{SAVED}-rank0.pt", tmp_path / "wide.pt", 2)
