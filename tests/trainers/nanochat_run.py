"""Run nanochat's own `scripts/base_train.py` on a CPU, with random tokens in place of its data set and tokenizer.

    python nanochat_run.py CHECKOUT SCRIPT ARGUMENTS...

SCRIPT is a copy of `scripts/base_train.py`, perhaps with changed lines. Only what needs a download is replaced. With
RANK and WORLD_SIZE set, several processes train together; gloo has no averages, so sums are divided.
"""

import os
import runpy
import sys
import types

import torch
from torch import distributed

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
VOCAB = 64


def batches(_tokenizer, rows, length, split, device="cpu", resume_state_dict=None):
    """Yield inputs, targets and the position to resume from; batch n is the same in every run."""
    first = 0 if resume_state_dict is None else resume_state_dict["pq_idx"]
    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    for number in range(first, 10**6):
        generator = torch.Generator().manual_seed(number)
        tokens = (torch.rand(rows * ranks, length + 1, generator=generator) ** 3 * VOCAB).long().to(device)
        tokens = tokens[rank * rows : (rank + 1) * rows]
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), {"pq_idx": number, "rg_idx": 0, "epoch": 1}


def module(name, **content):
    """Put a module in place of one that needs a download."""
    made = types.ModuleType(name)
    vars(made).update(content)
    sys.modules[name] = made


def average(function):
    """Return a collective operation that averages, for a backend that only sums."""

    def averaged(out, *tensors, op=None, **options):
        work = function(out, *tensors, op=distributed.ReduceOp.SUM, **{**options, "async_op": False})
        out.div_(distributed.get_world_size())
        done = torch.futures.Future()
        done.set_result(work)
        return types.SimpleNamespace(get_future=lambda: done)

    return averaged


def main():
    checkout, script, *arguments = sys.argv[1:]
    sys.path.insert(0, checkout)
    tokenizer = types.SimpleNamespace(get_vocab_size=lambda: VOCAB)
    module("wandb")
    module("nanochat.tokenizer", get_tokenizer=lambda: tokenizer, get_token_bytes=lambda **_: torch.ones(VOCAB))
    loaders = ("tokenizing_distributed_data_loader_bos_bestfit",)
    loaders += ("tokenizing_distributed_data_loader_with_state_bos_bestfit",)
    module("nanochat.dataloader", **dict.fromkeys(loaders, batches))
    module("scripts.base_eval", evaluate_core=None)
    if "RANK" in os.environ:
        distributed.init_process_group("gloo")
        for name in ("all_reduce", "reduce_scatter_tensor"):
            setattr(distributed, name, average(getattr(distributed, name)))
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


main()
