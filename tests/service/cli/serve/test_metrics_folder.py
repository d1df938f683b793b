import os
import time
from pathlib import Path

import pytest

from service.cli.serve.metrics_folder import enter, leave, make_folder
from service.monitoring.worker_metrics import VARIABLE


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the test's folder as the system's temporary one."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "")


def old(folder: Path) -> Path:
    """Make a folder look as if nothing was added to it for a while."""
    os.utime(folder, (time.time() - 1_000,) * 2)
    return folder


def test_the_last_process_removes_the_folder() -> None:
    """The supervisor may be the last or not: it may have been killed."""
    folder = make_folder()
    assert str(folder) == os.environ[VARIABLE]
    supervisor = enter(folder, "supervisor")
    (folder / "worker-1.present").touch()  # of a worker that was killed
    supervisor.release()
    worker = enter(folder, "worker-0")
    leave(folder, worker)
    assert not folder.exists()


def test_a_start_removes_what_killed_services_left(tmp_path: Path) -> None:
    """Not the folder of one that lives, that just starts, or of which nothing is known."""
    dead, living, young, foreign = (make_folder() for _ in range(4))
    for folder in (dead, young):
        (folder / "worker-1.present").touch()
    presence = enter(living, "supervisor")
    for folder in (dead, living, foreign):
        old(folder)
    (tmp_path / "anyclass-metrics-link").symlink_to(dead)
    make_folder()
    assert [False, True, True, True] == [folder.exists() for folder in (dead, living, young, foreign)]
    presence.release()
