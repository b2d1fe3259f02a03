"""Grow a model in the middle of its run, without leaving the process: python grow_in_process.py MODEL"""

import sys
from importlib import resources

import torch
from transformers import AutoModelForCausalLM

import mupscale

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 20)

text = torch.tensor(list((resources.files("mupscale_cli.tasks.demo") / "corpus.txt").read_bytes()))
torch.manual_seed(0)
for step in range(1, 9):
    if step == 5:
        grown = mupscale.grow(model, optimizer, factor=2, noise=0.05, noise_mode="preserving", scheduler=scheduler)
        model, optimizer, scheduler = grown.model, grown.optimizer, grown.scheduler
    starts = torch.randint(len(text) - 64, (16, 1))
    tokens = text[starts + torch.arange(64)]
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    print(f"step {step}  loss {loss.item():.4f}  hidden size {model.config.hidden_size}")
