"""The two processes of optimizers/test_fsdp.py: they train and save a sharded model, load its wide state or grow it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
import transformers
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import mupscale_cli as mupscale
from helpers import build

WORLD = 2


def sharded(model: torch.nn.Module) -> torch.nn.Module:
    """Shard a model over the processes with FSDP2."""
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
    """Take one step on random tokens, which are equal in all processes; return the loss."""
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(seed))
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def train(folder: Path) -> None:
    """Train the narrow model for three steps and save it with torch; store the losses of the next steps."""
    model = sharded(build("Llama-tied", dtype=torch.float64).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for seed in range(3):
        step(model, optimizer, seed)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / "step-3")
    losses = [step(model, optimizer, seed) for seed in range(3, 6)]
    if dist.get_rank() == 0:
        torch.save(losses, folder / "losses.pt")


def resume(folder: Path) -> None:
    """Load the wide model and its widened state with torch; store the losses of the same steps."""
    from mupscale_cli import param_groups

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "wide", dtype=torch.float64).train()
    model = sharded(model)
    settings = {"lr": 1e-3, "weight_decay": 0.1, "decay": lambda _name, _parameter: True}
    optimizer = torch.optim.AdamW(param_groups(model, folder / "wide", **settings))
    weights, state = get_state_dict(model, optimizer)
    content = {"model": weights, "optimizer": state}
    dcp.load(content, checkpoint_id=folder / "wide" / "step-3")
    set_state_dict(model, optimizer, model_state_dict=content["model"], optim_state_dict=content["optimizer"])
    losses = [step(model, optimizer, seed) for seed in range(3, 6)]
    if dist.get_rank() == 0:
        torch.save(losses, folder / "wide_losses.pt")


def grow(folder: Path) -> None:
    """Grow a sharded model in memory; store what is refused, whether the tensors are right, and the next losses."""

    def build_sharded(config: dict[str, Any]) -> torch.nn.Module:
        return sharded(transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config)))

    model = sharded(build("Llama-tied", dtype=torch.float64).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for seed in range(3):
        step(model, optimizer, seed)
    refused = ""
    try:
        mupscale.grow(model, optimizer, factor=2)
    except mupscale.MupscaleError as error:
        refused = str(error)
    whole = build("Llama-tied", dtype=torch.float64)
    whole.load_state_dict({name: value.full_tensor() for name, value in model.state_dict().items()})
    expected = mupscale.grow(whole, factor=3, noise=0.1).model.state_dict()
    noisy = mupscale.grow(model, factor=3, noise=0.1, build=build_sharded).model.state_dict()
    are_equal = all(torch.equal(value.full_tensor(), expected[name]) for name, value in noisy.items())
    grown = mupscale.grow(model, optimizer, factor=3, build=build_sharded)
    runs = ((model, optimizer), (grown.model, grown.optimizer))
    losses = [[step(*run, seed) for seed in range(3, 6)] for run in runs]
    if dist.get_rank() == 0:
        torch.save({"refused": refused, "are_equal": are_equal, "losses": losses}, folder / "grown.pt")


def main(rank: int, task: str, folder: str) -> None:
    """Join the process group and run a task."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{task}.meeting", rank=rank, world_size=WORLD)
    {"train": train, "resume": resume, "grow": grow}[task](Path(folder))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(
        main, args=tuple(sys.argv[1:]), nprocs=WORLD, start_method="fork"
    )  # forking imports torch only once
