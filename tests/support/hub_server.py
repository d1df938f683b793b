"""Run a small hub on loopback: the routes and headers of `huggingface_hub`, on real sockets, with faults on demand.

A second host name serves large files, like the hub's storage, so that redirects are real too.
"""

import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

GIT_BYTES = 1000
"""Files up to this size are in git, like small texts on the hub; larger ones are in its storage."""

_INFO = re.compile(r"/api/models/(?P<model>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?")
_RESOLVE = re.compile(r"/(?P<model>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_STORED = re.compile(r"/stored/(?P<digest>[0-9a-f]{64})/(?P<name>.+)")


@dataclass
class Fault:
    """A fault in the body of a file, once, after some of its bytes.

    The connection is closed, is reset, or stalls until the hub ends; or it is closed and the hub stays down.
    """

    after: int
    how: Literal["close", "reset", "stall", "vanish"]


@dataclass
class Sent:
    """An answer with a file's content."""

    name: str
    start: int
    bytes: int
    authorization: str | None


@dataclass
class Hub:
    """A running hub, and its record of requests.

    Attributes:
        url: for ``HF_ENDPOINT``.
        requests: method and path of every request.
        sent: every answer with a file's content.
        faults: file name → fault of its next request.
        corrupted: names of files served with a changed last byte.
        claimed_sizes: file name → size stated instead of the true one.
        gated: models that need the token ``good``.
        down: every connection is closed without an answer.
        status: status of every answer unless None; 200 answers a page, like a network that requires a login.
        ranges: whether the hub serves parts of a file.
        progress: set after a fault.
    """

    port: int
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)
    corrupted: set[str] = field(default_factory=set)
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    down: bool = False
    status: int | None = None
    ranges: bool = True
    progress: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    _commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    _refs: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Return the value for ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.port}"

    def add(self, model: str, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """Commit files to a branch of a model; return the commit."""
        listing = repr([model, sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items())])
        commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        self._commits[model, commit] = dict(files)
        self._refs[model, branch] = commit
        return commit

    def bodies(self, name: str) -> list[Sent]:
        """Return the answers with a file's content."""
        return [sent for sent in self.sent if sent.name == name]

    def commit(self, model: str, revision: str) -> str | None:
        """Describe a branch or a commit."""
        known = self._refs.get((model, revision), revision)
        return known if (model, known) in self._commits else None

    def knows(self, model: str) -> bool:
        """Return whether the model exists."""
        return any(model == name for name, _ in self._refs)

    def files(self, model: str, commit: str) -> dict[str, bytes]:
        """List the files of a commit."""
        return self._commits[model, commit]

    def stored(self, digest: str) -> bytes | None:
        """Serve a file of the storage."""
        everything = (data for files in self._commits.values() for data in files.values())
        return next((data for data in everything if hashlib.sha256(data).hexdigest() == digest), None)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a hub without models until the end of the block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    hub = server.hub = Hub(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def hub_client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub as the only one of this process: with the cache ``folder/hub`` and none of the caller's settings."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING_FACE_", "TRANSFORMERS_")) or name.lower() in {"http_proxy", "all_proxy"}:
            monkeypatch.delenv(name)
    # The library reads these from the environment on import
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        try:
            yield hub
        finally:
            close_session()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, *args: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client may leave
            super().handle_error(*args)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def log_message(self, *_: object) -> None:
        pass

    def _route(self) -> None:
        if self.hub.down:
            self.close_connection = True
            return
        if self.hub.status is not None:
            self._answer(self.hub.status, b"<html>not a hub</html>", {"Content-Type": "text/html"})
            return
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        for pattern, answer in ((_INFO, self._info), (_STORED, self._stored), (_RESOLVE, self._resolve)):
            if found := pattern.fullmatch(path):
                answer(**found.groupdict())
                return
        self._answer(404, b"no such route")

    def _info(self, model: str, revision: str | None) -> None:
        commit = self._commit(model, revision or "main")
        if commit is None:
            return
        siblings = [self._sibling(name, data) for name, data in self.hub.files(model, commit).items()]
        info = {"id": model, "sha": commit, "siblings": siblings, "tags": [], "gated": model in self.hub.gated}
        self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _sibling(self, name: str, data: bytes) -> dict[str, object]:
        size = self.hub.claimed_sizes.get(name, len(data))
        sibling: dict[str, object] = {"rfilename": name, "size": size, "blobId": _git_digest(data)}
        if len(data) > GIT_BYTES:
            sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 130}
        return sibling

    def _resolve(self, model: str, revision: str, name: str) -> None:
        commit = self._commit(model, revision)
        if commit is None:
            return
        headers = {"X-Repo-Commit": commit}
        if model in self.hub.gated and self.headers["Authorization"] != "Bearer good":
            self._answer(403, b"", {**headers, "X-Error-Code": "GatedRepo", "X-Error-Message": "ask for access"})
            return
        data = self.hub.files(model, commit).get(name)
        if data is None:
            self._answer(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        elif len(data) <= GIT_BYTES:
            self._body(name, data, {**headers, "ETag": f'"{_git_digest(data)}"'})
        else:
            digest = hashlib.sha256(data).hexdigest()
            headers |= {
                "X-Linked-ETag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                # Like every large file on the hub today: Xet's storage has it too.
                "X-Xet-Hash": digest,
                "Link": f'<{self.hub.url}/api/models/{model}/xet-read-token/{commit}>; rel="xet-auth"',
                "Location": f"http://localhost:{self.hub.port}/stored/{digest}/{name}",
            }
            self._answer(302, b"", headers)

    def _stored(self, digest: str, name: str) -> None:
        data = self.hub.stored(digest)
        if data is None:
            self._answer(404, b"")
        else:
            self._body(name, data, {"ETag": f'"{digest}"'})

    def _commit(self, model: str, revision: str) -> str | None:
        if not self.hub.knows(model):
            # The hub answers the same for a private and a missing model without a login.
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        commit = self.hub.commit(model, revision)
        if commit is None:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        return commit

    def _body(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        start = 0
        if self.hub.ranges and (wanted := self.headers["Range"]):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if name in self.hub.corrupted:
            data = data[:-1] + bytes([data[-1] ^ 1])
        fault = self.hub.faults.pop(name, None) if self.command == "GET" else None
        end = len(data) if fault is None else min(len(data), start + fault.after)
        if self.command == "GET":
            sent = Sent(name, start, end - start, self.headers["Authorization"])
            self.hub.sent.append(sent)
        self._answer(206 if "Content-Range" in headers else 200, data[start:], headers, until=end - start)
        if fault is not None:
            self._break(fault)

    def _break(self, fault: Fault) -> None:
        self.wfile.flush()
        self.hub.progress.set()
        self.close_connection = True
        if fault.how == "vanish":
            self.hub.down = True
        elif fault.how == "stall":
            self.hub.released.wait()
        elif fault.how == "reset":  # without lingering, closing resets the connection
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _answer(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, until: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:until])


def _git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
