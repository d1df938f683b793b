"""Keeps choices of `auto` between starts: one small file for each machine, bundle and set of versions.

No failure of the disk stops a start: what cannot be read is measured again, and what cannot be written is logged.
"""

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from service.installation import VERSION
from service.model.choices import Compute, ComputeChoice
from service.model.engine.candidates import Candidate
from service.model.engine.cpus import Cpu

try:
    import fcntl
except ImportError:  # on Windows, where several workers cannot share a port either
    _HAS_LOCKS = False
else:
    _HAS_LOCKS = True

_FORMAT: Final = 1
_FLAGS: Final = ("amx", "asimd", "avx", "bf16", "f16c", "fma", "i8mm", "sme2", "smef", "smei", "sse4", "sve")
"""Beginnings of the flags of instructions that kernels are chosen by."""
_KEY_CHARS: Final = 32
_LOCK_S: Final = 30.0
"""Longest wait for another process that measures."""
_POLL_S: Final = 0.1

_log = logging.getLogger(__name__)

ChoiceKey = dict[str, str]
"""Everything that a choice depends on."""


class Choice(BaseModel):
    """A candidate and the reason why it was chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    provider: str
    compute: Compute
    threads: PositiveInt
    reason: str

    @property
    def candidate(self) -> Candidate:
        """The candidate without the reason."""
        return Candidate(self.provider, self.compute, self.threads)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: ChoiceKey
    choice: Choice


class ChoiceStore:
    """Choices in a folder, each in a file named by the digest of its key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: ChoiceKey) -> Path:
        """Return the file of a choice."""
        return (
            self._folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:_KEY_CHARS]}.json"
        )

    def read(self, key: ChoiceKey) -> Choice | None:
        """Return the choice for `key`; None if none is known or its file cannot be used, which is logged."""
        path = self.path(key)
        try:
            record = _Record.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as exc:
            _log.warning("the measured choice in %s cannot be used and is measured again: %s", path, _first_line(exc))
            return None
        if record.key != key:
            _log.warning("the measured choice in %s is of another machine or bundle and is measured again", path)
            return None
        return record.choice

    def write(self, key: ChoiceKey, choice: Choice) -> bool:
        """Write a choice, atomically; return whether it could be written. A failure is logged."""
        path, part = self.path(key), None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with NamedTemporaryFile("w", encoding="utf-8", dir=self._folder, suffix=".part", delete=False) as file:
                part = Path(file.name)
                file.write(_Record(key=key, choice=choice).model_dump_json(indent=2) + "\n")
            part.replace(path)
        except OSError as exc:
            _log.warning("the measured choice cannot be kept, and the next start measures again: %s", exc)
            if part is not None:
                with suppress(OSError):
                    part.unlink()
            return False
        return True

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Keep other processes of this machine from measuring; yield whether that is certain.

        A process that measures for longer than 30 s is not waited for.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # `write` says why
            yield False
            return
        try:
            yield _lock(handle)
        finally:
            os.close(handle)


def choice_key(cpu: Cpu, threads: Sequence[int], *, revision: str, compute: ComputeChoice, batch: int) -> ChoiceKey:
    """Return what a choice depends on: machine, versions, the bundle's revision and the settings that bound it.

    `threads` are the counts that can be chosen, from the CPUs that the process may use or the settings.
    """
    return {
        "format": str(_FORMAT),
        "machine": platform.machine(),
        "cpu": f"{cpu.vendor} {cpu.model}",
        "flags": " ".join(sorted(flag for flag in cpu.flags if flag.startswith(_FLAGS))),
        "threads": " ".join(map(str, threads)),
        "anyclass": VERSION,
        "onnxruntime": _version("onnxruntime"),
        "openvino": _version("openvino"),
        "revision": revision,
        "compute": compute,
        "batch": str(batch),
    }


def _lock(handle: int) -> bool:
    if not _HAS_LOCKS:
        return False
    until = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= until:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _first_line(exc: Exception) -> str:
    return str(exc).splitlines()[0]
