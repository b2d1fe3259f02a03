"""A local server for tests with the parts of the Hub's protocol that mupscale uses. Repositories are in memory.

`fail` makes the next requests fail; `requests` and `bytes_sent` record the traffic.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_secretsecretsecret"  # noqa: S105 (not a real token)
_LARGE = (".safetensors", ".pt", ".bin", ".pth")


@dataclass(frozen=True)
class Blob:
    """A file: its first bytes, followed by zeros up to its size. Large files of tests thus take no memory."""

    content: bytes
    size: int
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        return hashlib.sha1(f"blob {self.size}\0".encode() + self.content, usedforsecurity=False).hexdigest()

    def part(self, start: int, end: int) -> bytes:
        end = min(end, self.size)
        return self.content[start:end].ljust(max(0, end - start), b"\0")


@dataclass
class Repo:
    """A repository: commits by hash, and branches that point to them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, Blob], ref: str = "main", message: str = "") -> str:
        tree = json.dumps([len(self.commits), sorted((name, blob.oid) for name, blob in files.items())])
        oid = hashlib.sha1(tree.encode(), usedforsecurity=False).hexdigest()
        self.commits[oid] = files
        self.refs[ref] = oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Failure:
    """Answer matching requests `METHOD PATH` with an error status, a limited number of times."""

    pattern: re.Pattern[str]
    status: int
    times: int
    headers: dict[str, str]
    body: dict[str, Any]


