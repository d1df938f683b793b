"""State in a directory that several processes of one machine share, or of several where `flock` and rename work there.

A file is written beside its place, flushed to the disk and renamed, so a reader sees the old or the new content and
never a part, also when the writer is killed. Compare-and-set is done under a lock that ends with its holder.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import filelock

from service.errors import AnyclassError, ConfigurationError, StateUnavailable
from service.state.framing import corrupt, new_version, seal, unseal
from service.state.protocol import Entry, check_key, check_prefix

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)

_THREADS: Final = 4
_LOCKS: Final = 64
_LOCK_TIMEOUT_S: Final = 5.0
_LOCK_POLL_S: Final = 0.005
_FILE_SUFFIX: Final = ",v"
"""Holds a character that no key has, so that a file and a folder never want the same name."""
_TEMPORARY: Final = ".tmp-"
_ABANDONED_S: Final = 24 * 3600
_ATTEMPTS: Final = 5


class DirectoryStateStore:
    """A `StateStore` in a directory, made with the first write. Files are for the service's user only."""

    def __init__(self, root: Path, *, asked_for: bool = True) -> None:
        """`asked_for`: a directory that cannot be written to stops the start; without, it only fails what needs it."""
        self._root = root / "state-v1"
        self._values = self._root / "values"
        self._blobs = self._root / "blobs"
        self._locks = self._root / "locks"
        self._asked_for = asked_for
        self._missing = False
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="anyclass-state")

    async def check(self) -> bool:
        """See `StateStore`. Also removes what killed writers left, a day later.

        Nothing is made in the user's data folder before there is something to keep.
        """
        if not self._asked_for:
            self._missing = not await self._aside(self._could_keep)
            if self._missing:
                _LOG.warning(
                    "no state store: the user's data folder cannot be written to; label sets and batch jobs"
                    " answer 503 until ANYCLASS_STATE_URL names a place that can be"
                )
            else:
                await self._aside(self._tidy)
            return not self._missing
        try:
            await self._aside(self._prove_writable)
            await self._aside(self._tidy)
        except StateUnavailable as exc:
            raise ConfigurationError("The state directory cannot be written to; see ANYCLASS_STATE_URL.") from exc
        return True

    async def get(self, key: str) -> Entry | None:
        """See `StateStore`."""
        check_key(key)
        return await self._aside(lambda: self._get(key))

    async def put(self, key: str, value: bytes, *, expected: str | None) -> str | None:
        """See `StateStore`."""
        check_key(key)
        return await self._aside(lambda: self._put(key, value, expected))

    async def delete(self, key: str, *, expected: str) -> bool:
        """See `StateStore`."""
        check_key(key)
        return await self._aside(lambda: self._delete(key, expected))

    async def keys(self, prefix: str, *, after: str = "", limit: int) -> list[str]:
        """See `StateStore`."""
        check_prefix(prefix)
        found = await self._aside(lambda: sorted(_walk(self._values, prefix)))
        return [key for key in found if key > after][:limit]

    async def put_blob(self, key: str, blob: bytes) -> None:
        """See `StateStore`."""
        check_key(key)
        await self._aside(lambda: _write(_place(self._blobs, key), seal(blob)))

    async def get_blob(self, key: str) -> bytes | None:
        """See `StateStore`."""
        check_key(key)
        return await self._aside(lambda: _read(_place(self._blobs, key), key))

    async def blob_keys(self, prefix: str) -> list[str]:
        """See `StateStore`."""
        check_prefix(prefix)
        return await self._aside(lambda: sorted(_walk(self._blobs, prefix)))

    async def delete_blobs(self, prefix: str) -> None:
        """See `StateStore`."""
        check_prefix(prefix)
        await self._aside(lambda: self._delete_blobs(prefix))

    async def close(self) -> None:
        """Let writes that have begun end."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _aside(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._unless_missing, work)
        except AnyclassError:
            raise
        except (OSError, filelock.Timeout, RuntimeError) as exc:  # RuntimeError: the threads have been shut down
            # The kind of error only: a message names paths.
            hint = "" if self._asked_for else "; set ANYCLASS_STATE_URL to a place that can be written to"
            _LOG.warning("the state directory failed: %s%s", type(exc).__name__, hint)
            raise StateUnavailable("The state store cannot be used at the moment; try again later.") from exc

    def _unless_missing(self, work: Callable[[], T]) -> T:
        """Do `work`, if there is a place for it; where there was none, look again: somebody may have made one."""
        if self._missing:
            if not self._could_keep():
                raise StateUnavailable(
                    "This server has no usable state store; its operator sets ANYCLASS_STATE_URL.", lasting=True
                )
            self._missing = False
        return work()

    def _could_keep(self) -> bool:
        """Whether something could be written. Makes no folder."""
        try:
            if self._root.exists():
                self._prove_writable()
                return True
            nearest = next(folder for folder in self._root.parents if folder.exists())
        except OSError:
            return False
        return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)

    def _prove_writable(self) -> None:
        probe = self._root / f"{_TEMPORARY}{uuid.uuid4().hex}"
        _make_folder(self._root)
        probe.write_bytes(b"")
        probe.unlink()

    def _tidy(self) -> None:
        for folder, _, files in os.walk(self._root):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    path = Path(folder, name)
                    if name.startswith(_TEMPORARY) and path.stat().st_mtime < time.time() - _ABANDONED_S:
                        path.unlink()

    def _get(self, key: str) -> Entry | None:
        content = _read(_place(self._values, key), key)
        if content is None:
            return None
        version, separator, value = content.partition(b"\n")
        if not separator:
            raise corrupt(key)
        return Entry(value, version.decode("ascii", "replace"))

    def _put(self, key: str, value: bytes, expected: str | None) -> str | None:
        with self._locked(key):
            if self._version(key) != expected:
                return None
            version = new_version()
            _write(_place(self._values, key), seal(version.encode() + b"\n" + value))
            return version

    def _delete(self, key: str, expected: str) -> bool:
        with self._locked(key):
            if self._version(key) != expected:
                return False
            place = _place(self._values, key)
            place.unlink()
            _sync_folder(place.parent)
            return True

    def _version(self, key: str) -> str | None:
        entry = self._get(key)
        return None if entry is None else entry.version

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        _make_folder(self._locks)
        number = hashlib.sha256(key.encode()).digest()[0] % _LOCKS
        with filelock.FileLock(self._locks / f"{number:02}.lock", timeout=_LOCK_TIMEOUT_S, poll_interval=_LOCK_POLL_S):
            yield

    def _delete_blobs(self, prefix: str) -> None:
        for key in list(_walk(self._blobs, prefix)):
            _place(self._blobs, key).unlink(missing_ok=True)
        top = self._blobs / prefix
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):  # it has just got a new file, or is gone
                Path(folder).rmdir()


def _place(root: Path, key: str) -> Path:
    return root / (key + _FILE_SUFFIX)


def _walk(root: Path, prefix: str) -> Iterator[str]:
    """Keys of the files under `prefix`, in no order."""
    for folder, _, files in os.walk(root / prefix):
        for name in files:
            if name.endswith(_FILE_SUFFIX) and not name.startswith(_TEMPORARY):
                yield Path(folder, name.removesuffix(_FILE_SUFFIX)).relative_to(root).as_posix()


def _read(place: Path, key: str) -> bytes | None:
    try:
        sealed = place.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return unseal(key, sealed)


def _write(place: Path, content: bytes) -> None:
    """Replace a file as a whole, durably."""
    for attempt in range(_ATTEMPTS):
        _make_folder(place.parent)
        temporary = place.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
        except FileNotFoundError:
            # Who deletes blobs removes folders that are empty, this one just now.
            if attempt == _ATTEMPTS - 1:
                raise
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        else:
            _sync_folder(place.parent)
            return


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
