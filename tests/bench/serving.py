"""Measure the service, the bare loop and the peers under load, in turns, so that other work disturbs all alike."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from tests.bench import pictures
from tests.bench.busy import GpuWatch
from tests.bench.environments import Unavailable
from tests.bench.load import Plan
from tests.bench.peers import Peer
from tests.bench.places import WORK
from tests.bench.server import MemoryWatch, Server
from tests.bench.subjects import Subject, Target, json_of, load, of_peer, of_subject, versions
from tests.bench.summary import median

CLIENTS: Final = (1, 8, 32)
SHARES: Final = (0.5, 0.8)
"""Load of the open loop, as a share of the same server's own capacity."""
_MOST_CONNECTIONS: Final = 256
_OPEN_TIMES: Final = 2
"""Factor by which an open loop lasts longer, to meet rare events."""
_AWAKENING_S: Final = 0.3
_SHARE_OF_SINGLES: Final = 0.4
"""Load of the single requests beside a batch, as a share of the capacity one after the other."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """Duration of the measurements.

    Attributes:
        rounds: repetitions of each measurement, whose medians count.
        seconds: duration of one measurement.
        minutes: duration of the load for the figures of memory.
    """

    rounds: int
    seconds: float
    minutes: float


class _Entry:
    """A running target, frozen except in its turn."""

    def __init__(self, target: Target, server: Server) -> None:
        self.name, self.requests, self.server = target.name, target.requests, server
        self.closed: dict[str, list[dict[str, Any]]] = {}
        self.open: dict[str, list[dict[str, Any]]] = {}
        server.freeze()

    def take_turn(self, plan: Plan) -> dict[str, Any]:
        """Run the plan against it. Raises Unavailable if it stops answering."""
        self.server.thaw()
        try:
            # Not counted: the first requests after a freeze are slow.
            load(self.server, Plan("closed", 0, self.requests, _AWAKENING_S))
            with GpuWatch() as watch:
                found = load(self.server, replace(plan, requests=self.requests))
        finally:
            self.server.freeze()
        return found | {"memory_bytes": self.server.memory_bytes(), "gpu": watch.figures}

    @property
    def capacity(self) -> float:
        """Return requests a second at the best number of clients; 0 if none was answered."""
        return max((median(run["rate_rps"] for run in runs) or 0.0 for runs in self.closed.values()), default=0.0)


class _Rounds:
    """Measure every entry in turn, round by round; drop an entry that fails, and record the reason."""

    def __init__(self, effort: Effort, say: Say) -> None:
        self.entries: list[_Entry] = []
        self.bare: dict[str, list[dict[str, Any]]] = {}
        self.skipped: dict[str, str] = {}
        self._effort, self._say = effort, say

    def start(self, targets: Iterable[tuple[str, Callable[[], Target]]], stack: ExitStack) -> None:
        for name, make in targets:
            self._say(f"starting {name}")
            with self._or_skipped(name):
                target = make()
                self.entries.append(_Entry(target, stack.enter_context(target.start)))

    def warm(self) -> None:
        for entry in tuple(self.entries):
            self._say(f"warming {entry.name}")
            seconds = max(1.0, self._effort.seconds / 2)
            with self._or_skipped(entry.name):
                entry.take_turn(Plan("closed", 0, (), seconds, connections=max(CLIENTS)))

    def capacity(self) -> None:
        for clients in CLIENTS:
            for entry in tuple(self.entries):
                plan = Plan("closed", 0, (), self._effort.seconds, connections=clients)
                with self._or_skipped(entry.name):
                    entry.closed.setdefault(str(clients), []).append(entry.take_turn(plan))

    def bare_loops(self, subjects: Sequence[Subject]) -> None:
        started = {entry.name for entry in self.entries}
        for subject in subjects:
            if subject.name in started:
                found = subject.bare(self._effort.seconds, "loop", "single")
                self.bare.setdefault(subject.name, []).append(found)

    def latency(self, seed: int) -> None:
        for share in SHARES:
            for entry in tuple(self.entries):
                if rate := share * entry.capacity:
                    plan = Plan("open", 0, (), _OPEN_TIMES * self._effort.seconds, _MOST_CONNECTIONS, rate, seed)
                    with self._or_skipped(entry.name):
                        entry.open.setdefault(str(share), []).append(entry.take_turn(plan))

    @contextmanager
    def _or_skipped(self, name: str) -> Iterator[None]:
        try:
            yield
        except (Unavailable, ProcessLookupError) as exc:
            self.skipped[name] = str(exc)
            self._say(f"skipped {name}: {exc}")
            self.entries = [entry for entry in self.entries if entry.name != name]


def serving(subjects: Sequence[Subject], peers: Sequence[Peer], effort: Effort, say: Say) -> dict[str, Any]:
    """Measure capacity at several numbers of clients, then latency at shares of it; record why figures are missing."""
    rounds = _Rounds(effort, say)
    with ExitStack() as stack:
        rounds.start(_targets(subjects, peers), stack)
        rounds.warm()
        for number in range(effort.rounds):
            say(f"capacity, round {number + 1} of {effort.rounds}")
            rounds.capacity()
            rounds.bare_loops(subjects)
        for number in range(effort.rounds):
            say(f"latency, round {number + 1} of {effort.rounds}")
            rounds.latency(seed=number)
    measured = {
        entry.name: {"ready_s": entry.server.ready_s, "closed": entry.closed, "open": entry.open}
        for entry in rounds.entries
    }
    about = {peer.name: {"what": peer.what, "versions": versions(peer)} for peer in peers if peer.name in measured}
    return {"targets": measured, "bare": rounds.bare, "peers": about, "skipped": rounds.skipped}


def beside_a_batch(subject: Subject, effort: Effort) -> dict[str, Any]:
    """Measure single requests alone and beside a batch request, at half the rate of the bare loop's single images."""
    one = subject.bare(effort.seconds, "single")["single"]["median_s"]
    picture = WORK / "lanes.jpg"
    picture.write_bytes(pictures.jpegs(1)[0])
    rate, seconds = f"{_SHARE_OF_SINGLES / one:.2f}", str(max(1.0, 3 * effort.seconds))
    with subject.start() as server:
        command = [sys.executable, "-m", "tests.bench.lanes", "--url", f"http://127.0.0.1:{server.port}"]
        command += ["--image", str(picture), "--rate", rate, "--seconds", seconds]
        runs = [json_of(command) for _ in range(effort.rounds)]
    return {"rate_rps": float(rate), "runs": runs}


