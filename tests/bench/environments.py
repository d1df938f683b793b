"""Make the environments of the peer servers: once, by pip, under build/bench/envs."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.places import ENVIRONMENTS
from tests.support.places import ROOT

_LAST_LINES: Final = 3


class Unavailable(Exception):  # noqa: N818 - a reason to leave a part out, not an error of the program
    """A subject cannot be measured on this machine; the message says why."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        name: name of its folder.
        steps: arguments of one `pip install` each, in order.
        folder: its folder.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    folder: Path = ENVIRONMENTS

    @property
    def python(self) -> Path:
        """Return its interpreter."""
        return self.folder / self.name / "bin" / "python"

    def make(self) -> Path:
        """Make the environment unless it is up to date; return its interpreter. Raises Unavailable."""
        stamp = self.folder / self.name / ".stamp"
        wanted = hashlib.sha256(repr((self.steps, sys.version)).encode()).hexdigest()
        if self.python.exists() and stamp.exists() and stamp.read_text() == wanted:
            return self.python
        shutil.rmtree(self.folder / self.name, ignore_errors=True)
        _run([sys.executable, "-m", "venv", "--without-pip", str(self.folder / self.name)], f"venv for {self.name}")
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check"]
        pip += ["install", "--quiet", "--no-input"]
        for step in self.steps:
            _run([*pip, *step], f"pip install {' '.join(step)}")
        stamp.write_text(wanted)
        return self.python


def installed(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of the `packages` that the interpreter finds."""
    program = (
        "import sys, importlib.metadata as m\n"
        "there = {d.name.lower().replace('_', '-'): d.version for d in m.distributions()}\n"
        "[print(n, there[n]) for n in sys.argv[1:] if n in there]"
    )
    done = subprocess.run([str(python), "-c", program, *packages], check=True, capture_output=True, text=True)
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise Unavailable(f"{what} failed: {' '.join(said[-_LAST_LINES:])}")
