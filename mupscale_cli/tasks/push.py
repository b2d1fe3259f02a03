"""Publish a widened checkpoint on the Hub with its model card, as `mupscale push` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mupscale_cli.checkpoints.fates import ADAPTER_CONFIG, RECORD
from mupscale_cli.checkpoints.hub.ids import HubId, parse_hub_id
from mupscale_cli.checkpoints.hub.publishing import (
    LocalFile,
    Published,
    Repository,
    Status,
    create_repository,
    file_statuses,
    publish,
    read_repository,
)
from mupscale_cli.checkpoints.hub.reading import read_card
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.checkpoints.listing import require_own_file
from mupscale_cli.checkpoints.reading import Checkpoint, open_checkpoint
from mupscale_cli.errors import CheckpointError, HubError, UnreachableError
from mupscale_cli.files import read_bytes, read_errors
from mupscale_cli.optimizers.finding import state_names
from mupscale_cli.record.reading import read_record
from mupscale_cli.tasks.card import card_section
from mupscale_cli.tasks.hub_card import CardFacts, inherited_facts, make_card

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record

CARD = "README.md"


@dataclass(frozen=True)
class PushOptions:
    """Options of a push.

    Attributes:
        private: create the repository as private if it does not exist.
        revision: the branch to push to; created if it does not exist.
        create_pr: propose the commit as a pull request.
        commit_message: title and description of the commit.
        with_optimizer: also publish the optimizer state and other files needed to resume training.
    """

    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    with_optimizer: bool = False


@dataclass(frozen=True)
class Push:
    """A prepared push.

    Attributes:
        wide: the checkpoint to publish.
        repository: the current state of the repository.
        files: the files to publish, including the card.
        card: the text of the card.
        warnings: warnings for the user.
        options: the options of the push.
    """

    wide: Path
    repository: Repository
    files: tuple[LocalFile, ...]
    card: str
    warnings: tuple[str, ...]
    options: PushOptions

    def statuses(self) -> dict[str, Status]:
        """Return what the push does to each file."""
        return file_statuses(self.files, self.repository)

    def send(self) -> Published:
        """Publish the files in one commit.

        Raises:
            HubError: the Hub refuses the commit, or the connection breaks; calling `send` again continues the upload.
        """
        message = self.options.commit_message or f"Upload {self.repository.id.name}, widened by mupscale"
        repository = create_repository(self.repository, private=self.options.private)
        return publish(self.files, repository, message=message, create_pr=self.options.create_pr)


def push_target(text: str, options: PushOptions) -> HubId:
    """Parse the repository and branch to publish to.

    Raises:
        HubError: the name is invalid, or the options contradict each other.
    """
    model = parse_hub_id(text)
    if model is None:
        raise HubError(f"`{text}` is not the name of a model on the Hub", hint="write ORG/NAME")
    if model.revision and options.revision and model.revision != options.revision:
        raise HubError(f"`{text}` and `--revision {options.revision}` name different branches")
    revision = options.revision or model.revision
    if options.create_pr and revision not in (None, "main"):
        raise HubError(
            f"`--create-pr` proposes a change to main, not to `{revision}`",
            hint="omit one of them; `--revision refs/pr/N` adds to the pull request N",
        )
    return HubId(model.repo, revision)


def prepare_push(
    wide: str | Path, target: str, options: PushOptions = PushOptions(), *, is_dry_run: bool = False
) -> Push:
    """Prepare a push: compare the checkpoint with the repository and write the card. Send nothing.

    Args:
        wide: path of a checkpoint written by mupscale.
        target: `ORG/NAME` of the repository.
        options: options of the push.
        is_dry_run: whether nothing will be sent, so that a Hub that does not answer is only a warning.

    Raises:
        CheckpointError: mupscale did not write the checkpoint, or its last verification failed.
        HubError: the Hub does not answer, or refuses access.
    """
    model = push_target(target, options)
    checkpoint = open_checkpoint(Path(wide))
    record = _publishable_record(checkpoint)
    repository, unknown = _read_repository(model, is_dry_run=is_dry_run)
    warnings = list(_warnings(record, repository, options, is_file=checkpoint.is_file))
    warnings += unknown
    files = push_files(checkpoint, record, model.repo, with_optimizer=options.with_optimizer)
    existing = _existing_card(checkpoint, repository)
    inherited, problem = _source_facts(checkpoint, record)
    if problem:
        warnings.append(problem)
    source = record["source"]
    facts = CardFacts(
        base_model=None if "path" in source else source["repo"],
        library=checkpoint.library.name if checkpoint.library.key in (checkpoint.config or {}) else None,
        inherited=inherited,
    )
    card = make_card(existing, card_section(record, model.name), facts, model.name)
    content = card.encode()
    everything = (*files, LocalFile(CARD, content, len(content)))
    return Push(Path(wide), repository, everything, card, tuple(warnings), options)


def _read_repository(model: HubId, *, is_dry_run: bool) -> tuple[Repository, list[str]]:
    """Return the state of the repository, and a warning if it is unknown."""
    try:
        return read_repository(model), []
    except UnreachableError as error:
        if not is_dry_run:
            raise
        warning = f"{error.message}: whether it exists, what it contains and whether you may write to it is unknown"
        return Repository(model, is_known=False), [warning]


def _publishable_record(checkpoint: Checkpoint) -> Record:
    record = read_record(checkpoint, hint="`hf upload` publishes any folder")
    if record["verification"] and not record["verification"]["agrees"]:
        raise CheckpointError(
            f"`{checkpoint.path}` differs from its source according to its last verification",
            hint="`mupscale verify` shows where they differ",
        )
    return record


def _warnings(record: Record, repository: Repository, options: PushOptions, *, is_file: bool) -> list[str]:
    warnings = []
    if not record["verification"]:
        warnings.append("this model is not verified, and its card says so; run `mupscale verify` first")
    if options.private and repository.is_private is False:
        warnings.append(f"`{repository.id.repo}` already exists and is public; `--private` does not change that")
    if is_file and (path := record["source"].get("path", "")) != published_record(record)["source"].get("path", ""):
        warnings.append(f"the metadata of the safetensors file contain the path of its source, `{path}`")
    if options.with_optimizer and not record["optimizer_state"]:
        warnings.append("`--with-optimizer` has no effect: no optimizer state was widened with this model")
    return warnings


def push_files(checkpoint: Checkpoint, record: Record, repo: str, *, with_optimizer: bool) -> tuple[LocalFile, ...]:
    """Return the files of a checkpoint to publish, with their names on the Hub.

    Args:
        checkpoint: a checkpoint written by mupscale.
        record: its mupscale.json.
        repo: repository on the Hub, which the configs of adapters name as their base model.
        with_optimizer: include the optimizer state and other files needed to resume training.

    Raises:
        CheckpointError: a file is a link to a place outside of the checkpoint.
    """
    state = record["optimizer_state"]
    if state and state["file"] is None and not with_optimizer:
        raise CheckpointError(
            f"the optimizer's state is in the same file as the weights of `{checkpoint.path}`",
            hint="publish both with `--with-optimizer`, or widen again with `--optimizer none`",
        )
    local = _single_file_files(checkpoint) if checkpoint.is_file else _directory_files(checkpoint)
    state_files = state_names(local, state["file"]) if state and state["file"] else ()
    model_files = _model_files(checkpoint, record)
    published = {
        name: path for name, path in local.items() if (with_optimizer if name in state_files else name in model_files)
    }
    for path in published.values():
        if path not in checkpoint.files:
            require_own_file(path, checkpoint.path.parent if checkpoint.is_file else checkpoint.path)
    files = {name: LocalFile(name, path, path.stat().st_size) for name, path in sorted(published.items())}
    public = published_record(record)
    rewritten: dict[str, Mapping[str, Any]] = {RECORD: public} if checkpoint.is_file or public != record else {}
    for folder in record["adapters"]:
        name = (PurePosixPath(folder) / ADAPTER_CONFIG).as_posix()
        if name in published:
            rewritten[name] = {**read_json(published[name]), "base_model_name_or_path": repo}
    for name, value in rewritten.items():
        content = (json.dumps(value, indent=2) + "\n").encode()
        files.pop(name, None)
        files[name] = LocalFile(name, content, len(content))
    return tuple(files.values())


def published_record(record: Record) -> Record:
    """Return a record without the folders of source and recipe, which are private and meaningless elsewhere."""
    result, source, recipe = record.copy(), record["source"], record["recipe"]
    if "path" in source:
        result["source"] = {**source, "path": _file_name(source["path"])}
    adapters = record["adapters"].items()
    result["adapters"] = {
        folder: {**adapter, "source": {**adapter["source"], "path": _file_name(adapter["source"]["path"])}}
        for folder, adapter in adapters
    }
    if "file" in recipe:
        result["recipe"] = {**recipe, "file": _file_name(recipe["file"])}
    return result


def _file_name(path: str) -> str:
    """Return the last part of a path, with separators of any system."""
    return PurePosixPath(path.replace("\\", "/")).name


def _directory_files(checkpoint: Checkpoint) -> dict[str, Path]:
    folder = checkpoint.path
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def _single_file_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Return a single file and its companions by their names on the Hub: `NAME.config.json` becomes `config.json`."""
    file = checkpoint.path
    companions = {path.name.removeprefix(f"{file.stem}."): path for path in file.parent.glob(f"{file.stem}.*")}
    companions.pop(file.suffix.removeprefix("."), None)
    return {_single_name(checkpoint): file, **{name: path for name, path in companions.items() if path.is_file()}}


