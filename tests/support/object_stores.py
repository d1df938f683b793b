"""Stores of data files on the loopback interface: an S3 server, and an HTTP server that serves parts of files."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pyarrow import fs

BUCKET = "pairs"


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[str]:
    """Serve the files of a folder as objects of a bucket; yield the URL of the bucket."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        use_endpoint(monkeypatch, endpoint := f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        store = fs.S3FileSystem(region="us-east-1", endpoint_override=endpoint, allow_bucket_creation=True)
        store.create_dir(BUCKET)
        for path in sorted(folder.rglob("*.*")):
            with store.open_output_stream(f"{BUCKET}/{path.relative_to(folder)}") as stream:
                stream.write(path.read_bytes())
        yield f"s3://{BUCKET}"
    finally:
        server.stop()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Take a local server for S3, in this process and its workers; look for credentials nowhere else."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


class _Parts(SimpleHTTPRequestHandler):
    """Serves one range of bytes where it is asked for, as file servers do; 403 below `/secret/`."""

    def do_GET(self) -> None:
        """Answer with the file, or with a part of it."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer with the size."""
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        if self.path.startswith("/secret/") or not path.is_file():
            self.send_error(HTTPStatus.FORBIDDEN if self.path.startswith("/secret/") else HTTPStatus.NOT_FOUND)
            return
        content = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = content[int(found[1]) : int(found[2]) + 1] if found else content
        self.send_response(HTTPStatus.PARTIAL_CONTENT if found else HTTPStatus.OK)
        if found:
            self.send_header("Content-Range", f"bytes {found[1]}-{int(found[1]) + len(part) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            self.wfile.write(part)


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    """Serve the files of a folder; yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Parts, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
