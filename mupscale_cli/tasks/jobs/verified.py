"""Tell whether a record has the verification that a step would make."""

from __future__ import annotations

from pathlib import Path

from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.record.changes import output_changed, source_changed
from mupscale_cli.record.reading import check_record, read_record
from mupscale_cli.tasks.jobs.steps import VerifyStep


def is_recorded(step: VerifyStep, output: Checkpoint) -> bool:
    """Return whether the record contains a successful verification with the options of this step."""
    verification = check_record(output.record, output.path)["verification"] if output.record else None
    if verification is None:
        return False
    is_same = verification.get("options") == step.options.as_record()
    return is_same and verification["agrees"] and not verification["skipped"]


def is_still_verified(step: VerifyStep) -> bool:
    """Return whether the record contains this verification and no file has changed since."""
    output = open_checkpoint(Path(step.wide))
    if not is_recorded(step, output):
        return False
    record = read_record(output)
    if output_changed(record, output):
        return False
    origin = record["source"]
    if step.options.narrow is not None:
        narrow = Path(step.options.narrow)
    elif "path" in origin:
        narrow = output.path.resolve().parent / origin["path"]
    else:
        return True  # a commit of the Hub
    return narrow.exists() and source_changed(record, open_checkpoint(narrow)) is None
