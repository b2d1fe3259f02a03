"""Train causal language models with AdamW, starting from the widened optimizer state if there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.architecture.wrappers import strip_wrappers
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.errors import SweepError
from mupscale_cli.optimizers.finding import find_optimizer
from mupscale_cli.optimizers.in_kind import open_state
from mupscale_cli.optimizers.multipliers import CLIP_WEIGHT
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.optimizers.torch_groups import clip_grad_norm_, param_groups
from mupscale_cli.sweep.data import Split, Tokens
from mupscale_cli.sweep.models import load_model
from mupscale_cli.sweep.settings import Training
from mupscale_cli.text import listed
from mupscale_cli.verification.placement import choose_device

_FINAL = 0.1  # learning rate at the end of a cosine, relative to its start

Report = Callable[[int, float], None]


def train(path: Path, training: Training, data: Split, lr: float, seed: int, report: Report) -> float:
    """Train a checkpoint's model in memory; the checkpoint does not change.

    Args:
        path: path of a widened or a narrow checkpoint.
        training: settings of the trainer.
        data: tokens to train on and held-out sequences.
        lr: learning rate in the narrow run's terms.
        seed: random seed for batches and dropout.
        report: called with each step and its loss.

    Returns:
        The held-out loss in nats per token; NaN if the training diverged.

    Raises:
        SweepError: transformers cannot load the model, or the optimizer's state is not Adam's.
    """
    model = load_model(open_checkpoint(path), choose_device(training.device))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        is_finite = run(model, make_optimizer(model, path, training, lr), training, data.train, seed, report)
        return evaluate(model, data.held_out, training.batch_size) if is_finite else math.nan


def make_optimizer(
    model: nn.Module, path: Path, training: Training, lr: float, *, is_mapped: bool = True
) -> torch.optim.AdamW:
    """Create AdamW with a checkpoint's state; a widened checkpoint's parameter groups have mapped hyperparameters.

    Args:
        model: the checkpoint's model.
        path: path of a widened or a narrow checkpoint.
        training: settings of the trainer.
        lr: learning rate in the narrow run's terms.
        is_mapped: whether a widened checkpoint's hyperparameters are mapped; otherwise they are the narrow run's.

    Raises:
        SweepError: the state is not Adam's.
    """
    checkpoint = open_checkpoint(path)
    settings: dict[str, Any] = {"eps": training.eps, "betas": training.betas, "weight_decay": training.weight_decay}
    if checkpoint.record is None or not is_mapped:
        groups = _plain_groups(model, settings)
    else:
        groups = param_groups(model, path, lr=lr, **settings)
    optimizer = torch.optim.AdamW(groups, lr=lr)
    _load_state(optimizer, model, checkpoint)
    return optimizer


def _plain_groups(model: nn.Module, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parameter groups of a narrow model; only matrices are decayed, as in `param_groups`."""
    groups = []
    for is_decayed in (True, False):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and (p.dim() > 1) == is_decayed]
        decay = settings["weight_decay"] if is_decayed else 0.0
        groups.append(
            {
                "params": [parameter for _, parameter in named],
                "param_names": [name for name, _ in named],
                **settings,
                "weight_decay": decay,
                CLIP_WEIGHT: 1.0,
            }
        )
    return [group for group in groups if group["params"]]


def _load_state(optimizer: torch.optim.AdamW, model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load the checkpoint's moments by name, since the narrow run may have grouped its parameters differently."""
    file = find_optimizer(checkpoint)
    if file is None:
        return
    recorded = (checkpoint.record or {}).get("optimizer_state") or {}
    # mupscale wrote the state of a widened checkpoint itself.
    kinds = recorded.get("kinds", ())
    tree = open_state(checkpoint, file, recorded.get("key"), kinds).load()
    adamw = OPTIMIZERS["adamw"]
    if strange := set(tree.identified().names) - {adamw.name, adamw.twin}:
        raise SweepError(
            f"the optimizer's state `{file.name}` is not Adam's but that of {listed(sorted(strange))}",
            hint="ignore it with `--optimizer none`, or bring your own trainer: `mupscale sweep --command`",
        )
    states = tree.states
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for name, parameter in model.named_parameters():
        plain = strip_wrappers(name)
        entries = next((states[s] for s in (plain, plain.removeprefix(prefix), prefix + plain) if s in states), None)
        if entries is None:
            continue
        optimizer.state[parameter] = {
            "step": torch.tensor(float(entries["step"])),
            **{key: entries[key].to(parameter).clone() for key in ("exp_avg", "exp_avg_sq")},
        }


def run(
    model: nn.Module, optimizer: torch.optim.Optimizer, training: Training, tokens: Tokens, seed: int, report: Report
) -> bool:
    """Train until the last step or the first loss that is not finite; return whether all losses were finite."""
    device = next(model.parameters()).device
    rates = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(seed)  # batches do not depend on dropout
    for step in range(training.steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, training)
        batch = draw(tokens, training.batch_size, training.length, generator).to(device)
        loss = model(input_ids=batch, labels=batch).loss
        report(step + 1, float(loss.detach()))
        if not math.isfinite(float(loss.detach())):
            return False
        loss.backward()
        if training.clip:
            clip_grad_norm_(optimizer, training.clip)
        optimizer.step()
        optimizer.zero_grad()
    return True


def schedule(step: int, training: Training) -> float:
    """Return the learning rate's multiplier at a step, counted from 0."""
    if step < training.warmup:
        return (step + 1) / training.warmup
    if training.schedule == "constant":
        return 1.0
    done = (step - training.warmup) / max(1, training.steps - training.warmup)
    return _FINAL + (1 - _FINAL) * (1 + math.cos(math.pi * done)) / 2


def draw(tokens: Tokens, batch_size: int, length: int, generator: torch.Generator) -> Tensor:
    """Draw random pieces of the text: token ids, (batch_size, length)."""
    starts = torch.randint(len(tokens) - length + 1, (batch_size,), generator=generator)
    return torch.stack([torch.from_numpy(tokens[start : start + length].astype("int64")) for start in starts.tolist()])


@torch.no_grad()
def evaluate(model: nn.Module, sequences: Tokens, batch_size: int) -> float:
    """Return the mean loss over sequences, (sequences, length), in nats per token."""
    device = next(model.parameters()).device
    model.eval()
    total = 0.0
    for first in range(0, len(sequences), batch_size):
        batch = torch.from_numpy(sequences[first : first + batch_size]).to(device)
        total += float(model(input_ids=batch, labels=batch).loss) * len(batch)
    return total / len(sequences)
