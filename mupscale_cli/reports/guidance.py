"""Advise on a plan's growth: its parameters and FLOPs, and published measurements of when growing pays. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mupscale_cli.plan import Plan
from mupscale_cli.plan.dims import DimMap
from mupscale_cli.plan.types import Embeddings
from mupscale_cli.text import count_text, listed

RELIABLE_GROWTH = 2.0  # of parameters: arXiv 2605.13405 found that this growth speeds up training most reliably
TOKENS_PER_PARAMETER = 20  # below this budget, that study found the largest gains
_STUDY = "arXiv 2605.13405"


@dataclass(frozen=True, slots=True)
class Guidance:
    """Figures of a growth, and advice.

    Attributes:
        parameters: number of parameters before and after.
        flops: FLOPs of a forward pass per token or position, before and after.
        advice: advice from the literature, one line each.
    """

    parameters: tuple[int, int]
    flops: tuple[int, int]
    advice: tuple[str, ...]

    @property
    def growth(self) -> float:
        """Number of parameters after over before."""
        return self.parameters[1] / self.parameters[0] if self.parameters[0] else 1.0

    def as_record(self) -> dict[str, Any]:
        """Return the figures as `--json` prints them."""
        return {
            "parameters": self.growth,
            "flops_per_token": {"before": self.flops[0], "after": self.flops[1]},
            "advice": list(self.advice),
        }


def guidance(plan: Plan) -> Guidance:
    """Compute the figures of a plan's growth and advise on it.

    FLOPs are 2 N for N weights that multiply each token's activations (Kaplan et al., arXiv 2001.08361, section
    2.1). Embedding tables and attention's products over the context do not count. All experts of a mixture count,
    and a convolution's kernel counts once, not at every position.
    """
    parameters = plan.num_parameters
    flops = _flops(plan)
    growth = parameters[1] / parameters[0] if parameters[0] else 1.0
    advice = []
    if growth > RELIABLE_GROWTH:
        advice.append(
            f"growing to about {RELIABLE_GROWTH:g} times the parameters speeds up training most reliably; beyond some "
            f"growth, training from scratch wins ({_STUDY})"
        )
        advice.append(
            f"instead of growing {growth:.3g} times at once, grow twice and train in between; widening single axes "
            "makes smaller steps (`--axis ffn=2`)"
        )
    budget = TOKENS_PER_PARAMETER * parameters[1]
    advice.append(
        f"gains were largest if training then takes fewer than {TOKENS_PER_PARAMETER} tokens per parameter: here, "
        f"fewer than {count_text(budget)} tokens ({_STUDY})"
    )
    if plan.stays_symmetric:
        advice.append(f"{idle_reason(plan)}: add `--noise 0.1`, or use the new width later")
    return Guidance(parameters, flops, tuple(advice))


def coverage_notes(missing: Sequence[str], unused: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for what a comparison of two models could not compare.

    Args:
        missing: parameters of the reference class that the checkpoint lacks.
        unused: tensors of the checkpoint that the reference class ignores.
    """
    if missing:
        yield f"the checkpoint lacks {listed(missing, 3)}; outputs that depend on them are left out"
    if unused:
        yield f"the reference class ignores {listed(unused, 3)}, which no output shows; they follow their rules"


def idle_reason(plan: Plan) -> str:
    """Return why the new width of a plan that `stays_symmetric` is not used."""
    if any(axis.factor > 1 or axis.extra for axis in plan.axes):
        return "copies have equal gradients and stay equal until something tells them apart"
    return "fresh units at zero have no gradients and stay zero until something moves them"


def embeddings_text(embeddings: Embeddings) -> str:
    """Return how the embeddings of texts change, and the similarities between them."""
    dot = "" if embeddings.dot == 1 else f", their dot products are {embeddings.dot:.6g} times the old ones"
    return f"{embeddings.size} -> {embeddings.wide_size} dimensions; their cosine similarities stay{dot}"


def _flops(plan: Plan) -> tuple[int, int]:
    """Return the FLOPs per token before and after, with those of a readout tied to the embedding table."""
    sizes: tuple[dict[str, int], dict[str, int]] = ({}, {})
    is_table: dict[int, bool] = {}  # by the identity of the dimensions, which equal tensors of different layers share
    for tensor in plan.tensors:
        if len(tensor.source.shape) < 2:
            continue
        dims = id(tensor.dims)
        if dims not in is_table:
            is_table[dims] = _is_table(tensor.dims)
        if not is_table[dims] or plan.tie in ("fold", "config"):
            for spec, seen in zip((tensor.source, tensor.target), sizes, strict=True):
                seen[spec.name] = spec.num_elements
    return 2 * sum(sizes[0].values()), 2 * sum(sizes[1].values())


def _is_table(dims: Sequence[DimMap]) -> bool:
    """Return whether a tensor is a lookup table: the layer sums over none of its axes, and its rows never grow."""
    strips = [strip for dim in dims for strip in dim.strips]
    is_summed = any(digit.contracted or digit.averaged for strip in strips for digit in strip.digits)
    return not is_summed and all(strip.multiplicity == 1 for strip in dims[0].strips)
