"""Documents of `--json`: sweeps and coordinate checks."""

from __future__ import annotations

from typing import Annotated, TypedDict

from mupscale_cli.record.schema import limits
from mupscale_cli.record.types import Count, Figure, Growth, Seed


class SweptState(TypedDict):
    """The optimizer state that every trial starts from."""

    path: Annotated[str, "auto, none or a path."]
    policy: Annotated[str, "How the moments of copies are initialized."]


class SweptTraining(TypedDict):
    """Settings of the built-in trainer."""

    steps: Annotated[Count, "Number of optimizer steps."]
    batch_size: Annotated[Count, "Sequences per step."]
    length: Annotated[Count, "Tokens per sequence."]
    weight_decay: Annotated[float, "Decoupled weight decay of matrices."]
    betas: Annotated[list[float], "Decay rates of the moments.", limits(minItems=2, maxItems=2)]
    eps: Annotated[float, "eps of the optimizer."]
    clip: Annotated[float, "Maximum norm of the gradient; 0 disables clipping."]
    schedule: Annotated[str, "Schedule of the learning rate: constant or cosine."]
    warmup: Annotated[Count, "Steps of linear warm-up."]
    optimizer: Annotated[str, "Name of the optimizer."]


class SweptProxy(Growth):
    """The proxy of a sweep, and how the checkpoint follows from it."""

    ratio: Annotated[int, "Width of the checkpoint over that of the proxy.", limits(minimum=1)]
    steps: Annotated[Count, "Number of steps that the proxy was trained for."]


class Settings(TypedDict):
    """The settings shared by all trials of a sweep."""

    checkpoint: Annotated[str, "Path or id of the checkpoint to widen."]
    axes: Annotated[dict[str, int], "Factors of single axes."]
    recipe: Annotated[str | None, "Requested recipe; null for the default."]
    reading: Annotated[list[str], "Options that say how to read the checkpoint: --set, --layout, --weights-key."]
    tie: Annotated[str | None, "Requested treatment of a tied readout; null for the default."]
    optimizer_state: Annotated[SweptState, "Optimizer state that every trial starts from."]
    noise_mode: Annotated[str, "Mode of the noise: free, preserving or mixed."]
    noise_scale: Annotated[str, "What the size of the noise is relative to."]
    noise_on: Annotated[list[str], "Patterns of the names of tensors that get noise; empty for every matrix."]
    training: Annotated[SweptTraining | None, "Settings of the built-in trainer; null with a user-defined command."]
    data: Annotated[str | None, "Training data; null with a user-defined command."]
    command: Annotated[str | None, "User-defined training command; null for the built-in trainer."]


class Grid(TypedDict):
    """The grid of a sweep."""

    factors: Annotated[list[int], "Factors of the width."]
    lrs: Annotated[list[float], "Learning rates."]
    noises: Annotated[list[float], "Sizes of noise."]
    seeds: Annotated[list[Seed], "Random seeds of noise and batches."]


class SweepTrial(TypedDict):
    """A finished trial of a sweep."""

    factor: Annotated[int, "Factor of the width."]
    noise: Annotated[float, "Size of the noise."]
    lr: Annotated[float, "Learning rate."]
    seed: Annotated[Seed, "Random seed of noise and batches."]
    loss: Annotated[float | None, "Final loss; null if the trial diverged."]
    diverged: Annotated[bool, "Whether the trial diverged."]


class Cell(TypedDict):
    """A point of a sweep's grid, over all seeds."""

    factor: Annotated[int, "Factor of the width."]
    noise: Annotated[float, "Size of the noise."]
    lr: Annotated[float, "Learning rate."]
    loss: Annotated[float | None, "Mean loss over the seeds; null if a trial diverged."]
    spread: Annotated[float, "Half of the range over the seeds."]
    num_seeds: Annotated[Count, "Number of trials."]
    num_diverged: Annotated[Count, "Number of diverged trials."]


class Recommendation(TypedDict):
    """The recommendation of a sweep."""

    lr: Annotated[float, "Learning rate.", limits(minimum=0)]
    noise: Annotated[float, "Size of the noise.", limits(minimum=0)]
    noise_mode: Annotated[str, "Mode of the noise: free, preserving or mixed."]
    noise_scale: Annotated[str, "What the size of the noise is relative to."]
    noise_on: Annotated[list[str], "Patterns of the names of tensors that get noise; empty for every matrix."]
    target: Annotated[int | None, "Requested factor of the width; null if there is none."]
    lr_shift: Annotated[Count, "Grid steps between the best learning rates of the widths."]
    noise_shift: Annotated[Count, "Grid steps between the best noise sizes of the widths."]
    warnings: Annotated[list[str], "Reasons not to rely on the recommendation."]


class TrialCost(TypedDict):
    """Operations of a trained model."""

    factor: Annotated[int, "Width over that of the narrow model."]
    flops_per_token: Annotated[int, "FLOPs of a forward pass per token."]


class SweepCost(TypedDict):
    """What a sweep costs. FLOPs are those of a forward pass per token."""

    target: Annotated[int, "FLOPs of the large model."]
    trials: Annotated[list[TrialCost], "FLOPs of the trained models."]
    proxy: Annotated[int | None, "FLOPs of the proxy; null without one."]
    saved: Annotated[float, "How many times cheaper a trial is than one at the target, on average."]
    total: Annotated[
        float | None,
        "All trials and the training of the proxy, in trials at the target; null with a user-defined command.",
    ]


class Sweep(Settings):
    """Output of `mupscale sweep`; also the content of sweep.json."""

    complete: Annotated[bool, "Whether all trials are finished."]
    cost: Annotated[SweepCost, "What the sweep costs, compared with tuning at the target."]
    grid: Annotated[Grid, "The grid."]
    trials: Annotated[list[SweepTrial], "Finished trials."]
    cells: Annotated[list[Cell], "Results over all seeds."]
    optima: Annotated[list[Cell], "Best cell of each width."]
    recommendation: Annotated[Recommendation | None, "Recommended settings; null if every trial diverged."]
    proxy: Annotated[SweptProxy | None, "The proxy, and how the checkpoint follows from it; null without a proxy."]


class CheckedLayer(TypedDict):
    """Activations of a layer in a coordinate check."""

    name: Annotated[str, "Name of the module."]
    stable: Annotated[bool | None, "Whether its change does not depend on the width; null if noise hides it."]
    slope: Annotated[
        Figure | None, "Exponent of the width with which the change at the last step grows; null if nothing changes."
    ]
    expected: Annotated[list[Figure], "Mean absolute activation before training without noise, by width."]
    sizes: Annotated[list[list[Figure]], "Mean absolute activation, by step and width."]
    changes: Annotated[
        list[list[Figure]], "Mean absolute change since step 0, relative to `expected`, by step and width."
    ]


class Coordcheck(TypedDict):
    """Output of `mupscale coordcheck`."""

    checkpoint: Annotated[str, "Path of the checkpoint."]
    agrees: Annotated[bool | None, "Whether all layers are stable; null if noise hides it."]
    factors: Annotated[list[int], "Widths over that of the checkpoint."]
    steps: Annotated[Count, "Number of optimizer steps."]
    lr: Annotated[float, "Learning rate of the narrow run."]
    noise: Annotated[float, "Size of the noise."]
    seeds: Annotated[list[int], "Random seeds."]
    uncertainty: Annotated[Figure, "How far any slope may be from the true exponent."]
    layers: Annotated[list[CheckedLayer], "All layers, in the order in which they run."]
    picture: Annotated[str | None, "File of the picture; null if none was drawn."]