class HttpError(Exception):
    """End a request with an error status."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status)
        self.status, self.code, self.message = status, code, message


class HubServer:
    """A Hub at `url`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.bytes_sent = 0
        self.bytes_received = 0
        self.failures: list[Failure] = []
        self.lock = threading.Lock()
        answers = {f"do_{method}": _Handler.answer for method in ("GET", "HEAD", "POST", "PUT")}
        handler = type("Handler", (_Handler,), {"hub": self, **answers})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, files: dict[str, bytes], sizes: dict[str, int] | None = None, **settings: Any) -> str:
        """Add a repository and return its commit; `sizes` has the sizes of files that exceed their content."""
        repo = self.repos.setdefault(name, Repo(**settings))
        sizes = sizes or {}
        blobs = {
            path: Blob(content, sizes.get(path, len(content)), path.endswith(_LARGE)) for path, content in files.items()
        }
        return repo.commit(blobs)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[name]
        return {path: blob.content for path, blob in repo.commits[repo.refs[revision]].items()}

    def fail(self, pattern: str, status: int, times: int = 10**6, **headers: str) -> None:
        """Answer matching requests `METHOD PATH` with a status."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.failures.append(
            Failure(re.compile(pattern), status, times, named, {"error": f"failing as requested with {TOKEN}"})
        )

    def forget(self) -> None:
        """Forget the traffic so far."""
        self.requests, self.bytes_sent, self.bytes_received = [], 0, 0

    def asked(self, pattern: str) -> list[str]:
        """Return the requests `METHOD PATH` that match a pattern."""
        return [request for request in self.requests if re.search(pattern, request)]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length) if length else self._chunked()
        split = urlsplit(self.path)
        path, request = unquote(split.path), f"{self.command} {unquote(split.path)}"
        with self.hub.lock:
            self.hub.requests.append(request)
            self.hub.bytes_received += len(body)
            failure = next((f for f in self.hub.failures if f.times and f.pattern.search(request)), None)
            if failure:
                failure.times -= 1
        if failure:
            self._send(failure.status, json.dumps(failure.body).encode(), failure.headers)
            return
        try:
            for pattern, method in _ROUTES:
                match = re.fullmatch(pattern, request)
                if match:
                    method(self, body=body, query=parse_qs(split.query), path=path, **match.groupdict())
                    return
            self._send(404, b"{}")
        except HttpError as end:
            headers = {"X-Error-Code": end.code, "X-Error-Message": end.message}
            self._send(end.status, json.dumps({"error": end.message}).encode(), {k: v for k, v in headers.items() if v})

    def _chunked(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            with self.hub.lock:
                self.hub.bytes_sent += len(content)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    @property
    def _known(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _need_login(self) -> None:
        if not self._known:
            raise HttpError(401, "", "Invalid username or password.")

    def _repo(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._known):
            raise HttpError(401 if not self._known else 404, "RepoNotFound", "Repository not found")
        return repo

    def _commit(self, repo: Repo, revision: str | None) -> str:
        commit = repo.resolve(revision or "main")
        if commit is None:
            raise HttpError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Routes ---------------------------------------------------------------------------------------

    def whoami(self, **_: Any) -> None:
        self._need_login()
        self._json({"type": "user", "name": "someone", "orgs": [], "auth": {}})

    def create(self, body: bytes, **_: Any) -> None:
        self._need_login()
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "theirs":
            raise HttpError(403, "", "You don't have the rights to create a model under the namespace theirs")
        if name in self.hub.repos:
            answer = {"url": f"{self.hub.url}/{name}", "error": "You already created this model repo"}
            self._send(409, json.dumps(answer).encode())
            return
        self.hub.add(
            name,
            {".gitattributes": b"*.safetensors filter=lfs\n"},
            private=asked.get("visibility") == "private" or bool(asked.get("private")),
        )
        self._json({"url": f"{self.hub.url}/{name}"})

    def branch(self, name: str, ref: str, **_: Any) -> None:
        self._need_login()
        repo = self._repo(name)
        repo.refs[ref] = repo.refs["main"]
        self._json({})

    def info(self, name: str, revision: str | None = None, **_: Any) -> None:
        repo = self._repo(name)
        commit = self._commit(repo, revision)
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        self._json({"id": name, "sha": commit, "private": repo.private, "tags": [], "siblings": siblings})

    def tree(self, name: str, revision: str, **_: Any) -> None:
        repo = self._repo(name)
        files = repo.commits[self._commit(repo, revision)]
        self._json([self._entry(path, blob) for path, blob in files.items()])

    def _entry(self, path: str, blob: Blob) -> dict[str, Any]:
        large = {"lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}} if blob.is_large else {}
        return {"type": "file", "path": path, "size": blob.size, "oid": blob.oid, **large}

    def validate(self, **_: Any) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str, body: bytes, **_: Any) -> None:
        self._need_login()
        repo = self._repo(name)
        files = repo.commits[self._commit(repo, revision)]
        answers = []
        for file in json.loads(body)["files"]:
            there = files.get(file["path"])
            oid = None if there is None else there.sha256 if there.is_large else there.oid
            mode = "lfs" if file["path"].endswith(_LARGE) else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def batch(self, name: str, body: bytes, **_: Any) -> None:
        self._need_login()
        self._repo(name)
        objects = []
        for item in json.loads(body)["objects"]:
            found = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.large:  # do not request existing blobs again
                href = f"{self.hub.url}/lfs/{item['oid']}"
                found["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(found)
        self._json({"transfer": "basic", "objects": objects})

    def put(self, oid: str, body: bytes, **_: Any) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise HttpError(400, "", "wrong hash")
        self.hub.large[oid] = body
        self._json({})

    def commit(self, name: str, revision: str, body: bytes, query: dict[str, list[str]], **_: Any) -> None:
        self._need_login()
        repo = self._repo(name)
        base = self._commit(repo, revision)
        files, ref, message = dict(repo.commits[base]), revision, ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, base):
                    raise HttpError(412, "", "The repository was changed")
            elif entry["key"] == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = Blob(content, len(content), is_large=False)
            elif entry["key"] == "lfsFile":
                content = self.hub.large[value["oid"]]
                files[value["path"]] = Blob(content, len(content), is_large=True)
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        answer = {}
        if query.get("create_pr") == ["1"]:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
            ref = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
        oid = repo.commit(files, ref, message)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, **answer})

    def resolve(self, name: str, revision: str, file: str, **_: Any) -> None:
        repo = self._repo(name)
        if repo.gated and not self._known:
            raise HttpError(403, "GatedRepo", "Access to this model is restricted")
        commit = self._commit(repo, revision)
        blob = repo.commits[commit].get(file)
        if blob is None:
            raise HttpError(404, "EntryNotFound", "Entry not found")
        etag = blob.sha256 if blob.is_large else blob.oid
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if blob.is_large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(blob.size)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if self.command == "HEAD":
            self._send(200, b"", {**headers, "Content-Length": str(blob.size)})
        elif asked:
            start, end = int(asked[1]), int(asked[2]) + 1 if asked[2] else blob.size
            content = blob.part(start, end)
            place = f"bytes {start}-{start + len(content) - 1}/{blob.size}"
            self._send(206, content, {**headers, "Content-Range": place})
        else:
            assert blob.size < 1 << 28, f"a test downloads all {blob.size} bytes of {file}"
            self._send(200, blob.part(0, blob.size), headers)


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST /api/models/{_NAME}/branch/(?P<ref>.+)", _Handler.branch),
    (rf"POST /api/models/{_NAME}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"POST /api/models/{_NAME}/commit/(?P<revision>.+)", _Handler.commit),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(?P<oid>\w+)", _Handler.put),
    (rf"GET /api/models/{_NAME}/tree/(?P<revision>[^?]+)", _Handler.tree),
    (rf"GET /api/models/{_NAME}(/revision/(?P<revision>.+))?", _Handler.info),
    (rf"(GET|HEAD) /{_NAME}/resolve/(?P<revision>refs/\w+/\d+|[^/]+)/(?P<file>.+)", _Handler.resolve),
]
