"""When growing pays, as far as it was measured: the figures of a plan, and what is known of such. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.text import count_text

RELIABLE_GROWTH = 2.0  # in parameters: arXiv 2605.13405 found this growth to speed up training most reliably
TOKENS_A_PARAMETER = 20  # the budget under which that study saw the largest gains
_STUDY = "arXiv 2605.13405"


@dataclass(frozen=True, slots=True)
class Guidance:
    """The figures of a growth.

    Attributes:
        parameters: before and after.
        flops: of a forward pass, for each token or position, before and after: two for each weight that multiplies.
        advice: what the literature says of such a growth.
    """

    parameters: tuple[int, int]
    flops: tuple[int, int]
    advice: tuple[str, ...]

    @property
    def growth(self) -> float:
        """Parameters after over before."""
        return self.parameters[1] / self.parameters[0] if self.parameters[0] else 1.0

    def as_record(self) -> dict[str, Any]:
        """The figures as `--json` shows them."""
        return {
            "parameters": self.growth,
            "flops_per_token": {"before": self.flops[0], "after": self.flops[1]},
            "advice": list(self.advice),
        }


def guidance(plan: Plan) -> Guidance:
    """What the literature says of a plan's growth, with its figures.

    FLOPs are 2 N for N weights that multiply each token's activations (Kaplan et al., arXiv 2001.08361, section
    2.1): tables in which rows are looked up do not count, attention's products over the context neither; all
    experts of a mixture count, and a kernel once, not at every position.
    """
    parameters = plan.num_parameters
    flops = (2 * sum(_multiplying(plan, wide=False)), 2 * sum(_multiplying(plan, wide=True)))
    growth = parameters[1] / parameters[0] if parameters[0] else 1.0
    advice = []
    if growth > RELIABLE_GROWTH:
        advice.append(
            f"about {RELIABLE_GROWTH:g} times the parameters is what speeds training up most reliably; beyond some "
            f"growth, training from scratch wins ({_STUDY})"
        )
        advice.append(
            f"two smaller growths with training between them are the alternative to this one of {growth:.3g} times; "
            f"single axes make smaller steps (`--axis ffn=2`)"
        )
    budget = TOKENS_A_PARAMETER * parameters[1]
    advice.append(
        f"gains were largest when training then sees fewer than {TOKENS_A_PARAMETER} tokens a parameter: here, fewer "
        f"than {count_text(budget)} tokens ({_STUDY})"
    )
    if plan.perturbation is None and plan.method.is_copying:
        advice.append("copies have equal gradients and never separate: add `--noise 0.1`, or use the new width later")
    return Guidance(parameters, flops, tuple(advice))


def _multiplying(plan: Plan, *, wide: bool) -> list[int]:
    """Elements of every tensor that multiplies activations; of a tied readout too, which is a table as well."""
    seen: dict[str, int] = {}
    for tensor in plan.tensors:
        spec = tensor.target if wide else tensor.source
        if len(spec.shape) > 1 and (not _is_table(tensor) or plan.tie in ("fold", "config")):
            seen[spec.name] = spec.num_elements
    return list(seen.values())


def _is_table(tensor: TensorPlan) -> bool:
    """Whether rows of it are looked up: nothing is summed over, and the rows are no axis."""
    strips = [strip for dim in tensor.dims for strip in dim.strips]
    is_summed = any(digit.contracted or digit.averaged for strip in strips for digit in strip.digits)
    return not is_summed and all(strip.multiplicity == 1 for strip in tensor.dims[0].strips)
