"""Train Llama with FSDP2 under torchrun: `fsdp_run.py PHASE FOLDER KIND` prints the losses of steps 4 to 7.

`narrow` saves FOLDER after 4 steps, `wide` loads it. KIND is `loop`, for torch's own functions, or the
`state_dict_type` of accelerate.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import mupscale_cli as mupscale
from trainer_runs import token_batches

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
BEFORE, AFTER = 4, 4


class Loop:
    """A training loop in plain torch, with the folders that accelerate writes."""

    def __init__(self, model, make_optimizer):
        dist.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        self.model = fully_shard(model, mesh=mesh)
        self.optimizer = make_optimizer()

    def backward(self, loss):
        loss.backward()

    def save(self, folder):
        dcp.save({"model": states.get_model_state_dict(self.model)}, checkpoint_id=folder / "pytorch_model_fsdp_0")
        own = states.get_optimizer_state_dict(self.model, self.optimizer)
        dcp.save({"optimizer": own}, checkpoint_id=folder / "optimizer_0")

    def load(self, folder):
        loaded = {"model": states.get_model_state_dict(self.model)}
        dcp.load(loaded, checkpoint_id=folder / "pytorch_model_fsdp_0")
        states.set_model_state_dict(self.model, loaded["model"])
        loaded = {"optimizer": states.get_optimizer_state_dict(self.model, self.optimizer)}
        dcp.load(loaded, checkpoint_id=folder / "optimizer_0")
        states.set_optimizer_state_dict(self.model, self.optimizer, loaded["optimizer"])


class Accelerated:
    """A training loop in accelerate, which uses FSDP on the CPU only if its plugin says so."""

    def __init__(self, model, make_optimizer, kind):
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=kind, cpu_ram_efficient_loading=False)
        self.accelerator = Accelerator(cpu=True)
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer())
        self.backward, self.save, self.load = (
            getattr(self.accelerator, name) for name in ("backward", "save_state", "load_state")
        )


def main(phase, folder, kind):
    folder = Path(folder)
    torch.manual_seed(0)
    sizes = json.loads((folder / "config.json").read_text()) if phase == "wide" else SIZES
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))

    def make_optimizer():
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
        if phase == "wide":
            mupscale.scale_optimizer(optimizer, model, folder)
        return optimizer

    loop = Loop(model, make_optimizer) if kind == "loop" else Accelerated(model, make_optimizer, kind)
    losses = []
    if phase == "wide":
        loop.load(folder)
    for step, tokens in enumerate(token_batches(BEFORE + AFTER, 64)):
        if phase == "wide" and step < BEFORE:
            continue
        if phase == "narrow" and step == BEFORE:
            loop.save(folder)
            if dist.get_rank() == 0:
                model.config.architectures = ["LlamaForCausalLM"]
                (folder / "config.json").write_text(model.config.to_json_string(use_diff=False))
        own = tokens.chunk(dist.get_world_size())[dist.get_rank()]
        loss = loop.model(input_ids=own, labels=own).loss
        loop.backward(loss)
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item() / dist.get_world_size())
    if dist.get_rank() == 0:
        sys.stdout.write(json.dumps(losses[-AFTER:]) + "\n")
    dist.barrier()  # a process that ends while another one still talks to it can abort
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
