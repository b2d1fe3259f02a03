"""Planning a widening: Recipe x tensor specs x request -> Plan. Does not import torch or read data."""

from mupscale_cli.plan.make import make_plan
from mupscale_cli.plan.request import IDENTITY, Amount, Request, Size
from mupscale_cli.plan.shards import DEFAULT_SHARD_BYTES, split_into_shards
from mupscale_cli.plan.types import ConfigChange, Plan, Shard, TensorPlan, with_noise

__all__ = [
    "DEFAULT_SHARD_BYTES",
    "IDENTITY",
    "Amount",
    "ConfigChange",
    "Plan",
    "Request",
    "Shard",
    "Size",
    "TensorPlan",
    "make_plan",
    "split_into_shards",
    "with_noise",
]
