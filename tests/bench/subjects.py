"""The measured servers: the service with a model on a provider, and its peers; how to start and query each."""

import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.bench import models, pictures, wire, words
from tests.bench.environments import Environment, Unavailable, installed
from tests.bench.load import Plan
from tests.bench.peers import PEERS, Models, Peer
from tests.bench.places import WORK
from tests.bench.server import Server, running
from tests.support.places import ROOT
from tests.support.ports import free_port

READY: Final = "/readyz"
LABELS: Final = 10
_PICTURES: Final = 12

GPU_ENVIRONMENT: Final = Environment(
    "service-gpu",
    (("-c", "constraints.txt", "-c", "constraints-gpu.txt", "-e", ".[gpu]"), ("tensorrt-cu13",)),
)
"""Environment of the service on a GPU: onnxruntime and onnxruntime-gpu cannot share one."""


@dataclass(frozen=True)
class Subject:
    """The service with a model on a provider.

    Attributes:
        model: a size of `models.SIZES`, or `demo`.
        precision: precision of the bundle.
        provider: provider, as in the settings.
        python: interpreter of its environment.
    """

    model: str
    precision: str
    provider: str
    python: Path = Path(sys.executable)

    @property
    def name(self) -> str:
        """Return its name in tables."""
        return f"anyclass {self.model} {self.precision} {self.provider}"

    @property
    def bundle(self) -> Path:
        """Return the folder of its bundle."""
        return models.bundle(self.model, self.precision)

    def start(self, env: dict[str, str] | None = None) -> AbstractContextManager[Server]:
        """Start the service with default settings, and `env` on top."""
        port = free_port()
        command = [str(self.python), "-m", "service", "serve", "--port", str(port), "--no-welcome"]
        command += ["--model", str(self.bundle), "--provider", self.provider]
        return running(self.name.replace(" ", "-"), command, port, ready=READY, env=env)

    def bare(self, seconds: float, *parts: str, provider: str | None = None) -> dict[str, Any]:
        """Run `tests.bench.bare` in this subject's environment."""
        command = [str(self.python), "-m", "tests.bench.bare", str(self.bundle), provider or self.provider]
        return json_of([*command, str(seconds), *parts])


@dataclass(frozen=True)
class Target:
    """Any HTTP server: its command, and the files of its requests."""

    name: str
    start: AbstractContextManager[Server]
    requests: tuple[str, ...]


def of_subject(subject: Subject) -> Target:
    """Return the service, to classify one picture with ten labels."""
    labels = words.labels(LABELS)
    requests = [wire.picture_as_body("/v1/classify", picture, labels) for picture in pictures.jpegs(_PICTURES)]
    return Target(subject.name, subject.start(), tuple(wire.write("anyclass", requests)))


def of_peer(peer: Peer, subject: Subject) -> Target:
    """Return a peer with the same model, pictures and labels. Raises Unavailable if it cannot be installed."""
    if subject.model not in models.SIZES:
        raise Unavailable(f"peers run {', '.join(models.SIZES)}, not {subject.model}")
    both = Models(models.hugging_face_folder(subject.model), models.bundle(subject.model))
    python = peer.environment.make()
    port = free_port()
    labels = words.labels(LABELS)
    requests = [peer.request(both, picture, labels) for picture in pictures.jpegs(_PICTURES)]
    start = running(peer.name, [str(python), *peer.command(both, port)], port, ready=peer.ready)
    return Target(peer.name, start, tuple(wire.write(peer.name, requests)))


def chosen_peers(names: Iterable[str]) -> list[Peer]:
    """Return the peers of these names. Raises Unavailable for an unknown name."""
    known = {peer.name: peer for peer in PEERS}
    if unknown := sorted(set(names) - set(known)):
        raise Unavailable(f"unknown peer {', '.join(unknown)}; choose from {', '.join(known)}")
    return [known[name] for name in names]


def versions(peer: Peer) -> dict[str, str]:
    """Return the versions of a peer's packages."""
    return installed(peer.environment.python, peer.packages)


def load(server: Server, plan: Plan) -> dict[str, Any]:
    """Run the load generator against a server, in a process of its own."""
    file = WORK / "plan.json"
    file.write_text(json.dumps(replace(plan, port=server.port).__dict__))
    return json_of([sys.executable, "-m", "tests.bench.load", str(file)])


def json_of(command: list[str]) -> dict[str, Any]:
    """Run a part of the benchmark in a process of its own; return its output. Raises Unavailable if it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(" ".join(done.stderr.splitlines()[-3:]).split())
        raise Unavailable(f"{' '.join(command[1:3])} failed: {said}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
