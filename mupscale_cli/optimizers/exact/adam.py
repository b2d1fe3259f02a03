"""Relatives of Adam that torch lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mupscale_cli.optimizers.exact.base import ExactOptimizer, buffer, counted_step

_USUAL = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


class Adopt(ExactOptimizer):
    """ADOPT (Taniguchi et al., arXiv 2411.02853, algorithm 2), with the authors' clipping by the step's fourth root."""

    usual: ClassVar[Mapping[str, Any]] = {**_USUAL, "betas": (0.9, 0.9999), "eps": 1e-6, "decouple": False}

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        first, second = group["betas"]
        average, square = buffer(state, "exp_avg", parameter), buffer(state, "exp_avg_sq", parameter)
        step = counted_step(state) - 1
        if group["decouple"] and step:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        elif not group["decouple"]:
            gradient = gradient + group["weight_decay"] * parameter
        if not step:
            square.copy_(gradient.square())
            return
        limit = step**0.25
        average.lerp_((gradient / square.sqrt().clamp(min=group["eps"])).clamp(-limit, limit), 1 - first)
        parameter.sub_(group["lr"] * average)
        square.lerp_(gradient.square(), 1 - second)


class LaProp(ExactOptimizer):
    """LaProp (Ziyin et al., arXiv 2002.04839), as its authors implement it: with the learning rate in the average."""

    usual: ClassVar[Mapping[str, Any]] = {**_USUAL, "lr": 4e-4, "eps": 1e-15, "amsgrad": False, "centered": False}
    decays_with_rate = False

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        first, second = group["betas"]
        average, square = buffer(state, "exp_avg", parameter), buffer(state, "exp_avg_sq", parameter)
        step = counted_step(state)
        square.lerp_(gradient.square(), 1 - second)
        for key, beta, value in (("exp_avg_lr_1", first, group["lr"]), ("exp_avg_lr_2", second, 1.0)):
            state[key] = state.get(key, 0.0) * beta + (1 - beta) * value
        variance = square
        if group["centered"]:
            mean = buffer(state, "exp_mean_avg_beta2", parameter).lerp_(gradient, 1 - second)
            variance = square - mean.square() if step > 10 else square
        if group["amsgrad"]:
            variance = torch.maximum(buffer(state, "max_exp_avg_sq", parameter), variance)
            state["max_exp_avg_sq"].copy_(variance)
        denominator = (variance / state["exp_avg_lr_2"]).sqrt() + group["eps"]
        average.mul_(first).add_((1 - first) * group["lr"] * gradient / denominator)
        parameter.sub_(average * group["lr"] / state["exp_avg_lr_1"])
        parameter.mul_(1 - (group["lr"] if self.decays_with_rate else 1.0) * group["weight_decay"])


class LaPropOfTimm(LaProp):
    """LaProp as timm and pytorch_optimizer implement it: weights decay by a multiple of the learning rate."""

    decays_with_rate = True


class Lamb(ExactOptimizer):
    """LAMB (You et al., arXiv 1904.00962, algorithm 2) without bias correction and clamped norms."""

    usual: ClassVar[Mapping[str, Any]] = {**_USUAL, "eps": 1e-6}

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        first, second = group["betas"]
        average, square = buffer(state, "exp_avg", parameter), buffer(state, "exp_avg_sq", parameter)
        counted_step(state)
        average.lerp_(gradient, 1 - first)
        square.lerp_(gradient.square(), 1 - second)
        direction = average / (square.sqrt() + group["eps"]) + group["weight_decay"] * parameter
        state["weight_norm"], state["adam_norm"] = parameter.norm(), direction.norm()
        state["trust_ratio"] = state["weight_norm"] / state["adam_norm"]
        parameter.sub_(group["lr"] * state["trust_ratio"] * direction)


class FusedLamb(ExactOptimizer):
    """LAMB as NVIDIA's apex computes it: with bias correction, and with the step of Adam where nothing decays."""

    usual: ClassVar[Mapping[str, Any]] = {**_USUAL, "eps": 1e-6, "grad_averaging": True}

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        first, second = group["betas"]
        average, square = buffer(state, "exp_avg", parameter), buffer(state, "exp_avg_sq", parameter)
        step = counted_step(state)
        average.mul_(first).add_((1 - first if group["grad_averaging"] else 1.0) * gradient)
        square.lerp_(gradient.square(), 1 - second)
        corrected = average / (1 - first**step) / ((square / (1 - second**step)).sqrt() + group["eps"])
        direction = corrected + group["weight_decay"] * parameter
        ratio = parameter.norm() / direction.norm() if group["weight_decay"] else 1.0
        parameter.sub_(group["lr"] * ratio * direction)


