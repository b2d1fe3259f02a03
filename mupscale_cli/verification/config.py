"""Comparing config.json with the one that the plan makes of the source's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mupscale_cli.verification.content import content_differences
from mupscale_cli.verification.result import ConfigCheck


def check_config(planned: Mapping[str, Any] | None, stored: Mapping[str, Any] | None) -> ConfigCheck:
    """Compare every key of a config.

    Args:
        planned: the planned config; None if the source has none.
        stored: config.json of the wide checkpoint; None if it has none.
    """
    if planned is None or stored is None:
        missing = "config.json is missing" if stored is None else "the source has no config.json, but this model does"
        return ConfigCheck(0, () if planned is stored else (missing,))
    return ConfigCheck(_count_keys(planned), tuple(content_differences(planned, stored)))


def _count_keys(config: Any) -> int:
    inner = config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ()
    return sum(map(_count_keys, inner)) + (len(config) if isinstance(config, Mapping) else 0)