def memory(subject: Subject, effort: Effort) -> dict[str, Any]:
    """Measure resident memory under the load of 32 clients: bytes over time."""
    target = of_subject(subject)
    with target.start as server, MemoryWatch(server, every_s=0.25) as watch:
        seconds = 60 * effort.minutes
        plan = Plan("closed", 0, target.requests, seconds, connections=max(CLIENTS))
        found = load(server, plan)
    half = len(watch.samples) // 2
    late = [used for _, used in watch.samples[half:]]
    return {
        "samples": watch.samples,
        "peak_bytes": max(used for _, used in watch.samples),
        # Growth between the first and last quarter of the second half, after everything was in use.
        "late_growth_bytes": (median(late[-len(late) // 4 :]) or 0) - (median(late[: max(1, len(late) // 4)]) or 0),
        "requests": found["answered"],
        "seconds": seconds,
    }


def starting(subject: Subject, effort: Effort) -> dict[str, Any]:
    """Return the seconds from the start of the process until /readyz answers 200."""
    found = []
    for _ in range(effort.rounds):
        with subject.start() as server:
            found.append(server.ready_s)
    return {"ready_s": found, "median_s": median(found)}


def _targets(subjects: Sequence[Subject], peers: Sequence[Peer]) -> Iterator[tuple[str, Callable[[], Target]]]:
    for subject in subjects:
        yield subject.name, partial(of_subject, subject)
    for peer in peers:
        yield peer.name, partial(of_peer, peer, subjects[0])
