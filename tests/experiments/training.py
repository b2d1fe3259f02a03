"""Train a task's model: narrow, widened with mupscale, or wide from scratch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_file
from torch import Tensor, nn
from torch.nn import functional

import mupscale_cli as mupscale
from experiments.data import Data, Examples
from experiments.muon import MuonBesideAdamW, mapped_groups, plain_groups
from experiments.tasks import Task, initial_size, initialize
from mupscale_cli.optimizers.torch_groups import scaled_parameters
from mupscale_cli.tasks.options import WidenOptions

Schedule = Callable[[float], float]  # maps the fraction of finished steps to a factor of the learning rate
WARMUP = 0.1
_OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def constant(_done: float) -> float:
    """Keep the learning rate, as in the middle of a training run."""
    return 1.0


def decay(done: float) -> float:
    """Decay linearly to zero, which reduces the noise of batches in the final loss."""
    return 1 - done


def warm_up_and_decay(done: float) -> float:
    """Warm up first, as a model with random weights needs, and then decay."""
    return min((done + 1e-3) / WARMUP, 1.0) * decay(done)


@dataclass(frozen=True)
class Checkpoint:
    """A narrow model in the middle of its training.

    Attributes:
        task: its task.
        file: its weights; its optimizer state and its config are next to this file.
        lr: its learning rate.
        losses: the loss of each step.
    """

    task: Task
    file: Path
    lr: float
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """Losses during training.

    Attributes:
        losses: the loss of each step on its batch.
        seen: the loss on the fixed part of the training data, by the number of finished steps.
        held_out: the loss on held-out data, by the number of finished steps.
    """

    losses: tuple[float, ...]
    seen: dict[int, float]
    held_out: dict[int, float]

    @property
    def last(self) -> float:
        return self.seen[max(self.seen)]


def loss_of(model: nn.Module, examples: Examples) -> Tensor:
    """Return the cross-entropy in nats."""
    return functional.cross_entropy(model(examples.inputs).flatten(0, -2), examples.targets.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples) -> float:
    """Return the loss of a trained model, infinity if it has diverged."""
    model.eval()
    loss = float(loss_of(model, examples))
    model.train()
    return loss if math.isfinite(loss) else math.inf


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Examples],
    steps: int,
    schedule: Schedule = constant,
    data: Data | None = None,
    evaluated: Iterable[int] = (),
) -> Curve:
    """Train for a number of steps.

    Args:
        model: the model.
        optimizer: its optimizer; the schedule multiplies the learning rates of its groups.
        batches: one batch per step.
        steps: number of steps.
        schedule: the learning rate schedule.
        data: the data to evaluate on.
        evaluated: the numbers of finished steps at which to evaluate.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    losses: list[float] = []
    seen, held_out = {}, {}
    evaluated = set(evaluated)

    def evaluate_after(done: int) -> None:
        if data is not None and done in evaluated:
            seen[done], held_out[done] = evaluate(model, data.seen), evaluate(model, data.held_out)

    evaluate_after(0)
    for step, batch in enumerate(batches):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step / steps)
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            seen[steps] = held_out[steps] = math.inf
            break
        evaluate_after(step + 1)
    return Curve(tuple(losses), seen, held_out)


