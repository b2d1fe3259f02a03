"""Adam and its relatives, which divide an average of gradients by the root of an average of their squares. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.rules.powers import PER_GRADIENT, PER_SQUARE, Powers
from mupscale_cli.optimizers.rules.rule import LINEAR, QUADRATIC, SAME, STEP, WEIGHT, Entry, OptimizerRule

_MOMENTS: Mapping[str, Entry] = {"exp_avg": LINEAR, "exp_avg_sq": QUADRATIC}
_ADAM = {**_MOMENTS, "max_exp_avg_sq": QUADRATIC}
_SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
_AMSGRAD = {"max_exp_avg_sq": {"amsgrad": True}}
_TORCH_ADAM = frozenset({"betas", "eps", "amsgrad"})
_FUSED_ADAM = frozenset({"betas", "eps", "bias_correction"})  # apex and DeepSpeed
_MIXED_WITH_MUON = (frozenset({"betas", "eps", "use_muon"}), frozenset({"betas", "eps", "kind"}))


def _schedule_free(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Averages are weighted by a power of the learning rate, whose sum the groups keep."""
    power = settings.get("weight_lr_power", 2.0)
    return {"scaled": {"lr_max": Powers(c=1), "scheduled_lr": Powers(c=1), "weight_sum": Powers(c=power)}}


