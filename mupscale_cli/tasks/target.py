"""Where an output goes: every path that it creates, replaces or removes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mupscale_cli.checkpoints.fates import DRAFT, RECORD
from mupscale_cli.checkpoints.json_files import is_file_name
from mupscale_cli.checkpoints.libraries import library_of
from mupscale_cli.checkpoints.target import check_output, existing_record
from mupscale_cli.errors import OutputError
from mupscale_cli.tasks.writing import Output


@dataclass(frozen=True)
class Target:
    """The final paths of an output.

    Attributes:
        path: the folder, or the weight file.
        weights: name of the weight file in the staged output; None for a folder.
        companions: names, in the staged output, of the files beside a weight file.
    """

    path: Path
    weights: str | None = None
    companions: tuple[str, ...] = ()

    def check(self, source: Path, inputs: Iterable[Path], *, needed_bytes: int | None, overwrite: bool) -> None:
        """Check that the output can be published.

        Args:
            source: path of the input checkpoint.
            inputs: every file that the run reads.
            needed_bytes: size of the output in bytes; None if it has been written.
            overwrite: whether an existing output may be replaced.

        Raises:
            OutputError: a path is taken, is an input, cannot be written, or does not fit on the disk.
        """
        check_output(
            self.path,
            source,
            needed_bytes=needed_bytes,
            overwrite=overwrite,
            companions=tuple(companion_path(self.path, name) for name in self.companions),
            replaced=self._replaced,
            inputs=inputs,
        )

    @property
    def parts(self) -> dict[str, str | None]:
        """Path in the staged output of each part, by final name; None removes a companion of the replaced output."""
        if self.weights is None:
            return {self.path.name: ""}
        removed = dict.fromkeys(path.name for path in self._replaced if path.exists())
        added = {companion_path(self.path, name).name: name for name in self.companions}
        return {self.path.name: self.weights, **removed, **added}

    @property
    def _replaced(self) -> dict[Path, bool]:
        """Companions that the record of an existing weight file names, and whether each is a directory."""
        record = existing_record(self.path) if self.weights is not None and self.path.is_file() else None
        return {} if record is None else companions_of(self.path, record)


def plan_target(path: Path, output: Output) -> Target:
    """Return the final paths of a planned output.

    Raises:
        OutputError: two files of the output would have the same name.
    """
    if not output.source.is_file:
        return Target(path)
    (shard,) = output.plan.shards
    config = _config_names(output)
    state = () if output.carried is None else (output.carried.name,)
    record = () if output.in_kind is None else (RECORD,)
    draft = () if output.plan.recipe.text is None else (DRAFT,)
    names = (shard.file, *config, *state, *record, *draft)
    if twice := [name for index, name in enumerate(names) if name in names[:index]]:
        raise OutputError(
            f"the optimizer state would be written as `{twice[0]}`, like another file of the output",
            hint="rename the state, for instance to `optimizer.pt`",
        )
    return Target(path, shard.file, names[1:])


def _config_names(output: Output) -> tuple[str, ...]:
    """Return the name of the file with the sizes of the model; nothing if they are in the weights' own file."""
    trained = output.source.trained
    if trained is not None and trained.sizes is not None:
        return () if trained.config_file is None else (trained.config_file.name,)
    return () if output.plan.config is None else (library_of(output.plan.config).config,)


def companions_of(file: Path, record: Mapping[str, Any]) -> dict[Path, bool]:
    """Return the companions of a weight file that its record names, and whether each is a directory."""
    others, state = record.get("others"), record.get("optimizer_state")
    names = dict.fromkeys(others, False) if isinstance(others, dict) else {}
    if file.suffix != ".safetensors":
        names[RECORD] = False
    if isinstance(state, dict) and state.get("file") is not None:
        names[state.get("file")] = state.get("format") == "distributed"
    return {companion_path(file, name): is_folder for name, is_folder in names.items() if is_file_name(name)}


def companion_path(target: Path, name: str) -> Path:
    """Return the path of a companion of a single-file output, such as `NAME.config.json`."""
    return target.with_name(f"{target.stem}.{name}")
