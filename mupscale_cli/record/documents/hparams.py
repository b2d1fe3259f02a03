"""Documents of `--json`: hyperparameters to continue training with."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from mupscale_cli.record.schema import NotRequired


class Narrow(TypedDict):
    """Hyperparameters of the narrow run."""

    lr: Annotated[float | None, "Learning rate; null if the optimizer computes its own."]
    weight_decay: Annotated[float, "Weight decay."]
    eps: Annotated[float | None, "eps; null if the optimizer has none."]
    betas: Annotated[list[float] | None, "Decay rates of the moments; null for the optimizer's defaults."]
    sources: Annotated[
        dict[str, Literal["option", "sweep", "state", "default"]],
        "Where each hyperparameter comes from; `state` is the optimizer state that was widened.",
    ]


class Group(TypedDict):
    """A parameter group."""

    tensors: Annotated[list[str], "Names of the parameters in the model."]
    pattern: Annotated[str, "Regular expression that matches exactly these parameters."]
    lr: Annotated[float | None, "Learning rate; null if the optimizer computes its own."]
    eps: Annotated[float | None, "eps; null if the optimizer has none."]
    weight_decay: Annotated[float, "Weight decay."]
    clip_weight: Annotated[float, "Factor of the squared norm in gradient clipping."]
    coefficient: Annotated[float | None, "Coefficient c; null if the tensors differ."]
    multiplicity: Annotated[int | None, "Multiplicity m; null if the tensors differ."]


class Swept(TypedDict):
    """The recommendation of a sweep."""

    lr: Annotated[float, "Learning rate."]
    noise: Annotated[float, "Size of the noise."]
    noise_mode: Annotated[str, "Mode of the noise: free, preserving or mixed."]
    noise_scale: Annotated[str, "What the size of the noise is relative to."]
    noise_on: Annotated[list[str], "Patterns of the names of tensors that get noise; empty for every matrix."]
    warnings: Annotated[list[str], "Reasons not to rely on the recommendation."]


class Hparams(TypedDict):
    """Hyperparameters to continue training with: `mupscale hparams`."""

    optimizer: Annotated[str, "Name of the optimizer."]
    narrow: Annotated[Narrow, "Hyperparameters of the narrow run."]
    decoupled_weight_decay: Annotated[bool, "Whether weight decay is decoupled instead of added to the gradient."]
    formulas: Annotated[dict[str, str], "Formula of each hyperparameter."]
    groups: Annotated[list[Group], "Parameter groups."]
    warnings: Annotated[list[str], "What the hyperparameters cannot reproduce exactly."]
    advice: Annotated[list[str], "Known benefits and risks for hyperparameter transfer."]
    sweep: NotRequired[Annotated[Swept, "Recommendation of the sweep; only with --from-sweep."]]
