"""Compute with Meta's own parallel model: `meta_llama_run.py PHASE FOLDER` prints the losses of four batches.

`narrow` initializes a model and saves the file of each rank as Meta's releases have it; `wide` loads FOLDER as Meta's
code does, which divides the one file among the ranks.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize_model_parallel
from models.checkpoint import maybe_reshard_state_dict
from models.llama3.args import ModelArgs
from models.llama3.model import Transformer

from trainer_runs import token_batches

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
NARROW = {"dim": 32, "n_layers": 2, "n_heads": 8, "n_kv_heads": 4, "vocab_size": 64, "multiple_of": 16}


def main(phase, folder):
    for name, value in ALONE.items():  # without torchrun
        os.environ.setdefault(name, value)
    dist.init_process_group("gloo")
    initialize_model_parallel(dist.get_world_size())
    folder, rank = Path(folder), dist.get_rank()
    sizes = NARROW if phase == "narrow" else json.loads((folder / "params.json").read_text())
    model = Transformer(ModelArgs(**{"max_seq_len": 32, **sizes}))
    if phase == "narrow":
        for number, parameter in enumerate(model.parameters()):
            own = torch.Generator().manual_seed(number + 1000 * rank * (parameter.dim() > 1))  # norms are the same
            torch.nn.init.normal_(parameter, float(parameter.dim() < 2), 0.3, generator=own)
        torch.save(model.state_dict(), folder / f"consolidated.{rank:02}.pth")
        (folder / "params.json").write_text(json.dumps(sizes))
    else:
        state = maybe_reshard_state_dict(list(folder.glob("consolidated.*.pth")), model.params.n_kv_heads)
        torch.set_default_dtype(torch.float32)
        model.load_state_dict(state)
    losses = []
    for tokens in token_batches(4, 64):
        logits = model(tokens, 0)
        losses.append(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item())
    if rank == 0:
        sys.stdout.write(json.dumps(losses) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