class AdEMAMix(ExactOptimizer):
    """AdEMAMix (Pagliardini et al., arXiv 2409.03137, algorithm 1) without warm-ups."""

    usual: ClassVar[Mapping[str, Any]] = {**_USUAL, "betas": (0.9, 0.999, 0.9999), "alpha": 2.0}

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        first, second, third = group["betas"]
        step = counted_step(state)
        fast = buffer(state, "exp_avg_fast", parameter).lerp_(gradient, 1 - first)
        slow = buffer(state, "exp_avg_slow", parameter).lerp_(gradient, 1 - third)
        square = buffer(state, "exp_avg_sq", parameter).lerp_(gradient.square(), 1 - second)
        denominator = (square / (1 - second**step)).sqrt() + group["eps"]
        direction = (fast / (1 - first**step) + group["alpha"] * slow) / denominator
        parameter.sub_(group["lr"] * (direction + group["weight_decay"] * parameter))


class ScheduleFreeAdamW(ExactOptimizer):
    """Schedule-free AdamW (Defazio et al., arXiv 2405.15682), as its authors implement it, in training mode."""

    usual: ClassVar[Mapping[str, Any]] = {
        **_USUAL,
        "lr": 2.5e-3,
        "warmup_steps": 0,
        "r": 0.0,
        "weight_lr_power": 2.0,
        "k": 0,
        "weight_sum": 0.0,
        "lr_max": -1.0,
    }

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        first, second = group["betas"]
        lr, _, weight, total = self._weights(group)
        z = state.setdefault("z", parameter.clone())
        square = buffer(state, "exp_avg_sq", parameter).lerp_(gradient.square(), 1 - second)
        denominator = (square / (1 - second ** (group["k"] + 1))).sqrt() + group["eps"]
        direction = gradient / denominator + group["weight_decay"] * parameter
        share = weight / total if total else 0.0
        parameter.lerp_(z, share).add_(direction, alpha=lr * (first * (1 - share) - 1))
        z.sub_(lr * direction)

    @staticmethod
    def _weights(group: Mapping[str, Any]) -> tuple[float, float, float, float]:
        """Return the learning rate, its maximum, the weight of the step in the average and the sum of the weights."""
        step = group["k"] + 1
        lr = group["lr"] * (step / group["warmup_steps"] if step <= group["warmup_steps"] else 1.0)
        largest = max(lr, group["lr_max"])
        weight = step ** group["r"] * largest ** group["weight_lr_power"]
        return lr, largest, weight, group["weight_sum"] + weight

    def finish(self, group: dict[str, Any]) -> None:
        _, group["lr_max"], _, group["weight_sum"] = self._weights(group)
        group["k"] += 1


class AdamEpsRoot(ExactOptimizer):
    """AdamW that adds eps inside the root, to the second moment, as optax's `eps_root` does."""

    usual: ClassVar[Mapping[str, Any]] = {**_USUAL, "eps": 1e-12}

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        first, second = group["betas"]
        step = counted_step(state)
        average = buffer(state, "exp_avg", parameter).lerp_(gradient, 1 - first)
        square = buffer(state, "exp_avg_sq", parameter).lerp_(gradient.square(), 1 - second)
        denominator = (square / (1 - second**step) + group["eps"]).sqrt()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(group["lr"] * average / (1 - first**step) / denominator)


class DecoupledAdamW(ExactOptimizer):
    """AdamW whose decay follows the schedule and not the learning rate, as composer implements it."""

    usual: ClassVar[Mapping[str, Any]] = {**_USUAL, "betas": (0.9, 0.95), "amsgrad": False, "initial_lr": None}

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        first, second = group["betas"]
        step = counted_step(state)
        average = buffer(state, "exp_avg", parameter).lerp_(gradient, 1 - first)
        variance = buffer(state, "exp_avg_sq", parameter).lerp_(gradient.square(), 1 - second)
        if group["amsgrad"]:
            variance = torch.maximum(buffer(state, "max_exp_avg_sq", parameter), variance)
            state["max_exp_avg_sq"].copy_(variance)
        scheduled = group["lr"] / group["initial_lr"] if group["initial_lr"] else 1.0
        parameter.mul_(1 - scheduled * group["weight_decay"])
        denominator = (variance / (1 - second**step)).sqrt() + group["eps"]
        parameter.sub_(group["lr"] * average / (1 - first**step) / denominator)


class AdamW8bit(ExactOptimizer):
    """The AdamW of bitsandbytes, with a state that is not rounded to 8 bits."""

    usual: ClassVar[Mapping[str, Any]] = {**_USUAL, "alpha": 0.0, "t_alpha": None, "t_beta3": None}

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        first, second = group["betas"]
        step = counted_step(state)
        average = buffer(state, "state1", parameter).lerp_(gradient, 1 - first)
        square = buffer(state, "state2", parameter).lerp_(gradient.square(), 1 - second)
        denominator = (square / (1 - second**step)).sqrt() + group["eps"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(group["lr"] * average / (1 - first**step) / denominator)
