"""Save narrow checkpoints in the middle of training with any optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from helpers import build
from mupscale_cli.optimizers.exact.matrices import ExactMuon
from mupscale_cli.optimizers.exact.plain import Lion
from mupscale_cli.optimizers.rules.table import OPTIMIZERS as RULES
from mupscale_cli.verification.inputs.libraries import reference_inputs
from mupscale_cli.verification.optimizers import optimizer_class
from mupscale_cli.verification.precision import everything_in

OFFSET_GAINS = ("Gemma", "VaultGemma", "Nemotron", "Qwen4Exp")
# Class and settings of each optimizer, with weight decay to test its multiplier. Other optimizers use the settings in
# the table of optimizers, so tests cover new optimizers automatically.
OPTIMIZERS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    **{name: (optimizer_class(rule), rule.settings) for name, rule in RULES.items()},
    "adamw": (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1, "eps": 1e-6}),
    "adam": (torch.optim.Adam, {"lr": 3e-3, "weight_decay": 0.1, "eps": 1e-6}),
    "amsgrad": (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1, "amsgrad": True, "eps": 1e-6}),
    "nadam": (torch.optim.NAdam, {"lr": 3e-3, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adamax": (torch.optim.Adamax, {"lr": 3e-3, "weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"lr": 3e-3, "momentum": 0.9}),
    "sgd-nesterov": (torch.optim.SGD, {"lr": 3e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "lion": (Lion, {"lr": 3e-4, "weight_decay": 0.1}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2, "weight_decay": 0.1, "lr_decay": 0.01}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.5, "centered": True, "eps": 1e-6}),
    "adafactor": (
        optimizer_class(RULES["adafactor"]),
        {**RULES["adafactor"].settings, "beta1": 0.9, "weight_decay": 0.1},
    ),
    "adafactor-relative": (
        optimizer_class(RULES["adafactor"]),
        {**RULES["adafactor"].settings, "lr": None, "scale_parameter": True, "relative_step": True},
    ),
    "torchadafactor": (
        torch.optim.Adafactor,
        {**RULES["torchadafactor"].settings, "eps": (1e-12, 1e-3), "weight_decay": 0.1},
    ),
    "fusedlamb-undecayed": (optimizer_class(RULES["fusedlamb"]), {**RULES["fusedlamb"].settings, "weight_decay": 0.0}),
    "decoupledadamw": (
        optimizer_class(RULES["decoupledadamw"]),
        {"lr": 2e-3, "initial_lr": 3e-3, "weight_decay": 0.01, "eps": 1e-6},  # in the middle of a schedule
    ),
    "muon": (ExactMuon, {"lr": 3e-3, "weight_decay": 0.1, "ns_steps": 5}),
}

# The others train a stack of layers in the fast tests, and everything else in the slow ones.
_USUAL = ("adamw", "sgd-nesterov", "lion", "adagrad", "rmsprop", "muon")
CASES = [name if name in _USUAL else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS]


def random_loss(model: Any, generator: torch.Generator) -> torch.Tensor:
    """Return the loss on random inputs of the kind that the model takes."""
    inputs = reference_inputs(model, generator).to(torch.device("cpu"), next(model.parameters()).dtype)
    with everything_in(next(model.parameters()).dtype):
        output = model(**inputs.keywords)
    main = output.logits if hasattr(output, "logits") else next(iter(output.values()))
    return main.square().mean()


def make(optimizer: str, named: list[tuple[str, torch.nn.Parameter]], undecayed: list[str]) -> Any:
    """Create an optimizer of `OPTIMIZERS` whose groups contain the names of their parameters."""
    optimizer_type, settings = OPTIMIZERS[optimizer]
    known = inspect.signature(optimizer_type).parameters
    further = {key: value for key, value in settings.items() if key not in known}  # settings for the groups only
    if optimizer in RULES and RULES[optimizer].matrices_only:
        named = [(n, p) for n, p in named if p.dim() == 2]
        undecayed = [n for n, _ in named if n in undecayed]
    groups = [{**_group([(n, p) for n, p in named if n not in undecayed]), **further}]
    if undecayed:
        groups.append({**_group([(n, p) for n, p in named if n in undecayed]), **further, "weight_decay": 0.0})
    return optimizer_type(groups, **{key: value for key, value in settings.items() if key in known})


def first_steps(optimizer: str) -> int:
    """Return after how many steps the state of an optimizer is widened: after the few that RAdam does not normalize."""
    return 7 if optimizer == "radam" else 3


def named_kind(optimizer: str) -> tuple[str, ...]:
    """Return the optimizer's name if nothing in a state reveals it, so that the user has to say it."""
    return () if optimizer not in RULES or RULES[optimizer].marks else (optimizer,)


def trained(case: str, optimizer: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """Train a model for some steps, so that no state is zero; return it and its optimizer."""
    model = build(case, dtype=dtype)
    named = list(model.named_parameters())
    # Only the decay of gains stored as their difference from 1 cannot be preserved.
    instance = make(optimizer, named, [n for n, p in named if case.startswith(OFFSET_GAINS) and p.dim() == 1])
    generator = torch.Generator().manual_seed(1)
    for _ in range(first_steps(optimizer)):
        random_loss(model, generator).backward()
        instance.step()
        model.zero_grad()
    return model, instance


def _group(named: list[tuple[str, torch.nn.Parameter]]) -> dict[str, Any]:
    return {"params": [parameter for _, parameter in named], "param_names": [name for name, _ in named]}


def save_training(directory: Path, case: str, optimizer: str, **options: Any) -> Path:
    """Save a model in the middle of training and its optimizer.pt; return the directory."""
    model, instance = trained(case, optimizer, **options)
    model.save_pretrained(directory)
    torch.save(instance.state_dict(), directory / "optimizer.pt")
    return directory


def save_state(directory: Path, kind: str) -> Path:
    """Save a model in the middle of training; `kind` is the format of its state: safetensors, torch or distributed."""
    model, optimizer = trained("Llama-tied", "adamw", dtype=torch.float32)
    model.save_pretrained(directory)
    if kind == "torch":
        torch.save(optimizer.state_dict(), directory / "optimizer.pt")
    elif kind == "distributed":
        state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
        dcp.save(state, checkpoint_id=directory / "optimizer", no_dist=True)
    else:
        flat = {
            f"state.{name}.{key}": value.clone()
            for name, parameter in model.named_parameters()
            for key, value in optimizer.state[parameter].items()
        }
        save_file(flat, directory / "optimizer.safetensors", metadata={"optimizer": "adamw"})
    return directory
