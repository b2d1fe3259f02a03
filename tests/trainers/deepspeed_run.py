"""Train a tiny Llama with DeepSpeed: `deepspeed_run.py PHASE FOLDER STAGE DTYPE`.

`narrow` trains some steps, saves a checkpoint to FOLDER and prints the losses of the steps after it. `wide` resumes
from FOLDER, which `mupscale widen` wrote, and prints the losses of the same steps.
"""

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
import transformers

import mupscale_cli as mupscale
from helpers import randomize
from trainer_runs import STEPS, token_batches

BEFORE = 3
LR, DECAY = 3e-3, 0.1
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "tie_word_embeddings": False,
}


def ds_config(stage, dtype, universal):
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # DeepSpeed clips by the plain norm, which counts copies more than once
        "checkpoint": {"load_universal": universal},
    }
    if dtype != "float32":
        config["bf16"] = {"enabled": True}
    return config


def start(model, groups, stage, dtype, universal):
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 10))
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=ds_config(stage, dtype, universal)
    )
    return engine


def repair(engine, folder):
    """Do what the page `trainers` says to do after loading in stage 3."""
    optimizer = engine.optimizer.optimizer
    file = folder / (folder / "latest_universal").read_text() / "zero" / "optimizer_state.pt"
    for live, saved in zip(optimizer.param_groups, torch.load(file, weights_only=False)["param_groups"], strict=True):
        live.update({key: value for key, value in saved.items() if key != "params"})
    for state in optimizer.state.values():
        state["step"] = state["step"].clone()


def train(engine, batches):
    losses = []
    for batch in batches:
        loss = engine(input_ids=batch, labels=batch).loss
        engine.backward(loss)
        engine.step()
        total = loss.detach().clone().float()
        torch.distributed.all_reduce(total)
        losses.append(total.item() / torch.distributed.get_world_size())
    return losses


def main():
    phase, folder, stage, dtype = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    deepspeed.init_distributed("gloo")
    rank = torch.distributed.get_rank()
    batches = list(token_batches(BEFORE + STEPS, SIZES["vocab_size"], seed=10 + rank))
    if phase == "narrow":
        model = randomize(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)))
        named = list(model.named_parameters())
        groups = [
            {"params": [p for _, p in named if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for _, p in named if p.dim() == 1], "weight_decay": 0.0},
        ]
        engine = start(model, groups, stage, dtype, universal=False)
        train(engine, batches[:BEFORE])
        engine.save_checkpoint(folder)
        if rank == 0:
            model.config.save_pretrained(folder)
    else:
        model = transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(folder))
        engine = start(model, mupscale.param_groups(model, folder, lr=LR, weight_decay=DECAY), stage, dtype, True)
        engine.load_checkpoint(folder)
        if stage == 3:
            repair(engine, folder)
    losses = train(engine, batches[BEFORE:])
    torch.distributed.barrier()
    if rank == 0:
        sys.stdout.write(json.dumps(losses) + "\n")
    sys.stdout.flush()
    os._exit(0)  # in stage 3, a thread of DeepSpeed may abort the process while the interpreter shuts down


if __name__ == "__main__":
    main()
