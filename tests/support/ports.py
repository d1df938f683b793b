"""Find ports for servers that must know theirs before they start, and keep it when they start again."""

import os
import random
import socket
from pathlib import Path

_FIRST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LINUX_EPHEMERAL = 32_768


def free_port() -> int:
    """Return a free port of the loopback address.

    It is below the range from which the kernel takes ports of clients and of servers that listen on port 0. Nothing of
    that kind takes it before the server starts, nor between its end and its next start.
    """
    end = int(_RANGE.read_text("ascii").split()[0]) if _RANGE.exists() else _LINUX_EPHEMERAL
    # The system's generator: tests seed the others, and two processes with one seed would choose the same port.
    system = random.SystemRandom()
    while True:
        port = system.randrange(_share()[0], end, _share()[1]) if end > _FIRST + 1_000 else 0
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])


def _share() -> tuple[int, int]:
    """Return first port and step of this process, so that no two processes of pytest-xdist choose the same port."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return _FIRST + number, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
