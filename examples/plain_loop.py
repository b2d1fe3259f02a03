"""Continue the run of a widened model in a loop of torch: python plain_loop.py WIDE"""

import sys
from importlib import resources

import torch
from transformers import AutoModelForCausalLM

import mupscale

wide = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(wide)
# The optimizer of the narrow run, with its hyperparameters; the next line scales them for the wide model.
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
mupscale.scale_optimizer(optimizer, model, wide)
optimizer.load_state_dict(torch.load(f"{wide}/optimizer.pt"))

# The text that `mupscale demo` trains on, one token for each byte.
text = torch.tensor(list((resources.files("mupscale_cli.tasks.demo") / "corpus.txt").read_bytes()))
torch.manual_seed(0)
for step in range(1, 6):
    starts = torch.randint(len(text) - 64, (16, 1))
    tokens = text[starts + torch.arange(64)]
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    mupscale.clip_grad_norm_(optimizer, 1.0)  # counts every unit once, however many copies it has
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}  loss {loss.item():.4f}")