def _of_bitsandbytes(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """AdEMAMix has the same groups, with an `alpha` that is not 0."""
    if settings.get("alpha"):
        raise PlanError(
            "bitsandbytes' AdEMAMix keeps two averages in one tensor, which cannot be carried over",
            hint="omit the state with `--optimizer none`",
        )
    return {}


def _laprop(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The authors, whose groups have `amsgrad`, decay by `p -= wd p`; timm and pytorch_optimizer by `p -= lr wd p`."""
    if "amsgrad" in settings:
        return {}
    return {"decay": None, "exact": "mupscale_cli.optimizers.exact.adam.LaPropOfTimm"}


def _lamb(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse a LAMB that decays beside its step, or adds eps to norms as well."""
    if any(settings.get(key) for key in ("weight_decouple", "decoupled_decay")) or "rectify" in settings:
        raise PlanError(
            "this LAMB decays weights outside of its step or adds its eps to norms as well as to roots of squared "
            "gradients, so no multipliers are right for both",
            hint="omit the state with `--optimizer none`",
        )
    return {}


def _fused_lamb(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without weight decay, apex's LAMB takes the step of Adam."""
    return {**_lamb(settings), **({} if settings.get("weight_decay", 1.0) else {"lr": Powers(c=1)})}


RULES = (
    OptimizerRule(
        title="AdamW",
        aliases=("adamw_torch", "adamw_torch_fused"),  # names in the Trainer of transformers
        state=_ADAM,
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        decoupled=True,
        twin="adam",
        settings={**_SETTINGS, "amsgrad": False, "decoupled_weight_decay": True},
        implied=_AMSGRAD,
        marks=(_TORCH_ADAM, _FUSED_ADAM, frozenset({"betas", "eps", "correct_bias"}), *_MIXED_WITH_MUON),
        class_names={"torch": "torch.optim.AdamW", "torchtitan": "AdamW", "bsh": "MuAdamW"},
    ),
    OptimizerRule(
        title="Adam",
        state=_ADAM,
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        twin="adamw",
        settings={**_SETTINGS, "amsgrad": False, "decoupled_weight_decay": False},
        implied=_AMSGRAD,
        marks=(_TORCH_ADAM, _FUSED_ADAM),
        class_names={"torch": "torch.optim.Adam", "torchtitan": "Adam", "bsh": "MuAdam"},
    ),
    OptimizerRule(
        title="NAdam",
        state={**_MOMENTS, "mu_product": SAME},
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        settings={**_SETTINGS, "momentum_decay": 4e-3, "decoupled_weight_decay": False},
        initial={"mu_product": 1.0},
        marks=(frozenset({"momentum_decay"}),),
        class_names={"torch": "torch.optim.NAdam"},
    ),
    OptimizerRule(
        title="RAdam",
        state=_MOMENTS,
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        settings={**_SETTINGS, "decoupled_weight_decay": False},
        marks=(frozenset({"betas", "eps", "decoupled_weight_decay"}),),
        lacks=frozenset({"amsgrad", "momentum_decay"}),
        class_names={"torch": "torch.optim.RAdam"},
        caveats=("RAdam does not normalize its first five steps, so training is exact only from a state after them",),
    ),
    OptimizerRule(
        title="Adamax",
        state={"exp_avg": LINEAR, "exp_inf": LINEAR},
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        settings=_SETTINGS,
        marks=(frozenset({"betas", "eps", "exp_inf"}),),
        class_names={"torch": "torch.optim.Adamax"},
    ),
    OptimizerRule(
        title="ADOPT",
        state={"exp_avg": SAME, "exp_avg_sq": QUADRATIC},  # the average is of normalized gradients
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        settings={**_SETTINGS, "betas": (0.9, 0.9999), "eps": 1e-6, "decouple": False},
        marks=(frozenset({"betas", "eps", "decouple"}), frozenset({"betas", "eps", "clip_exp"})),  # the authors', timm
        exact="mupscale_cli.optimizers.exact.adam.Adopt",
    ),
    OptimizerRule(
        title="LaProp",
        # The averages are of normalized gradients times the learning rate, and of the learning rate itself.
        state={
            "exp_avg": STEP,
            "exp_avg_lr_1": STEP,
            "exp_avg_lr_2": SAME,
            "exp_avg_sq": QUADRATIC,
            "max_exp_avg_sq": QUADRATIC,
            "exp_mean_avg_beta2": LINEAR,
        },
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        decoupled=True,
        decay=Powers(),
        variant=_laprop,
        settings={**_SETTINGS, "lr": 4e-4, "eps": 1e-15, "weight_decay": 1e-4, "amsgrad": False, "centered": False},
        implied={**_AMSGRAD, "exp_mean_avg_beta2": {"centered": True}},
        marks=(frozenset({"betas", "eps", "exp_avg_lr_1"}), _TORCH_ADAM | {"centered"}),
        exact="mupscale_cli.optimizers.exact.adam.LaProp",
    ),
    OptimizerRule(
        title="LAMB",
        # Its step is as long as the weights times the learning rate, so it follows c by itself. The last three entries
        # record the latest step and are not read.
        state={**_MOMENTS, "weight_norm": SAME, "adam_norm": SAME, "trust_ratio": SAME},
        lr=Powers(),
        eps=PER_GRADIENT,
        decoupled=True,
        decay=Powers(c=-1),
        variant=_lamb,
        settings={**_SETTINGS, "eps": 1e-6},
        implied={"weight_norm": {}, "adam_norm": {}, "trust_ratio": {}},
        marks=(frozenset({"betas", "eps", "trust_ratio"}),),  # torch_optimizer
        exact="mupscale_cli.optimizers.exact.adam.Lamb",
        caveats=("LAMB is exact only where no norm of weights is clamped, as torch_optimizer does at 10",),
    ),
    OptimizerRule(
        title="FusedLAMB",
        state=_MOMENTS,
        lr=Powers(),
        eps=PER_GRADIENT,
        decoupled=True,
        decay=Powers(c=-1),
        variant=_fused_lamb,
        settings={
            **_SETTINGS,
            "eps": 1e-6,
            "weight_decay": 0.01,
            "bias_correction": True,
            "grad_averaging": True,
            "max_grad_norm": 0.0,
        },
        marks=(frozenset({"betas", "eps", "bias_correction", "grad_averaging", "max_grad_norm"}),),  # apex
        exact="mupscale_cli.optimizers.exact.adam.FusedLamb",
        caveats=(
            "FusedLAMB is exact only where no gradient is clipped (`max_grad_norm`), since it compares plain norms",
            "FusedLAMB is exact only without `use_nvlamb`, which its groups do not tell",
        ),
    ),
    OptimizerRule(
        title="AdEMAMix",
        state={"exp_avg_fast": LINEAR, "exp_avg_slow": LINEAR, "exp_avg_sq": QUADRATIC},
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        decoupled=True,
        settings={**_SETTINGS, "betas": (0.9, 0.999, 0.9999), "alpha": 2.0, "beta3_warmup": None, "alpha_warmup": None},
        implied={"exp_avg_fast": {}},
        marks=(frozenset({"betas", "eps", "alpha", "beta3_warmup"}),),
        exact="mupscale_cli.optimizers.exact.adam.AdEMAMix",
    ),
    OptimizerRule(
        title="ScheduleFreeAdamW",
        aliases=("schedule_free_adamw",),  # in the Trainer of transformers
        state={"z": WEIGHT, "exp_avg_sq": QUADRATIC, "exp_avg": LINEAR},
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        decoupled=True,
        variant=_schedule_free,
        settings={
            **_SETTINGS,
            "lr": 2.5e-3,
            "warmup_steps": 0,
            "r": 0.0,
            "weight_lr_power": 2.0,
            "k": 0,
            "weight_sum": 0.0,
            "lr_max": -1.0,
        },
        implied={"exp_avg": {"inner_momentum": 0.9}},
        marks=(frozenset({"betas", "eps", "weight_lr_power", "weight_sum"}),),
        exact="mupscale_cli.optimizers.exact.adam.ScheduleFreeAdamW",
    ),
    OptimizerRule(
        title="AdamEpsRoot",
        state=_MOMENTS,
        lr=Powers(c=1),
        eps=PER_SQUARE,  # it is added to a squared gradient, inside the root
        decoupled=True,
        settings={**_SETTINGS, "eps": 1e-12, "amsgrad": False},  # of the class that it may inherit from
        exact="mupscale_cli.optimizers.exact.adam.AdamEpsRoot",
    ),
    OptimizerRule(
        title="AdamW8bit",
        aliases=("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"),  # in the Trainer
        state={"state1": LINEAR, "state2": QUADRATIC},
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        decoupled=True,  # as in bitsandbytes' Adam
        variant=_of_bitsandbytes,
        settings={**_SETTINGS, "alpha": 0.0, "t_alpha": None, "t_beta3": None},
        marks=(frozenset({"betas", "eps", "t_alpha", "t_beta3"}), frozenset({"betas", "eps", "state1", "state2"})),
        lacks=frozenset({"unorm_vec"}),  # LAMB's
        class_names={"torch": "bitsandbytes.optim.AdamW8bit"},
        exact="mupscale_cli.optimizers.exact.adam.AdamW8bit",
        note="8-bit entries are written with 32 bits, which bitsandbytes reads too",
        caveats=(
            "bitsandbytes rounds a state of 8 bits after each step, and the wide one in other blocks or not at all",
        ),
    ),
    OptimizerRule(
        title="DecoupledAdamW",
        state=_ADAM,
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        decoupled=True,
        decay=Powers(),  # p -= wd lr / initial_lr p, and both rates are multiplied
        settings={**_SETTINGS, "betas": (0.9, 0.95), "weight_decay": 1e-5, "amsgrad": False},
        implied=_AMSGRAD,
        exact="mupscale_cli.optimizers.exact.adam.DecoupledAdamW",
    ),
)
