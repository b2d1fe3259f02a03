"""Reading the config of the model whose sizes a widening takes."""

from __future__ import annotations

from pathlib import Path

from mupscale_cli.checkpoints.hub.ids import parse_hub_id
from mupscale_cli.checkpoints.hub.reading import read_config
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.libraries import CONFIGS
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.goal import Goal


def read_goal(name: str | Path) -> Goal:
    """Read the config of a target; its weights are not read.

    Args:
        name: a config.json, a model directory or file, or a Hub id.

    Raises:
        PlanError: there is no config.
        MupscaleError: the config or the model on the Hub cannot be read.
    """
    path = Path(name)
    if file := next((path / config for config in CONFIGS if (path / config).is_file()), None):
        return Goal(str(name), read_json(file))
    if path.suffix == ".json" and path.is_file():
        return Goal(str(name), read_json(path))
    hub = None if path.exists() else parse_hub_id(str(name))
    config = read_config(hub) if hub else open_checkpoint(path).config if path.is_file() else None
    if config is None:
        raise PlanError(
            f"no config.json at `{name}`",
            hint="`--to` takes a config.json, a model directory, or a model on the Hub (org/name)",
        )
    return Goal(str(name), config)


def goal_stem(name: str | Path) -> str:
    """Return the name of a target as a part of an output's name."""
    path = Path(name)
    hub = None if path.exists() else parse_hub_id(str(name))
    if hub is not None:
        return hub.name
    path = path.resolve().parent if path.name in CONFIGS else path.resolve()
    return path.stem if path.is_file() else path.name
