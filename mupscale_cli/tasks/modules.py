"""The modules of a sentence-transformers model: plan and write them with its transformer. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mupscale_cli.checkpoints.modules import MODEL_CONFIG, WEIGHTS
from mupscale_cli.checkpoints.output_files import output_errors
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.plan import Plan
from mupscale_cli.plan.modules import plan_modules
from mupscale_cli.plan.types import Shard


def with_modules(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """Add the modules of a checkpoint, if it has any, to the plan of its transformer.

    Raises:
        MupscaleError: a module cannot be widened.
    """
    if not checkpoint.modules:
        return plan
    settings = checkpoint.read_side_files((MODEL_CONFIG,)).get(MODEL_CONFIG, {})
    return plan_modules(plan, checkpoint.modules, settings, MODEL_CONFIG)


def write_modules(
    plan: Plan, source: Checkpoint, directory: Path, progress: Callable[[int], None], *, allow_nonfinite: bool
) -> tuple[str, ...]:
    """Write the weights of every module that has some.

    Args:
        plan: the plan.
        source: the narrow checkpoint.
        directory: the staged output.
        progress: called with the bytes of tensor data just written.
        allow_nonfinite: whether to copy NaNs and infinities instead of refusing them.

    Returns:
        The names of the files.
    """
    if not plan.modules:
        return ()
    from mupscale_cli.engine.shards import write_shards

    for module in plan.modules:
        with output_errors(directory / module.folder):
            (directory / module.folder).mkdir(parents=True, exist_ok=True)
        write_shards(
            (Shard(WEIGHTS, module.tensors),),
            source.module_tensors[module.folder],
            directory / module.folder,
            metadata={"format": "pt"},
            progress=progress,
            allow_nonfinite=allow_nonfinite,
        )
    return tuple(f"{module.folder}/{WEIGHTS}" for module in plan.modules)
