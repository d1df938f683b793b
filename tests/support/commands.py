"""Run the command `anyclass`, also on a terminal; and a scripted service."""

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_PATIENCE_S = 100.0
COMMAND = (sys.executable, "-m", "service")

Reply = tuple[int, Mapping[str, str], object]
"""Status, headers, and the body for JSON; a status of 0 hangs up."""


def anyclass(*arguments: object, stdin: str = "", **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=_PATIENCE_S,
        check=False,
        env={**os.environ, **env},
    )


def on_a_terminal(*arguments: object) -> tuple[int, str]:
    """Run the command on a terminal of 100 columns; return its exit code and its output."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    seen = bytearray()
    try:
        while piece := os.read(ours, 65_536):
            seen += piece
    except OSError:
        pass  # Linux reports that every process has closed the terminal
    finally:
        os.close(ours)
    return process.wait(_PATIENCE_S), seen.decode("utf-8", "replace")


@contextmanager
def scripted(reply: Callable[[int], Reply]) -> Iterator[str]:
    """Run a server that answers the n-th request, from 0, with `reply(n)`; yield its URL."""
    numbers = iter(range(10**9))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            with lock:
                number = next(numbers)
            status, headers, body = reply(number)
            if not status:
                self.close_connection = True
                return
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815 - the standard library's name

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
