"""The hyperparameters of the narrow run: recorded from its optimizer state, and chosen for the wide run. No torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.groups import WideGroup
from mupscale_cli.optimizers.hyperparameters import Settings, name_pattern
from mupscale_cli.optimizers.recorded import scaled_tensors
from mupscale_cli.optimizers.rules.table import optimizer_rule
from mupscale_cli.text import listed

if TYPE_CHECKING:
    from mupscale_cli.record.types import NarrowGroup, Record

_FIELDS = ("optimizer", "lr", "weight_decay", "eps", "betas", "decoupled", "decay")


def recorded_groups(groups: Sequence[WideGroup]) -> list[dict[str, Any]]:
    """Return the record's entries for the narrow groups that some wide groups come from; equal ones are one entry."""
    merged: dict[str, tuple[WideGroup, list[str]]] = {}
    for group in groups:
        settings = {key: value for key, value in group.narrow.items() if _is_plain(value)}
        entry = json.dumps([group.optimizer, group.decoupled, settings], sort_keys=True)
        merged.setdefault(entry, (group, []))[1].extend(group.names)
    every = [name for group in groups for name in group.names]
    return [
        {
            "optimizer": group.optimizer,
            "decoupled_weight_decay": group.decoupled,
            "settings": {key: value for key, value in group.narrow.items() if _is_plain(value)},
            "parameters": name_pattern(names, every),
        }
        for group, names in merged.values()
    ]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))


def optimizers_of(record: Record) -> tuple[str, ...]:
    """Return the optimizers whose state was widened, in alphabetical order."""
    state = record["optimizer_state"]
    return () if state is None else tuple(sorted({group["optimizer"] for group in state.get("groups", [])}))


def choose_settings(
    record: Record, options: Mapping[str, Any], swept: Mapping[str, Any], *, adapter: bool = False
) -> Settings:
    """Choose the narrow run's hyperparameters: from the options, else a sweep, else the state, else the defaults.

    Args:
        record: the record of the widening, which names the groups of the state that was widened.
        options: fields of `Settings` that the user gives.
        swept: fields that a sweep found.
        adapter: whether an adapter is trained, which the state does not belong to.

    Raises:
        PlanError: nothing tells the learning rate, or which of the state's optimizers is meant.
    """
    state = None if adapter else record["optimizer_state"]
    groups = state.get("groups", []) if state is not None else []
    kinds = () if adapter else optimizers_of(record)
    named = options.get("optimizer") or swept.get("optimizer")
    if named is None and len(kinds) > 1:
        raise PlanError(
            f"the state that was widened is that of several optimizers: {listed(kinds)}",
            hint=f"print the hyperparameters of one of them, `--optimizer {kinds[0]}`; or the lines that continue with "
            "all of them, `--format loop`",
        )
    rule = optimizer_rule(named or next(iter(kinds), Settings.optimizer))
    fields = [field for field in _FIELDS if field != "eps" or rule.eps is not None]  # a pair of eps is no eps
    found = _shared_settings([group for group in groups if group["optimizer"] == rule.name], record, fields)
    sources = {
        "option": options,
        "sweep": swept,
        "state": {field: values[0] for field, values in found.items() if field in fields and len(values) == 1},
    }
    origins = {
        field: next((origin for origin, values in sources.items() if field in values), "default") for field in _FIELDS
    }
    further = {key: values[0] for key, values in found.items() if key not in fields and len(values) == 1}
    if origins["lr"] == "default" and rule.with_settings({**rule.settings, **further}).has_rate:
        rates = [f"{rate:g}" for rate in found.get("lr", ())]
        several = f": the groups of the state have several ({listed(rates)})" if rates else ""
        raise PlanError(
            f"the learning rate of the narrow run is missing{several}",
            hint="add `--lr RATE`, or `--from-sweep sweep.json` with the result of `mupscale sweep`",
        )
    chosen = {field: sources[origin][field] for field, origin in origins.items() if origin != "default"}
    default = {"eps": rule.settings["eps"]} if isinstance(rule.settings.get("eps"), float) else {}
    return Settings(**{"lr": None, **default, **chosen}, further=further, sources=origins)


def _shared_settings(groups: Sequence[NarrowGroup], record: Record, fields: Sequence[str]) -> dict[str, list[Any]]:
    """Return the different values of each field of the settings in some groups."""
    decayed = [group for group in groups if group["settings"].get("weight_decay")]
    found: dict[str, list[Any]] = {
        "optimizer": [group["optimizer"] for group in groups],
        "decoupled": [group["decoupled_weight_decay"] for group in groups],
        # A schedule changes `lr` and multiplies `initial_lr`.
        "lr": [group["settings"].get("initial_lr", group["settings"].get("lr")) for group in groups],
        "eps": [_as_set(group["settings"].get("eps")) for group in groups],
        "betas": [tuple(group["settings"].get("betas") or ()) or None for group in groups],
        "weight_decay": [group["settings"].get("weight_decay") for group in decayed or groups],
    }
    if decayed:
        pattern = re.compile("|".join(group["parameters"] for group in decayed))
        names = (tensor.name for tensor in scaled_tensors(record))
        found["decay"] = [frozenset(name for name in names if pattern.search(name))]
    usual = optimizer_rule(groups[0]["optimizer"]).settings if groups else {}
    said = {*found, *fields, "decoupled_weight_decay"}
    found |= {key: [_as_set(group["settings"].get(key)) for group in groups] for key in usual if key not in said}
    distinct = {
        field: [value for n, value in enumerate(values) if value not in values[:n]] for field, values in found.items()
    }
    return {field: values for field, values in distinct.items() if None not in values}


def _as_set(value: Any) -> Any:
    """Return a setting as optimizers have it: JSON has lists in place of tuples."""
    return tuple(value) if isinstance(value, list) else value
