"""State in a directory, shared by processes of one machine, or of several if its file system has `flock` and rename.

A file is written under a temporary name, flushed to disk and renamed. So readers see the old or the new content, never
a part, even if the writer is killed. Compare-and-set holds a lock that is released when its process ends.
"""

import asyncio
import contextlib
import errno
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
from service.state.framing import SEAL_BYTES, corrupt, new_version, seal, unseal
from service.state.protocol import VersionedValue, check_key, check_prefix

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)

_THREADS: Final = 4
_LOCKS: Final = 64
_LOCK_TIMEOUT_S: Final = 5.0
_LOCK_POLL_S: Final = 0.005
_FILE_SUFFIX: Final = ",v"
"""Contains a character that no key has, so a file and a folder never have the same name."""
_TEMPORARY: Final = ".tmp-"
_ABANDONED_S: Final = 24 * 3600
_ATTEMPTS: Final = 5


class DirectoryStateStore:
    """A `StateStore` in a directory, created by the first write. Only the service's user can read the files."""

    def __init__(self, root: Path, *, asked_for: bool = True) -> None:
        """Create the store. If `asked_for`, an unwritable directory prevents the start; else only operations fail."""
        self._root = root / "state-v1"
        self._values = self._root / "values"
        self._blobs = self._root / "blobs"
        self._locks = self._root / "locks"
        self._asked_for = asked_for
        self._missing = False
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="anyclass-state")

    async def check(self) -> bool:
        """See `StateStore`. Also deletes temporary files of killed writers that are older than a day.

        The fallback in the user's data folder is created only by the first write.
        """
        if not self._asked_for:
            self._missing = not await self._in_thread(self._could_keep)
            if self._missing:
                _LOG.warning(
                    "no state store: the user's data folder cannot be written to; label sets and batch jobs"
                    " answer 503 until ANYCLASS_STATE_URL names a place that can be"
                )
            else:
                await self._in_thread(self._tidy)
            return not self._missing
        try:
            await self._in_thread(self._prove_writable)
            await self._in_thread(self._tidy)
        except StateUnavailable as exc:
            raise ConfigurationError("The state directory cannot be written to; see ANYCLASS_STATE_URL.") from exc
        return True

    async def get(self, key: str) -> VersionedValue | None:
        """See `StateStore`."""
        check_key(key)
        return await self._in_thread(lambda: self._get(key))

    async def put(self, key: str, value: bytes, *, expected: str | None) -> str | None:
        """See `StateStore`."""
        check_key(key)
        return await self._in_thread(lambda: self._put(key, value, expected))

    async def delete(self, key: str, *, expected: str) -> bool:
        """See `StateStore`."""
        check_key(key)
        return await self._in_thread(lambda: self._delete(key, expected))

    async def keys(self, prefix: str, *, after: str = "", limit: int) -> list[str]:
        """See `StateStore`."""
        check_prefix(prefix)
        found = await self._in_thread(lambda: sorted(_walk(self._values, prefix)))
        return [key for key in found if key > after][:limit]

    async def put_blob(self, key: str, blob: bytes) -> None:
        """See `StateStore`."""
        check_key(key)
        await self._in_thread(lambda: _write(_path(self._blobs, key), seal(blob)))

    async def get_blob(self, key: str) -> bytes | None:
        """See `StateStore`."""
        check_key(key)
        return await self._in_thread(lambda: _read(_path(self._blobs, key), key))

    async def blob_keys(self, prefix: str) -> list[str]:
        """See `StateStore`."""
        check_prefix(prefix)
        return await self._in_thread(lambda: sorted(_walk(self._blobs, prefix)))

    async def blob_bytes(self, prefix: str) -> int:
        """See `StateStore`."""
        check_prefix(prefix)
        return await self._in_thread(lambda: sum(_size(_path(self._blobs, key)) for key in _walk(self._blobs, prefix)))

    async def delete_blobs(self, prefix: str) -> None:
        """See `StateStore`."""
        check_prefix(prefix)
        await self._in_thread(lambda: self._delete_blobs(prefix))

    async def prove_writable(self) -> None:
        """See `StateStore`. Does not create the fallback in the user's data folder."""
        await self._in_thread(self._prove_if_created)

    async def close(self) -> None:
        """Wait for writes under way."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread of the store. Raises StateUnavailable for errors of the file system."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._if_usable, work)
        except AnyclassError:
            raise
        except (OSError, filelock.Timeout, RuntimeError) as exc:  # RuntimeError: the executor was shut down
            # Log only the error's type and code: its message contains paths.
            code = errno.errorcode.get(exc.errno or 0, "") if isinstance(exc, OSError) else ""
            hint = "" if self._asked_for else "; set ANYCLASS_STATE_URL to a place that can be written to"
            _LOG.warning("the state directory failed: %s%s", f"{type(exc).__name__} {code}".strip(), hint)
            raise StateUnavailable("The state store cannot be used at the moment; try again later.") from exc

    def _if_usable(self, work: Callable[[], T]) -> T:
        """Run `work` if the directory is usable; if it was not, check again: it may have been created since."""
        if self._missing:
            if not self._could_keep():
                raise StateUnavailable(
                    "This server has no usable state store; its operator can set ANYCLASS_STATE_URL.", lasting=True
                )
            self._missing = False
        return work()

    def _could_keep(self) -> bool:
        """Return whether the store could write. Creates no folder."""
        try:
            if self._root.exists():
                self._prove_writable()
                return True
            nearest = next(folder for folder in self._root.parents if folder.exists())
        except OSError:
            return False
        return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)

    def _prove_if_created(self) -> None:
        if self._asked_for or self._root.exists():
            self._prove_writable(65_536)

    def _prove_writable(self, size: int = 0) -> None:
        """Write and delete a file; an empty one fits on a full disk, on which the service still starts."""
        probe = self._root / f"{_TEMPORARY}{uuid.uuid4().hex}"
        _make_folder(self._root)
        try:
            with probe.open("xb") as file:
                file.write(bytes(size))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)

    def _tidy(self) -> None:
        for folder, _, files in os.walk(self._root):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    path = Path(folder, name)
                    if name.startswith(_TEMPORARY) and path.stat().st_mtime < time.time() - _ABANDONED_S:
                        path.unlink()

    def _get(self, key: str) -> VersionedValue | None:
        content = _read(_path(self._values, key), key)
        if content is None:
            return None
        version, separator, value = content.partition(b"\n")
        if not separator:
            raise corrupt(key)
        return VersionedValue(value, version.decode("ascii", "replace"))

    def _put(self, key: str, value: bytes, expected: str | None) -> str | None:
        with self._locked(key):
            if self._version(key) != expected:
                return None
            version = new_version()
            _write(_path(self._values, key), seal(version.encode() + b"\n" + value))
            return version

    def _delete(self, key: str, expected: str) -> bool:
        with self._locked(key):
            if self._version(key) != expected:
                return False
            path = _path(self._values, key)
            path.unlink()
            _sync_folder(path.parent)
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
            _path(self._blobs, key).unlink(missing_ok=True)
        top = self._blobs / prefix
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):  # a file was just added to it, or it is gone
                Path(folder).rmdir()


def _path(root: Path, key: str) -> Path:
    return root / (key + _FILE_SUFFIX)


def _walk(root: Path, prefix: str) -> Iterator[str]:
    """Yield the keys of the files under `prefix`, in no order."""
    for folder, _, files in os.walk(root / prefix):
        for name in files:
            if name.endswith(_FILE_SUFFIX) and not name.startswith(_TEMPORARY):
                yield Path(folder, name.removesuffix(_FILE_SUFFIX)).relative_to(root).as_posix()


def _size(path: Path) -> int:
    try:
        return max(0, path.stat().st_size - SEAL_BYTES)
    except FileNotFoundError:
        return 0


def _read(path: Path, key: str) -> bytes | None:
    try:
        sealed = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return unseal(key, sealed)


def _write(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably."""
    for attempt in range(_ATTEMPTS):
        _make_folder(path.parent)
        temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except FileNotFoundError:
            # Deleting blobs also removes empty folders, and has just removed this one.
            if attempt == _ATTEMPTS - 1:
                raise
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        else:
            _sync_folder(path.parent)
            return


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, durably."""
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