def _single_name(checkpoint: Checkpoint) -> str:
    """Return the name of a single file on the Hub: the one that its library reads, or a trainer's own."""
    return checkpoint.library.weights[0] if checkpoint.trained is None else checkpoint.path.name


def _model_files(checkpoint: Checkpoint, record: Record) -> set[str]:
    """Return the names of the files that mupscale wrote or that are read when the model is loaded."""
    library = checkpoint.library
    if checkpoint.is_file:
        return {_single_name(checkpoint), library.config}
    names = {file.name for file in checkpoint.plan_files() if file.fate != "left behind"}
    return {RECORD, *names, *record["others"]} - ({library.index} if len(checkpoint.files) == 1 else set())


def _existing_card(checkpoint: Checkpoint, repository: Repository) -> str | None:
    """Return the card next to the weights or, if there is none, the card of the repository."""
    local = checkpoint.path / CARD
    if not checkpoint.is_file and local.is_file():
        return _read_card(local)
    if CARD not in repository.files:
        return None
    return read_card(HubId(repository.id.repo, repository.commit))


def _source_facts(checkpoint: Checkpoint, record: Record) -> tuple[dict[str, Any], str | None]:
    """Return license and task from the source's card, and a warning if the card cannot be read."""
    source = record["source"]
    if "repo" in source:
        try:
            return inherited_facts(read_card(HubId(source["repo"], source["revision"]))), None
        except HubError as error:
            return {}, f"cannot read the card of the source, so no license is inherited: {error.message}"
    narrow = checkpoint.path.resolve().parent / source["path"]
    card = (narrow if narrow.is_dir() else narrow.parent) / CARD
    return inherited_facts(_read_card(card) if card.is_file() else None), None


def _read_card(file: Path) -> str:
    with read_errors(file):
        return read_bytes(file).decode("utf-8", errors="replace")
