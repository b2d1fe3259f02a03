"""Publishing on the Hub: comparing local files with a repository, and one commit that updates it."""

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
from mupscale_cli.checkpoints.libraries import WEIGHTS
from mupscale_cli.errors import HubError
from mupscale_cli.files import plain

Status = Literal["new", "changed", "unchanged", "deleted", "unknown"]
_HASH_BYTES = 1 << 20
# Weights of an earlier push: if they stayed, they could be loaded instead of the new ones.
_WEIGHTS = re.compile(
    "|".join(
        rf"{re.escape(name.removesuffix('.safetensors'))}(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
        for name in WEIGHTS
    )
)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to publish.

    Attributes:
        name: path in the repository.
        content: local path, or the bytes themselves.
        num_bytes: size in bytes.
    """

    name: str
    content: Path | bytes
    num_bytes: int


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in a repository.

    Attributes:
        num_bytes: size in bytes.
        blob: SHA-1 of the git blob.
        sha256: SHA-256 of a large file; None for small files.
    """

    num_bytes: int
    blob: str
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """A repository before a push.

    Attributes:
        id: name and branch.
        exists: whether the repository exists.
        has_branch: whether the branch exists.
        is_private: whether the repository is private; None if it does not exist.
        commit: latest commit of the branch; None if there is none.
        files: files of that commit by path.
        is_known: whether the Hub was asked; otherwise nothing else here says anything.
    """

    id: HubId
    exists: bool = False
    has_branch: bool = False
    is_private: bool | None = None
    commit: str | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    is_known: bool = True

    @property
    def stale(self) -> tuple[str, ...]:
        """Weight files that may belong to another model."""
        return tuple(name for name in sorted(self.files) if _WEIGHTS.fullmatch(name))


@dataclass(frozen=True, slots=True)
class Published:
    """The result of a push.

    Attributes:
        url: address of the repository or the pull request.
        commit: new commit, or the existing one if nothing changed.
        pull_request: number of the pull request; None if there is none.
        statuses: status of every file by path.
    """

    url: str
    commit: str
    pull_request: int | None
    statuses: Mapping[str, Status]


def read_repository(model: HubId) -> Repository:
    """Read the state of a repository; one that does not exist is not an error.

    Raises:
        HubError: the repository cannot be read, for instance because it is gated.
        UnreachableError: the connection failed, or offline mode is on.
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
            info = api.repo_info(model.repo)  # a new branch starts from the main one
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
    """Check for a valid token before the work starts.

    Raises:
        HubError: there is no token, or the Hub rejects it.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise HubError(
            f"cannot push to `{model}`: not logged in to the Hub",
            hint="run `hf auth login`, or set HF_TOKEN to a token with write access",
        )
    with hub_errors("push to", model):
        HfApi().whoami()


def file_statuses(files: Iterable[LocalFile], repository: Repository) -> dict[str, Status]:
    """Return what a push would do to each file, by path. Files of equal size are hashed to compare them."""
    if not repository.is_known:
        return {file.name: "unknown" for file in files}
    statuses: dict[str, Status] = {}
    for file in files:
        remote = repository.files.get(file.name)
        statuses[file.name] = "new" if remote is None else "unchanged" if _is_same(file, remote) else "changed"
    return {**statuses, **{name: "deleted" for name in repository.stale if name not in statuses}}


def _is_same(file: LocalFile, remote: RemoteFile) -> bool:
    if file.num_bytes != remote.num_bytes:
        return False
    if remote.sha256 is not None:
        return _digest(file, hashlib.sha256()) == remote.sha256
    header = f"blob {file.num_bytes}\0".encode()  # git hashes a file with this header
    return _digest(file, hashlib.sha1(header, usedforsecurity=False)) == remote.blob


def _digest(file: LocalFile, digest: hashlib._Hash) -> str:
    if isinstance(file.content, bytes):
        digest.update(file.content)
        return digest.hexdigest()
    with open(file.content, "rb", opener=plain) as stream:
        while block := stream.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def create_repository(repository: Repository, *, private: bool) -> Repository:
    """Create the repository and the branch if they do not exist.

    Args:
        repository: state before the push.
        private: whether to create the repository as private.

    Returns:
        The state afterwards.

    Raises:
        HubError: the Hub refuses to create them.
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
    # Someone else may have created it in the meantime. Without a parent commit, their files are not overwritten.
    return replace(created, commit=created.commit if repository.exists else None)


def publish(files: Iterable[LocalFile], repository: Repository, *, message: str, create_pr: bool = False) -> Published:
    """Publish files in one commit; a repository never contains half a model.

    Unchanged files and files that an interrupted push has already uploaded are not sent again.

    Args:
        files: files that the repository should contain.
        repository: its current state.
        message: commit message.
        create_pr: whether to propose the commit as a pull request.

    Raises:
        HubError: the Hub rejects the commit, or the connection fails.
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
    statuses: dict[str, Status] = {}
    for name in sorted(names):
        before = repository.files.get(name)
        statuses[name] = "new" if before is None else "unchanged" if before == after.get(name) else "changed"
    statuses |= dict.fromkeys((operation.path_in_repo for operation in deletions), "deleted")
    url = without_secrets(commit.pr_url or f"{api.endpoint}/{model.repo}")
    return Published(url, commit.oid, int(commit.pr_num) if commit.pr_num else None, statuses)
