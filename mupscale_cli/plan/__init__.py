"""Planning a widening: Recipe x tensor specs x factors -> Plan. Does not import torch or read data."""

from mupscale_cli.plan.factors import resolve_factors
from mupscale_cli.plan.make import make_plan
from mupscale_cli.plan.shards import DEFAULT_SHARD_BYTES, split_into_shards
from mupscale_cli.plan.types import ConfigChange, Plan, Shard, TensorPlan, with_noise

__all__ = [
    "DEFAULT_SHARD_BYTES",
    "ConfigChange",
    "Plan",
    "Shard",
    "TensorPlan",
    "make_plan",
    "resolve_factors",
    "split_into_shards",
    "with_noise",
]
