"""Optimizers of single elements that are not relatives of Adam. No torch."""

from __future__ import annotations

from mupscale_cli.optimizers.rules.powers import PER_GRADIENT, Powers
from mupscale_cli.optimizers.rules.rule import LINEAR, QUADRATIC, SAME, STEP, OptimizerRule

RULES = (
    OptimizerRule(
        title="SGD",
        state={"momentum_buffer": LINEAR},
        lr=Powers(c=2, m=1),
        settings={
            "lr": 1e-3,
            "momentum": 0.9,
            "dampening": 0,
            "weight_decay": 0.1,
            "nesterov": False,
            "maximize": False,
        },
        marks=(frozenset({"momentum", "dampening"}),),
        double="SGDW of torch_optimizer",
        alone=frozenset({"maximize", "foreach", "decoupled_weight_decay", "weight_decouple"}),
        class_names={"torch": "torch.optim.SGD"},
    ),
    OptimizerRule(
        title="Lion",
        state={"exp_avg": LINEAR},
        lr=Powers(c=1),
        decoupled=True,
        settings={"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.1},
        marks=(frozenset({"betas"}),),
        lacks=frozenset({"eps", "rho"}),
        exact="mupscale_cli.optimizers.exact.plain.Lion",
        advice=("the learning rate did not transfer with Lion (arXiv 2404.05728)",),
    ),
    OptimizerRule(
        title="Adagrad",
        state={"sum": QUADRATIC},
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        settings={"lr": 1e-2, "lr_decay": 0, "eps": 1e-10, "weight_decay": 0.1, "initial_accumulator_value": 0},
        marks=(frozenset({"lr_decay", "initial_accumulator_value"}),),
        class_names={"torch": "torch.optim.Adagrad"},
    ),
    OptimizerRule(
        title="RMSprop",
        # Its momentum averages gradients that are already normalized.
        state={"square_avg": QUADRATIC, "grad_avg": LINEAR, "momentum_buffer": SAME},
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        settings={"lr": 1e-3, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.1, "momentum": 0, "centered": False},
        implied={"grad_avg": {"centered": True}, "momentum_buffer": {"momentum": 0.9}},
        marks=(frozenset({"alpha", "centered"}),),
        class_names={"torch": "torch.optim.RMSprop"},
    ),
    OptimizerRule(
        title="Rprop",
        state={"prev": LINEAR, "step_size": STEP},  # only the signs of gradients count, and the steps have sizes
        lr=Powers(c=1),
        scaled={"step_sizes": Powers(c=1)},
        settings={"lr": 1e-3, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)},
        marks=(frozenset({"etas", "step_sizes"}),),
        class_names={"torch": "torch.optim.Rprop"},
    ),
    OptimizerRule(
        title="Sophia-G",
        state={"exp_avg": LINEAR, "hessian": QUADRATIC},
        lr=Powers(c=1),
        decoupled=True,
        scaled={"rho": Powers(c=1, m=1)},  # the first entry over rho times the second must stay
        settings={"lr": 1e-4, "betas": (0.965, 0.99), "rho": 0.04, "weight_decay": 0.1},
        marks=(frozenset({"betas", "rho"}),),
        exact="mupscale_cli.optimizers.exact.plain.SophiaG",
    ),
)
