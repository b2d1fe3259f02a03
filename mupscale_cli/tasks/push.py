"""What `mupscale push` does, as functions: which files, which card, compare, publish."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.formats.safetensors import INDEX, WEIGHTS
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
from mupscale_cli.checkpoints.reading import RECORD, Checkpoint, open_checkpoint, require_own_file
from mupscale_cli.errors import CheckpointError, HubError
from mupscale_cli.optimizers.finding import state_names
from mupscale_cli.record.reading import read_record
from mupscale_cli.tasks.card import card_section
from mupscale_cli.tasks.hub_card import CardFacts, inherited_facts, make_card

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record

CARD = "README.md"


@dataclass(frozen=True)
class PushOptions:
    """How to publish.

    Attributes:
        private: make a new repository private.
        revision: the branch; made if it is not there.
        create_pr: propose the commit as a pull request.
        commit_message: its title, and what follows it.
        with_optimizer: publish the optimizer's state and what resuming needs.
    """

    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    with_optimizer: bool = False


@dataclass(frozen=True)
class Push:
    """A push that is prepared; nothing was sent.

    Attributes:
        wide: the checkpoint.
        repository: as it is.
        files: that it is to have, the card among them.
        card: the text of the card.
        warnings: what to know before.
        options: how to publish.
    """

    wide: Path
    repository: Repository
    files: tuple[LocalFile, ...]
    card: str
    warnings: tuple[str, ...]
    options: PushOptions

    def statuses(self) -> dict[str, Status]:
        """What it would do to each file."""
        return file_statuses(self.files, self.repository)

    def send(self) -> Published:
        """Do it.

        Raises:
            HubError: the Hub refuses it, or the connection broke; the same again goes on from there.
        """
        message = self.options.commit_message or f"Upload {self.repository.id.name}, widened by mupscale"
        repository = create_repository(self.repository, private=self.options.private)
        return publish(self.files, repository, message=message, create_pr=self.options.create_pr)


def push_target(text: str, options: PushOptions) -> HubId:
    """The repository to publish to.

    Raises:
        HubError: the name is none, or the options contradict one another.
    """
    model = parse_hub_id(text)
    if model is None:
        raise HubError(f"`{text}` is not the name of a model on the Hub", hint="write ORG/NAME")
    if model.revision and options.revision and model.revision != options.revision:
        raise HubError(f"`{text}` and `--revision {options.revision}` name two branches")
    revision = options.revision or model.revision
    if options.create_pr and revision not in (None, "main"):
        raise HubError(
            f"`--create-pr` proposes a change of main, not of `{revision}`",
            hint="leave out one of them; `--revision refs/pr/N` adds to the pull request N",
        )
    return HubId(model.repo, revision)


def prepare_push(wide: str | Path, target: str, options: PushOptions = PushOptions()) -> Push:
    """Decide what a push would publish; asks the Hub what it has, sends nothing.

    Args:
        wide: a checkpoint that mupscale wrote, here.
        target: `ORG/NAME`.
        options: how to publish.

    Raises:
        CheckpointError: mupscale did not write it, or it is known to differ from its source.
        HubError: the Hub cannot be asked.
    """
    model = push_target(target, options)
    checkpoint = open_checkpoint(Path(wide))
    record = _own_record(checkpoint)
    repository = read_repository(model)
    warnings = list(_warnings(record, repository, options, is_file=checkpoint.is_file))
    files = push_files(checkpoint, record, with_optimizer=options.with_optimizer)
    existing = _existing_card(checkpoint, repository)
    inherited, problem = _source_facts(checkpoint, record)
    if problem:
        warnings.append(problem)
    source = record["source"]
    facts = CardFacts(
        base_model=None if "path" in source else source["repo"],
        library="transformers" if (checkpoint.config or {}).get("model_type") else None,
        inherited=inherited,
    )
    card = make_card(existing, card_section(record, model.name), facts, model.name)
    content = card.encode()
    everything = (*files, LocalFile(CARD, content, len(content)))
    return Push(Path(wide), repository, everything, card, tuple(warnings), options)


def _own_record(checkpoint: Checkpoint) -> Record:
    record = read_record(checkpoint, hint="`hf upload` publishes any folder")
    if record["verification"] and not record["verification"]["agrees"]:
        raise CheckpointError(
            f"the last verification of `{checkpoint.path}` found that it differs from its source",
            hint="`mupscale verify` shows where; a model that is not what its card says is not published",
        )
    return record


def _warnings(record: Record, repository: Repository, options: PushOptions, *, is_file: bool) -> list[str]:
    found = []
    if not record["verification"]:
        found.append("nobody has verified this model, and its card says so; `mupscale verify` first")
    if options.private and repository.is_private is False:
        found.append(f"`{repository.id.repo}` exists and is public; `--private` does not change that")
    if is_file and (path := record["source"].get("path", "")) != published_record(record)["source"].get("path", ""):
        found.append(f"the file's own metadata name the path of its source, `{path}`; those of a directory do not")
    if options.with_optimizer and not record["optimizer_state"]:
        found.append("`--with-optimizer`: no optimizer state was widened with this model")
    return found


def push_files(checkpoint: Checkpoint, record: Record, *, with_optimizer: bool) -> tuple[LocalFile, ...]:
    """The files of a checkpoint that belong on the Hub, under the names that they have there.

    Args:
        checkpoint: that mupscale wrote.
        record: its mupscale.json.
        with_optimizer: the optimizer's state, and what resuming needs, as well.
    """
    state = record["optimizer_state"]
    local = _of_file(checkpoint) if checkpoint.is_file else _of_directory(checkpoint)
    own = state_names(local, state["file"]) if state else ()
    left = () if with_optimizer else own
    kept = {
        name: path for name, path in local.items() if name not in left and (name in own or _is_model(name, checkpoint))
    }
    for path in kept.values():
        if path.suffix != ".safetensors":
            require_own_file(path, checkpoint.path.parent if checkpoint.is_file else checkpoint.path)
    files = [LocalFile(name, path, path.stat().st_size) for name, path in sorted(kept.items())]
    public = published_record(record)
    if checkpoint.is_file or public != record:
        content = (json.dumps(public, indent=2) + "\n").encode()
        files = [file for file in files if file.name != RECORD] + [LocalFile(RECORD, content, len(content))]
    return tuple(files)


def published_record(record: Record) -> Record:
    """A record without the folders of source and recipe, which mean nothing elsewhere and are nobody's business."""
    result, source, recipe = record.copy(), record["source"], record["recipe"]
    if "path" in source:
        result["source"] = {**source, "path": _file_name(source["path"])}
    if "file" in recipe:
        result["recipe"] = {**recipe, "file": _file_name(recipe["file"])}
    return result


