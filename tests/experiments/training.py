"""Training a task's model: narrow, widened by the product itself, or wide from scratch."""

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
from experiments.tasks import Task, initial_size, initialise
from mupscale_cli.optimizers.torch_groups import scaled_parameters
from mupscale_cli.tasks.options import WidenOptions

Schedule = Callable[[float], float]  # from the share of steps that are done to a factor of the learning rate
_WARMUP = 0.1
_OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def constant(_done: float) -> float:
    """No schedule: a checkpoint from the middle of a training run."""
    return 1.0


def decay(done: float) -> float:
    """Linearly to zero, which leaves less of the noise of batches in what is compared."""
    return 1 - done


def warm_up_and_decay(done: float) -> float:
    """What a model that starts at random needs in addition."""
    return min((done + 1e-3) / _WARMUP, 1.0) * decay(done)


@dataclass(frozen=True)
class Checkpoint:
    """A narrow model in the middle of its training.

    Attributes:
        task: what it is trained on.
        file: its weights; its optimizer's state and its config are beside it.
        lr: its learning rate.
        losses: of its steps.
    """

    task: Task
    file: Path
    lr: float
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """What came of training.

    Attributes:
        losses: of each step, on its batch.
        seen: loss on the fixed part of the training data, by how many steps were done.
        held_out: the same on data that no model is trained on.
    """

    losses: tuple[float, ...]
    seen: dict[int, float]
    held_out: dict[int, float]

    @property
    def last(self) -> float:
        return self.seen[max(self.seen)]


def loss_of(model: nn.Module, examples: Examples) -> Tensor:
    """Cross-entropy in nats."""
    return functional.cross_entropy(model(examples.inputs).flatten(0, -2), examples.targets.flatten())


@torch.no_grad()
def judge(model: nn.Module, examples: Examples) -> float:
    """The loss of a trained model, infinite where it has diverged."""
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
    judged: Iterable[int] = (),
) -> Curve:
    """Train for a number of steps.

    Args:
        model: what is trained.
        optimizer: whose groups have the learning rates that the schedule multiplies.
        batches: one a step.
        steps: how many.
        schedule: of the learning rate.
        data: on which it is judged.
        judged: after how many steps.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    losses: list[float] = []
    seen, held_out = {}, {}
    judged = set(judged)

    def look(done: int) -> None:
        if data is not None and done in judged:
            seen[done], held_out[done] = judge(model, data.seen), judge(model, data.held_out)

    look(0)
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
        look(step + 1)
    return Curve(tuple(losses), seen, held_out)


def plain_optimizer(task: Task, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """One learning rate for all tensors; matrices are decayed."""
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
    """The learning rates, eps and decay with which a widened model trains as the narrow one did."""
    groups = mupscale.param_groups(
        model, wide, lr=lr, weight_decay=task.weight_decay, optimizer=task.optimizer, **task.settings
    )
    return _OPTIMIZERS[task.optimizer](groups)


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load moments by the names of their parameters, and keep the optimizer's own settings."""
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
    task: Task, folder: Path, lr: float, dtype: torch.dtype = torch.float32, steps: int | None = None
) -> Checkpoint:
    """Train the narrow model and save it as a user would, with the optimizer's state beside it."""
    steps = task.narrow_steps if steps is None else steps
    model = initialise(task.build(1), 0).to(dtype)
    optimizer = plain_optimizer(task, model, lr)
    data = task.data().to(dtype)
    curve = train(model, optimizer, data.batches(task.batch_size, steps, seed=-1), steps)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "narrow.safetensors"
    # Of two names for a tied tensor the file has the one by which the optimizer knows it.
    save_file({name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}, file)
    torch.save(optimizer.state_dict(), file.with_suffix(".optimizer.pt"))
    if task.config is not None:
        file.with_suffix(".config.json").write_text(json.dumps(task.config))
    return Checkpoint(task, file, lr, curve.losses)


def widen(narrow: Checkpoint, factor: int, **options: Any) -> Path:
    """Widen a narrow checkpoint with the product; returns the wide file, which is made once."""
    method, perturbation = WidenOptions(**options).growth
    made = {**method.as_record(), **(perturbation.as_record() if perturbation else {})}
    words = [f"x{factor}", *(f"{value:.6g}" if isinstance(value, float) else str(value) for value in made.values())]
    wide = narrow.file.with_name("-".join(words) + ".safetensors")
    if not wide.exists():
        mupscale.widen(narrow.file, wide, factor, recipe=recipe(narrow.task), verify=False, **options)
    return wide


def recipe(task: Task) -> str | None:
    """The recipe to name; where there is a config it is found by its model type."""
    return None if task.config is not None else ("resnet18" if task.name == "resnet" else "mlp")


def load(task: Task, file: Path, factor: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model of a checkpoint."""
    model = task.build(factor).to(dtype)
    load_model(model, file)
    return model


def continued(narrow: Checkpoint, lr: float, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """The narrow model and its optimizer, to go on."""
    model = load(narrow.task, narrow.file, 1, dtype)
    optimizer = plain_optimizer(narrow.task, model, lr)
    load_state(optimizer, _state(narrow.file))
    return model, optimizer


def widened(
    narrow: Checkpoint, wide: Path, factor: int, lr: float, *, mapped: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Any]:
    """A widened model and its optimizer with the carried state.

    Args:
        narrow: the source.
        wide: what was made of it.
        factor: width over narrow width.
        lr: the narrow model's learning rate.
        mapped: with the hyperparameters that follow from widening; else one learning rate for all tensors.
        dtype: of the model.
    """
    model = load(narrow.task, wide, factor, dtype)
    optimizer = mapped_optimizer(narrow.task, model, wide, lr) if mapped else plain_optimizer(narrow.task, model, lr)
    state = wide.with_suffix(".optimizer.pt")
    if state.exists():
        load_state(optimizer, _state(wide))
    return model, optimizer


def _state(file: Path) -> dict[str, Any]:
    return torch.load(file.with_suffix(".optimizer.pt"), weights_only=True)


def from_scratch(
    narrow: Checkpoint, wide: Path, factor: int, lr: float, seed: int, *, mapped: bool = True
) -> tuple[nn.Module, Any]:
    """A wide model that begins at random, in maximal update parametrisation with the narrow model as its base.

    Args:
        narrow: the base, whose learning rate is a fair one.
        wide: a widened checkpoint of that width, whose record says how rates scale.
        factor: width over narrow width.
        lr: as at the base width.
        seed: of the initial weights.
        mapped: False for standard parametrisation: each matrix by its own fan-in, one learning rate.
    """
    task = narrow.task
    model = initialise(task.build(factor), seed)
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
    """Noise as standard parametrisation has it: of one size for a tensor, however wide it is.

    Args:
        model: the widened model.
        narrow: whose tensors' root mean squares say what a size means.
        size: relative to them.
        seed: of the noise.
    """
    reference = dict(load(narrow.task, narrow.file, 1).named_parameters())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                scale = size * reference[name].square().mean().sqrt()
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
