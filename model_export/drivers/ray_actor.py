"""Parts of the Ray driver that run on a node: what it checks before it works, and the actor that works."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
import traceback
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from model_export.errors import DriverError, ModelExportError


class Setting(NamedTuple):
    """Conditions under which a node may work.

    Attributes:
        folder: the working folder of the driver, for relative names.
        tokens: files that a node must see, and their content.
        versions: of packages that decide bytes.
        within_s: a network file system shows a new file to other machines after some time.
    """

    folder: str
    tokens: tuple[tuple[str, str], ...]
    versions: dict[str, str]
    within_s: float

    def problem(self) -> str | None:
        """Return why this node cannot take part; None if it can."""
        for name, found in versions().items():
            if found != self.versions[name]:
                return f"has {name} {found}, not {self.versions[name]}; give every node the same packages"
        deadline = time.monotonic() + self.within_s
        for path, content in self.tokens:
            while not _reads(path, content):
                if time.monotonic() > deadline:
                    return (
                        f"does not see the folder {Path(path).parent} of the machine that drives the others; put it "
                        "on a disk that every node mounts under this path"
                    )
                time.sleep(0.1)
        return None


class Actor:
    """Calls the function with one task after another."""

    def __init__(self, function: bytes, setting: Setting, attempts: Any) -> None:  # noqa: ANN401 - a handle of Ray
        self._attempts = attempts
        self._problem: Exception | None = None
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            os.chdir(setting.folder)
        try:
            self._function = pickle.loads(function)  # noqa: S301 - pickled by the driver
            if problem := setting.problem():
                self._problem = DriverError(f"node {_address()} {problem}")
        except Exception as error:  # noqa: BLE001 - the answer to the first task
            self._problem = _noted(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the pickled result, or the pickled error."""
        import ray

        outcome: Any = self._problem
        if outcome is None and not ray.get(self._attempts.begin.remote(row["number"])):
            outcome = Exceeded
        elif outcome is None:
            try:
                outcome = self._function(pickle.loads(row["task"]))  # noqa: S301 - pickled by the driver
            except ModelExportError as error:
                outcome = error
            except Exception as error:  # noqa: BLE001 - a mistake of ours: raised again by the driver
                outcome = _noted(error)
        return {"number": row["number"], "result": pickle.dumps(outcome)}


class Exceeded:
    """The outcome of a task that was begun too often."""


class Attempts:
    """Counts how often each task was begun, in a process of its own: Ray Data repeats a task without an end."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> bool:
        """Return whether the task may be begun again."""
        self._begun[number] += 1
        return self._begun[number] <= self._most


def _noted(error: Exception) -> Exception:
    error.add_note(traceback.format_exc())
    return error


def problem_of(setting: Setting) -> str | None:
    """Return why the node that this runs on cannot take part; a task for each node."""
    return setting.problem()


def _address() -> str:
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


def _reads(path: str, content: str) -> bool:
    try:
        return Path(path).read_text() == content
    except OSError:
        return False


def versions() -> dict[str, str]:
    """Return the versions of packages that decide bytes."""
    found = {}
    for name in ("anyclass", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found
