"""Documents of `--json`: what explains a tensor."""

from __future__ import annotations

from typing import Annotated, TypedDict

from mupscale_cli.record.schema import NotRequired
from mupscale_cli.record.types import Count, Shape


class Item(TypedDict):
    """An axis or a fixed size within a dimension."""

    what: Annotated[str, "Name of the axis, or the size."]
    size: Annotated[Count | None, "Size in the narrow model."]
    factor: Annotated[Count | None, "Number of copies."]
    words: Annotated[str, "Description."]


class Formula(TypedDict):
    """A factor as a formula and a value."""

    formula: Annotated[str, "Formula in c, m and axis factors."]
    value: Annotated[float | None, "Value; null if the axis factors are unknown."]


class Consequence(TypedDict):
    """Factors of the hyperparameters for some optimizers."""

    optimizers: Annotated[list[str], "Optimizers with these factors."]
    lr: Annotated[Formula, "Factor of the learning rate."]
    eps: NotRequired[Annotated[Formula, "Factor of eps; absent if the optimizer has none."]]
    weight_decay: NotRequired[Annotated[Formula, "Factor of the weight decay; absent if the optimizer has none."]]


class ExplainedPart(TypedDict):
    """A part of a tensor with one coefficient and multiplicity."""

    coefficient: Annotated[Formula, "Coefficient c: the factor that each copy is multiplied by."]
    multiplicity: Annotated[Formula, "Multiplicity m: the number of copies of each element."]
    hyperparameters: Annotated[list[Consequence], "Factors of the hyperparameters in training."]


class ExplainedTensor(TypedDict):
    """An explanation of one kind of tensor."""

    names: Annotated[list[str], "Tensors of this kind, or the pattern of a rule."]
    rule: Annotated[str, "Pattern of the rule for these tensors."]
    layout: Annotated[str, "Layout of the dimensions; keep or omit."]
    when: Annotated[str | None, "Condition of the layout; null if it has none."]
    dtype: Annotated[str | None, "Data type; null without a checkpoint."]
    shape: Annotated[Shape | None, "Narrow shape; null without a checkpoint."]
    wide_shape: Annotated[Shape | None, "Wide shape; null without a checkpoint."]
    dims: Annotated[list[Annotated[list[Item], "Axes and sizes of a dimension."]], "The dimensions."]
    factors: Annotated[dict[str, int] | None, "Factors of the axes; null if they are unknown."]
    parts: Annotated[list[ExplainedPart], "Parts with one coefficient and multiplicity each."]
    remarks: Annotated[list[str], "Further remarks."]


class Explain(TypedDict):
    """An explanation of tensors: `--tensor NAME`."""

    recipe: Annotated[str, "Name of the recipe."]
    tensors: Annotated[list[ExplainedTensor], "Tensors that match NAME."]