def plain_optimizer(task: Task, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Create an optimizer with one learning rate for all tensors and weight decay on matrices."""
    if task.optimizer == "muon":
        return MuonBesideAdamW(list(plain_groups(model, task.weight_decay)), lr=lr)
    named = list(model.named_parameters())
    groups = [
        {"params": [p for _, p in members], "param_names": [n for n, _ in members], "weight_decay": weight_decay}
        for members, weight_decay in (
            ([(n, p) for n, p in named if p.dim() > 1], task.weight_decay),
            ([(n, p) for n, p in named if p.dim() <= 1], 0.0),
        )
    ]
    return _OPTIMIZERS[task.optimizer](groups, lr=lr, **task.settings)


def mapped_optimizer(task: Task, model: nn.Module, wide: Path, lr: float) -> torch.optim.Optimizer:
    """Create an optimizer with the mapped hyperparameters, under which a widened model trains like the narrow one."""
    if task.optimizer == "muon":
        return MuonBesideAdamW(mapped_groups(model, wide, lr, task.weight_decay))
    groups = mupscale.param_groups(
        model, wide, lr=lr, weight_decay=task.weight_decay, optimizer=task.optimizer, **task.settings
    )
    return _OPTIMIZERS[task.optimizer](groups)


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load moments by parameter name, and keep the optimizer's settings."""
    moments = {
        name: state["state"][number]
        for group in state["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
        if number in state["state"]
    }
    groups = optimizer.state_dict()
    numbers = {
        name: number
        for group in groups["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    optimizer.load_state_dict({**groups, "state": {numbers[name]: entry for name, entry in moments.items()}})


def train_narrow(
    task: Task, folder: Path, lr: float, dtype: torch.dtype = torch.float32, steps: int | None = None, seed: int = 0
) -> Checkpoint:
    """Train the narrow model and save it next to its optimizer's state; `seed` draws its weights and batches."""
    steps = task.narrow_steps if steps is None else steps
    model = initialize(task.build(1), seed).to(dtype)
    optimizer = plain_optimizer(task, model, lr)
    data = task.data().to(dtype)
    curve = train(model, optimizer, data.batches(task.batch_size, steps, seed=-1 - seed), steps)
    return Checkpoint(task, save_narrow(task, folder, model, optimizer), lr, curve.losses)


def save_narrow(task: Task, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Write a model with its optimizer's state and its config, and return the file of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "narrow.safetensors"
    stored = model.state_dict()
    # A tied tensor is stored under the name that the optimizer uses.
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers()) if name in stored]
    save_file({name: stored[name] for name in names}, file)
    torch.save(optimizer.state_dict(), file.with_suffix(".optimizer.pt"))
    if task.config is not None:
        file.with_suffix(".config.json").write_text(json.dumps(task.config))
    return file


def widen(narrow: Checkpoint, factor: int, **options: Any) -> Path:
    """Widen a narrow checkpoint with mupscale, unless that was done before, and return the wide file."""
    method, perturbation = WidenOptions(**options).growth
    record = {**method.as_record(), **(perturbation.as_record() if perturbation else {})}
    record.pop("on", None)  # noise is on every matrix here
    words = [f"x{factor}", *(f"{value:.6g}" if isinstance(value, float) else str(value) for value in record.values())]
    wide = narrow.file.with_name("-".join(words) + ".safetensors")
    if not wide.exists():
        mupscale.widen(narrow.file, wide, factor, recipe=narrow.task.recipe, verify=False, **options)
    return wide


def load(task: Task, file: Path, factor: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load the model of a checkpoint."""
    model = task.build(factor).to(dtype)
    load_model(model, file)
    return model


def continued(narrow: Checkpoint, lr: float, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """Load the narrow model and its optimizer, to continue training."""
    model = load(narrow.task, narrow.file, 1, dtype)
    optimizer = plain_optimizer(narrow.task, model, lr)
    resume_state(optimizer, narrow.file)
    return model, optimizer


def widened(
    narrow: Checkpoint, wide: Path, factor: int, lr: float, *, mapped: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Any]:
    """Load a widened model and its optimizer with the carried state.

    Args:
        narrow: the narrow checkpoint.
        wide: the widened checkpoint.
        factor: width over narrow width.
        lr: the narrow model's learning rate.
        mapped: use the mapped hyperparameters instead of one learning rate for all tensors.
        dtype: the dtype of the model.
    """
    model = load(narrow.task, wide, factor, dtype)
    optimizer = mapped_optimizer(narrow.task, model, wide, lr) if mapped else plain_optimizer(narrow.task, model, lr)
    resume_state(optimizer, wide)
    return model, optimizer


def resume_state(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Load the moments next to a checkpoint, if there are any."""
    state = file.with_suffix(".optimizer.pt")
    if state.exists():
        load_state(optimizer, torch.load(state, weights_only=True))


def from_scratch(
    narrow: Checkpoint, wide: Path, factor: int, lr: float, seed: int, *, mapped: bool = True
) -> tuple[nn.Module, Any]:
    """Create a wide model with random weights, in maximal update parametrization with the narrow model as its base.

    Args:
        narrow: the base.
        wide: a widened checkpoint of the same width; its record determines how learning rates scale.
        factor: width over narrow width.
        lr: the learning rate at the base width.
        seed: random seed for the weights.
        mapped: False for standard parametrization: every matrix by its own fan-in, and one learning rate.
    """
    task = narrow.task
    model = initialize(task.build(factor), seed)
    if not mapped:
        return model, plain_optimizer(task, model, lr)
    scaled = scaled_parameters(model, wide)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            c, m = scaled[name].parts[0]  # fused tensors have equal parts here
            if parameter.dim() == 1:
                parameter.mul_(c)
                continue
            before, after = scaled[name].shape, scaled[name].wide_shape
            widest = max(wide / narrow for wide, narrow in zip(after, before, strict=True))
            # A random matrix has the spectral norm of a widened one, which is c sqrt(m) that of the narrow one.
            wanted = initial_size(name, torch.Size(before)) * c * math.sqrt(m / widest)
            parameter.mul_(wanted / initial_size(name, parameter.shape))
    return model, mapped_optimizer(task, model, wide, lr)


def add_absolute_noise(model: nn.Module, narrow: Checkpoint, size: float, seed: int) -> None:
    """Add noise as in standard parametrization: its size does not depend on the width.

    Args:
        model: the widened model.
        narrow: the narrow model; the root mean square of each tensor is the unit of size.
        size: the standard deviation of the noise in these units.
        seed: random seed for the noise.
    """
    reference = dict(load(narrow.task, narrow.file, 1).named_parameters())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                scale = size * reference[name].square().mean().sqrt()
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
