"""Write the files of nanochat as its processes do, without nanochat."""

import json

import nanochat_model
import torch

CONFIG = {**nanochat_model.CONFIG, "vocab_size": 48}  # so that value embeddings grow beyond 1024 elements
HEAD = ["lm_head.weight", "transformer.wte.weight"]
SCALARS = [["resid_lambdas"], ["x0_lambdas"], ["smear_gate.weight", "smear_lambda", "backout_lambda"]]


def groups_of(shapes):
    """Return the names of nanochat's groups, written as its `GPT.setup_optimizer` does it."""
    blocks = [name for name in shapes if name.startswith("transformer.h.")]
    values = [name for name in shapes if name.startswith("value_embeds.")]
    stacks = [[n for n in blocks if shapes[n] == shape] for shape in sorted({shapes[n] for n in blocks})]
    return [*([name] for name in HEAD), values, *SCALARS], stacks


def state_of(shapes, seed=0):
    """Return random states and groups as one process has them."""
    generator = torch.Generator().manual_seed(seed)
    adam, stacks = groups_of(shapes)
    state, groups, number = {}, [], 0
    for names in adam:
        groups.append({"kind": "adamw", "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.01, "lr": 0.1})
        groups[-1] |= {"initial_lr": 0.2, "params": list(range(number, number + len(names)))}
        for name in names:
            moments = {key: torch.rand(shapes[name], generator=generator) for key in ("exp_avg", "exp_avg_sq")}
            state[number] = {"step": 7, **moments}
            number += 1
    for names in stacks:
        rows, columns = shapes[names[0]]
        kept = (rows, 1) if rows >= columns else (1, columns)
        groups.append({"kind": "muon", "momentum": 0.95, "ns_steps": 5, "beta2": 0.9, "weight_decay": 0.1, "lr": 0.02})
        groups[-1] |= {"initial_lr": 0.04, "params": list(range(number, number + len(names)))}
        state[number] = {
            "momentum_buffer": torch.rand(len(names), rows, columns, generator=generator),
            "second_momentum_buffer": torch.rand(len(names), *kept, generator=generator),
        }
        number += len(names)
    return {"state": state, "param_groups": groups}


def cut(content, ranks):
    """Return the content of each process: rows of large tensors, and consecutive matrices padded with zeros."""
    states = [{} for _ in range(ranks)]
    for group in content["param_groups"]:
        for number in group["params"]:
            for key, value in content["state"].get(number, {}).items():
                parts = [value] * ranks
                if group["kind"] == "muon":
                    size = -(-len(value) // ranks)
                    padded = torch.cat([value, value.new_zeros(size * ranks - len(value), *value.shape[1:])])
                    parts = [part.clone() for part in padded.split(size)]
                elif isinstance(value, torch.Tensor) and value.numel() >= 1024:
                    parts = [part.clone() for part in value.chunk(ranks)]
                for state, part in zip(states, parts, strict=True):
                    state.setdefault(number, {})[key] = part
    return [{"state": state, "param_groups": content["param_groups"]} for state in states]


def save(folder, ranks):
    """Save a narrow checkpoint as nanochat does, with the optimizer files of a given number of processes."""
    folder.mkdir()
    model = nanochat_model.build(CONFIG)
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    torch.save(weights, folder / "model_000010.pt")
    (folder / "meta_000010.json").write_text(json.dumps({"step": 10, "model_config": CONFIG}))
    for rank, content in enumerate(cut(state_of(shapes), ranks)):
        torch.save(content, folder / f"optim_000010_rank{rank}.pt")
    return folder
