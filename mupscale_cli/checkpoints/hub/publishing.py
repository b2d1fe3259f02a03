"""Publishing on the Hub: what a repository has, what changes, and one commit that changes it."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mupscale_cli.checkpoints.hub.bars import progress_bars
from mupscale_cli.checkpoints.hub.failures import hub_errors, without_secrets
from mupscale_cli.checkpoints.hub.ids import HubId
from mupscale_cli.errors import HubError

Status = Literal["new", "changed", "unchanged", "deleted"]
_HASH_BYTES = 1 << 20
# Weights of an earlier push: one that stayed beside the new ones would be loaded in their place.
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to publish.

    Attributes:
        name: in the repository.
        content: its path here, or its bytes.
        num_bytes: its size.
    """

    name: str
    content: Path | bytes
    num_bytes: int


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository: its size, its hash as git has it and, for large files, its SHA-256."""

    num_bytes: int
    blob: str
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """A repository as it is before a push.

    Attributes:
        id: name and branch.
        exists: whether there is one.
        has_branch: whether it has the branch.
        is_private: whether others cannot see it; None where there is none.
        commit: of the branch, None where there is none.
        files: of that commit.
    """

    id: HubId
    exists: bool = False
    has_branch: bool = False
    is_private: bool | None = None
    commit: str | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)

    @property
    def stale(self) -> tuple[str, ...]:
        """Weight files that may be another model's."""
        return tuple(name for name in sorted(self.files) if _WEIGHTS.fullmatch(name))


@dataclass(frozen=True, slots=True)
class Published:
    """What a push led to.

    Attributes:
        url: of the repository, or of the pull request.
        commit: that it made, or the one that has everything already.
        pull_request: its number, None where there is none.
        statuses: of every file.
    """

    url: str
    commit: str
    pull_request: int | None
    statuses: Mapping[str, Status]


def read_repository(model: HubId) -> Repository:
    """What a repository has.

    Raises:
        HubError: it cannot be seen: gated, no connection, offline mode.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    with hub_errors("push to", model):
        has_branch = True
        try:
            info = api.repo_info(model.repo, revision=model.revision)
        except RevisionNotFoundError:
            has_branch = False
            info = api.repo_info(model.repo)  # a new branch begins with what the main one has
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return Repository(model)
        return Repository(model, True, has_branch, info.private, info.sha, _files(model.repo, info.sha))


def _files(repo: str, commit: str | None) -> dict[str, RemoteFile]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = HfApi().list_repo_tree(repo, revision=commit, recursive=True)
    return {
        entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def require_login(model: HubId) -> None:
    """Refuse a push before the work if nobody is logged in, or with a token that the Hub does not know.

    Raises:
        HubError: there is no token, or it is not valid.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise HubError(
            f"cannot push to `{model}`: there is no token",
            hint="`hf auth login`, or set HF_TOKEN to one that may write",
        )
    with hub_errors("push to", model):
        HfApi().whoami()


def file_statuses(files: Iterable[LocalFile], repository: Repository) -> dict[str, Status]:
    """What a push would do to each file; reads those whose size alone does not tell."""
    found: dict[str, Status] = {}
    for file in files:
        there = repository.files.get(file.name)
        found[file.name] = "new" if there is None else "unchanged" if _is_same(file, there) else "changed"
    return {**found, **{name: "deleted" for name in repository.stale if name not in found}}


def _is_same(file: LocalFile, there: RemoteFile) -> bool:
    if file.num_bytes != there.num_bytes:
        return False
    if there.sha256 is not None:
        return _digest(file, hashlib.sha256()) == there.sha256
    header = f"blob {file.num_bytes}\0".encode()  # as git hashes a file
    return _digest(file, hashlib.sha1(header, usedforsecurity=False)) == there.blob


def _digest(file: LocalFile, digest: hashlib._Hash) -> str:
    if isinstance(file.content, bytes):
        digest.update(file.content)
        return digest.hexdigest()
    with open(file.content, "rb") as stream:
        while block := stream.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def create_repository(repository: Repository, *, private: bool) -> Repository:
    """Create the repository and the branch, as far as they are missing.

    Raises:
        HubError: that is not allowed.
    """
    from huggingface_hub import HfApi

    model = repository.id
    if repository.exists and repository.has_branch:
        return repository
    api = HfApi()
    with hub_errors("push to", model):
        if not repository.exists:
            api.create_repo(model.repo, private=private or None, exist_ok=True)
        if model.revision is not None and not repository.has_branch:
            api.create_branch(model.repo, branch=model.revision, exist_ok=True)
    created = read_repository(model)
    # It may have come into being meanwhile, with files whose card was not read: those are not overwritten blindly.
    return replace(created, commit=created.commit if repository.exists else None)


def publish(files: Iterable[LocalFile], repository: Repository, *, message: str, create_pr: bool = False) -> Published:
    """Publish files in one commit, so that a repository never has half of a model.

    Files that the repository has already are not sent, and neither is what an interrupted push had sent.

    Args:
        files: what the repository is to have.
        repository: as it is now.
        message: of the commit.
        create_pr: propose the commit as a pull request.

    Raises:
        HubError: the Hub refuses it, or the connection broke.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = tuple(files)
    names = {file.name for file in files}
    additions = [CommitOperationAdd(file.name, file.content) for file in files]
    deletions = [CommitOperationDelete(name) for name in repository.stale if name not in names]
    model = repository.id
    api = HfApi()
    with hub_errors("push to", model), progress_bars(shown=sys.stderr.isatty()):
        commit = api.create_commit(
            model.repo,
            [*additions, *deletions],
            commit_message=message,
            revision=model.revision,
            create_pr=create_pr or None,
            parent_commit=None if create_pr else repository.commit,
        )
        after = _files(model.repo, commit.oid)
    found: dict[str, Status] = {}
    for name in sorted(names):
        before = repository.files.get(name)
        found[name] = "new" if before is None else "unchanged" if before == after.get(name) else "changed"
    found |= dict.fromkeys((operation.path_in_repo for operation in deletions), "deleted")
    url = without_secrets(commit.pr_url or f"{api.endpoint}/{model.repo}")
    return Published(url, commit.oid, int(commit.pr_num) if commit.pr_num else None, found)
