"""Train a tiny model with lingua's model, optimizer, schedule and checkpoints: `lingua_run.py PHASE FOLDER`.

Its train.py needs CUDA, so the loop is ours. `narrow` trains 8 steps in FOLDER/narrow and saves after 4; `wide` goes on
in FOLDER/wide from what `mupscale widen` made of that checkpoint. Prints the losses.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.distributed.checkpoint.stateful import Stateful

# lingua names these kernels of xformers, which this model does not use.
for namespace, kernel in (("xformers_flash", "flash_fwd"), ("xformers", "efficient_attention_forward_cutlass")):
    torch.library.define(f"{namespace}::{kernel}", "(Tensor x) -> Tensor")

from apps.main.transformer import LMTransformer, LMTransformerArgs  # noqa: E402
from checkouts import free_port  # noqa: E402
from lingua.checkpoint import CheckpointArgs, CheckpointManager, SaveEvery  # noqa: E402
from lingua.optim import OptimArgs, build_optimizer  # noqa: E402

import mupscale  # noqa: E402

VOCABULARY, STEPS, SAVED, CLIP = 64, 8, 4, 0.3
NARROW = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 16}
NARROW |= {"vocab_size": VOCABULARY, "max_seqlen": 16}


@dataclass
class TrainArgs:
    """The run's config, as lingua's own has it."""

    dump_dir: str
    checkpoint: CheckpointArgs
    model: LMTransformerArgs
    steps: int = 40
    optim: OptimArgs = field(default_factory=lambda: OptimArgs(lr=3e-3, warmup=2, clip=CLIP))


class TrainState(Stateful):
    """The progress of training, with the keys of lingua's own."""

    def __init__(self, scheduler):
        self.step, self.scheduler = 0, scheduler

    def state_dict(self):
        data = {"position": self.step}
        return {"step": self.step, "acc_step": 0, "data_loader_state": data, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state):
        self.step = state["step"]
        self.scheduler.load_state_dict(state["scheduler"])


def trained(folder, sizes, wide=None):
    """Train up to the last step, from the last checkpoint in the folder if there is one; return the losses."""
    saving = CheckpointArgs(path=str(folder / "checkpoints"), dump=SaveEvery(every=SAVED))
    args = TrainArgs(str(folder), saving, LMTransformerArgs(**sizes))
    torch.manual_seed(0)
    model = LMTransformer(args.model)
    model.init_weights()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    optimizer, scheduler = build_optimizer(model, args.optim, args.steps)
    if wide is not None:  # the line of the page `trainers`
        mupscale.scale_optimizer(optimizer, model, wide, schedulers=[scheduler])
    state = TrainState(scheduler)
    checkpoint = CheckpointManager.instantiate_and_make_dir(args.checkpoint)
    checkpoint.load(model, optimizer, state, None)
    losses = []
    while state.step < STEPS:
        generator = torch.Generator().manual_seed(state.step)
        tokens = torch.randint(VOCABULARY, (4, 17), generator=generator)
        loss = model(tokens[:, :-1], target=tokens[:, 1:])
        loss.backward()
        if wide is None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.optim.clip)
        else:
            mupscale.clip_grad_norm_(optimizer, args.optim.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        state.step += 1
        losses.append(loss.item())
        if state.step == SAVED:
            checkpoint.save(model, optimizer, state, args)
    return losses


def main(phase, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo")
    folder = Path(folder)
    if phase == "wide":
        step = next((folder / "wide/checkpoints").iterdir())
        losses = trained(folder / phase, json.loads((step / "params.json").read_text())["model"], step)
    else:
        losses = trained(folder / "narrow", NARROW)
    sys.stdout.write(json.dumps(losses) + "\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
