"""Comparing the outputs of both models: a headless one copies its units."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mupscale_cli.plan import Plan
from mupscale_cli.plan.copies import FRESH, CopyMap
from mupscale_cli.verification.activations import written_scales
from mupscale_cli.verification.result import Comparison, compare
from mupscale_cli.verification.running import Outputs


def compare_outputs(before: Mapping[str, Tensor], after: Mapping[str, Tensor], plan: Plan) -> Iterator[Comparison]:
    """Compare the outputs of both models: logits are equal, and hidden states of a headless model are copies.

    So are the outputs that stand in one list with the main one, such as the feature maps of a backbone. Others are
    skipped if their shape depends on the width: hidden states are compared module by module, and a normalized vector
    has a different scale. Lists with an entry for each block are skipped if the blocks become more.
    """
    main = next(iter(before))
    lists = [Counter(map(_list_of, names)) for names in (before, after)]
    for position, (what, narrow) in enumerate(before.items()):
        is_main = position == 0 or what.startswith(f"{main} ")
        if not is_main and (lists[0][_list_of(what)] != lists[1][_list_of(what)] or not narrow.numel()):
            continue
        wide = after[what]
        if narrow.shape == wide.shape:
            yield _compare_equals(what, narrow, wide, is_main=is_main)
        elif is_main or _list_of(what) == _list_of(main):
            yield _compare_copies(what, narrow, wide, plan)


def _compare_equals(what: str, narrow: Tensor, wide: Tensor, *, is_main: bool) -> Comparison:
    """Compare outputs that do not depend on the width; further ones may hide with infinity what is not allowed."""
    note = "" if bool(narrow.any()) else " (all zero, so nothing is compared)"
    if is_main:
        return compare(f"{what}{note}", narrow, wide)
    is_hidden = narrow.isinf() & (narrow == wide)
    return compare(f"{what}{note}", narrow.masked_fill(is_hidden, 0), wide.masked_fill(is_hidden, 0))


def _compare_copies(what: str, narrow: Tensor, wide: Tensor, plan: Plan) -> Comparison:
    """Compare hidden states with copied units, which have the best of the forms that they can have."""
    sizes = zip(narrow.shape, wide.shape, strict=True)
    # Units are the last dimension of sequences, and the second one of convolutions.
    grown = next(dim for dim, (size, wide_size) in enumerate(sizes) if size != wide_size)
    old, new = narrow.movedim(grown, -1), wide.movedim(grown, -1)
    copies = max(1, new.shape[-1] // old.shape[-1])
    name = f"{what} (each unit {copies} times)"
    candidates = [compare(name, expected, new) for expected in _possible_copies(old, new, plan)]
    return min(candidates, key=lambda comparison: comparison.max_rel)


def _list_of(what: str) -> str:
    """Return the name of an output without its places in lists, which all entries of a list have in common."""
    return re.sub(r"\b\d+\b", "*", what)


def _possible_copies(narrow: Tensor, wide: Tensor, plan: Plan) -> Iterator[Tensor]:
    """Yield hidden states with copied units, once for each different growth of an axis of their size.

    The states may have the scale that all layers give that axis which write to it.
    """
    size, wide_size = narrow.shape[-1], wide.shape[-1]
    axes = [axis for axis in plan.axes if (axis.size, axis.wide_size) == (size, wide_size)]
    written = written_scales(plan)
    maps = dict.fromkeys((a.copy_map(), a.isometric, scale) for a in axes for scale in (1.0, written.get(a.name, 1.0)))
    for units, isometric, scale in maps or {(CopyMap(size, max(1, wide_size // size)), False, 1.0): None}:
        sources = torch.tensor(units.all_sources, device=narrow.device)
        places = (sources != FRESH).nonzero().flatten()
        counts = torch.tensor([len(copies) for copies in units.positions], device=narrow.device)
        unit = narrow / counts.to(narrow.dtype).sqrt() if isometric else narrow
        yield wide.to(narrow.dtype).index_copy(-1, places, scale * unit.index_select(-1, sources[places]))


def final_hidden(modules: list[Comparison], outputs: Outputs) -> tuple[Comparison, ...]:
    """Return the comparison of the last module before the readout, under a name of its own; empty if there is none."""
    logits = next(iter(outputs.logits.values()))
    inner = [c for c in modules if outputs.modules.outputs[c.what][0].shape != logits.shape]
    return (replace(inner[-1], what=f"final hidden states (`{inner[-1].what}`)"),) if inner else ()
