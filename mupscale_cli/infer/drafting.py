"""Draft a recipe for a config whose model type has none, and keep it in the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mupscale_cli import __version__
from mupscale_cli.architecture.loading import read_draft
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.lock import release, try_lock
from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.tiny_configs import equal_widths, is_small_constant

CACHE = "MUPSCALE_CACHE"
_UNRELATED = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})  # to the architecture
_LOCK_SECONDS = 600.0  # that a process waits while another one drafts the same recipe
_log = logging.getLogger(__name__)


def draft_for(config: Mapping[str, Any]) -> Recipe | None:
    """Return a drafted recipe for a config: the one in the cache, or else a new one.

    Processes that need the same draft wait for the first of them.

    Args:
        config: the content of config.json.

    Returns:
        The recipe; None if transformers is not installed or does not have the model type.

    Raises:
        MupscaleError: the model cannot be built, or no axis can be widened exactly.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    from mupscale_cli.verification.transformers import import_transformers

    transformers = import_transformers()
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        return None
    file = cache_folder() / "recipes" / f"{model_type}-{_fingerprint(config, transformers.__version__)}.yaml"
    with _alone(file):
        found = _read(file, model_type)
        if found is None:
            found = read_draft(_draft(model_type, config, file), model_type)
        else:
            _log.info("recipe drafted earlier: %s", file)
    return found


def cache_folder() -> Path:
    """Return the folder of what can be computed again: `MUPSCALE_CACHE`, or the platform's folder for caches."""
    if own := os.environ.get(CACHE):
        return Path(own)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mupscale"


def _fingerprint(config: Mapping[str, Any], version: str) -> str:
    """Hash what a draft depends on: versions of both programs, what is no size in the config, and equal widths."""
    content = json.dumps([__version__, version, _flags(config), equal_widths(config)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _flags(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without its sizes, also without those of its sections."""
    return {
        key: _flags(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _UNRELATED
        and (
            isinstance(value, (bool, str, float, list, Mapping))
            or value in (0, 1, None)
            or is_small_constant(key, value)
        )
    }


def _draft(model_type: str, config: Mapping[str, Any], file: Path) -> str:
    """Draft a recipe, and keep its text in the cache if that can be written."""
    from mupscale_cli.infer.infer import infer  # imports torch
    from mupscale_cli.infer.tiny import task_of

    _log.warning("no recipe for the model type `%s`: drafting one by experiment (10 s to 2 min)", model_type)
    began = time.monotonic()
    task = task_of(model_type, config.get("architectures"))
    drafted = infer(model_type, task, flags=config, note=lambda text: _log.info("%s", text))
    try:
        _write(file, drafted.text)
        where = f"kept in {file}"
    except OSError as error:
        where = f"not kept: cannot write {file}: {error.strerror or error}"
    seconds = time.monotonic() - began
    _log.warning(
        "drafted a recipe for `%s` in %.0f s, exact to %.0e on tiny models; %s",
        *(model_type, seconds, drafted.worst, where),
    )
    return drafted.text


def _read(file: Path, name: str) -> Recipe | None:
    """Read a draft from the cache; None if it is absent, damaged or truncated."""
    try:
        digest, _, text = file.read_text(encoding="utf-8").partition("\n")
        return read_draft(text, name) if digest == _digest_line(text) else None
    except (OSError, UnicodeDecodeError, MupscaleError):
        return None


def _write(file: Path, text: str) -> None:
    """Write a draft as a whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=".", suffix=".partial", dir=file.parent)
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            stream.write(f"{_digest_line(text)}\n{text}")
        Path(partial).replace(file)
    finally:
        Path(partial).unlink(missing_ok=True)


def _digest_line(text: str) -> str:
    return f"# SHA-256 of the lines below: {hashlib.sha256(text.encode()).hexdigest()}"


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let one process at a time into the context for a file, if its folder can be written."""
    lock = None
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = try_lock(file.with_suffix(".lock"), _LOCK_SECONDS)
    try:
        yield
    finally:
        if lock is not None:
            release(lock)