def _file_name(path: str) -> str:
    """The last part of a path of any system."""
    return PurePosixPath(path.replace("\\", "/")).name


def _of_directory(checkpoint: Checkpoint) -> dict[str, Path]:
    folder = checkpoint.path
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def _of_file(checkpoint: Checkpoint) -> dict[str, Path]:
    """What lies beside a single file as `NAME.config.json` is `config.json` on the Hub."""
    file = checkpoint.path
    beside = {path.name.removeprefix(f"{file.stem}."): path for path in file.parent.glob(f"{file.stem}.*")}
    beside.pop("safetensors", None)
    return {WEIGHTS: file, **{name: path for name, path in beside.items() if path.is_file()}}


def _is_model(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a file is what mupscale wrote for loading the model."""
    if checkpoint.is_file:
        return name in (WEIGHTS, CONFIG)
    own = {file.name for file in (*checkpoint.files, *checkpoint.carried_files)} | {CONFIG, RECORD}
    if len(checkpoint.files) > 1:
        own.add(INDEX)
    return name in own


def _existing_card(checkpoint: Checkpoint, repository: Repository) -> str | None:
    """The card beside the weights, which its author wants there, or else the repository's."""
    own = checkpoint.path / CARD
    if not checkpoint.is_file and own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    if CARD not in repository.files:
        return None
    return read_card(HubId(repository.id.repo, repository.commit))


def _source_facts(checkpoint: Checkpoint, record: Record) -> tuple[dict[str, Any], str | None]:
    """What the source's card says of licence and task, and a warning where it could not be read."""
    source = record["source"]
    if "repo" in source:
        try:
            return inherited_facts(read_card(HubId(source["repo"], source["revision"]))), None
        except HubError as error:
            return {}, f"the card of the source could not be read, so no licence is inherited: {error.message}"
    narrow = checkpoint.path.resolve().parent / source["path"]
    card = (narrow if narrow.is_dir() else narrow.parent) / CARD
    return inherited_facts(card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None), None
