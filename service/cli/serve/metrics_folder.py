"""The folder in which worker processes count; the last of its processes removes it.

Each process holds a lock on a file of its own in the folder, which the system releases when the process ends, however
it ends. So any process can tell whether the folder is still used, also across containers that share a disk.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

import filelock

from service.errors import ConfigurationError
from service.monitoring.worker_metrics import VARIABLE

_PREFIX: Final = "anyclass-metrics-"
_PRESENT: Final = ".present"
_PATIENCE_S: Final = 5.0
_YOUNG_S: Final = 60.0
"""Age below which a folder may belong to a process that is just starting."""


def make_folder() -> Path:
    """Make the folder and name it to the workers; remove those that killed services left.

    Raises ConfigurationError if it cannot be made.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    except OSError as exc:
        raise ConfigurationError(f"Several workers need a temporary directory for their metrics: {exc}") from exc
    for left in folder.parent.glob(f"{_PREFIX}*"):
        if left != folder and _is_ours(left) and any(left.glob(f"*{_PRESENT}")):
            remove_unless_used(left)
    # The workers inherit it; prometheus-client reads it at its first import.
    os.environ[VARIABLE] = str(folder)
    return folder


def enter(folder: Path, name: str) -> filelock.BaseFileLock:
    """Mark the folder as used by the process `name`, until the lock is released; its successor takes the same name."""
    lock = filelock.FileLock(folder / f"{name}{_PRESENT}")
    lock.acquire(timeout=_PATIENCE_S)
    return lock


def leave(folder: Path, lock: filelock.BaseFileLock) -> None:
    """Release this process's mark, and remove the folder if no other process uses it: the supervisor was killed."""
    lock.release()
    remove_unless_used(folder)


def remove_unless_used(folder: Path) -> None:
    """Remove a folder without a living process."""
    try:
        # One at a time, or two processes that end together would take each other for alive.
        with filelock.FileLock(folder / "leaving.lock", timeout=_PATIENCE_S):
            for path in folder.glob(f"*{_PRESENT}"):
                with filelock.FileLock(path, timeout=0):
                    pass
            shutil.rmtree(folder, ignore_errors=True)
    except (filelock.Timeout, OSError):
        return


def _is_ours(folder: Path) -> bool:
    """Return whether a folder was made by this user's service, some time ago."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return mine and not folder.is_symlink() and status.st_mtime < time.time() - _YOUNG_S
