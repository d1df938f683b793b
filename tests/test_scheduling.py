"""The suite's own scheduling: a process that dies costs one test, and the run comes to its end."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.support.places import ROOT

CONFTEST = """
import pathlib
import pytest
from tests.support.scheduling import FileByFile

def pytest_xdist_make_scheduler(config, log):
    config.option.loadscopereorder = False
    return FileByFile(config, log)

@pytest.fixture(autouse=True)
def _noted(request):
    with (pathlib.Path(__file__).parent / "begun.txt").open("a") as file:
        file.write(request.node.nodeid + "\\n")
"""
TESTS = """
import os, pytest

@pytest.mark.parametrize("number", range(6))
def test_one(number):
    if {dies} and number == 3:
        os._exit(1)
"""


def test_a_process_that_dies_costs_one_test(tmp_path: Path) -> None:
    """Every test begins once: those that its process had finished, and those that it still had."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for number in range(8):
        (tmp_path / f"test_file_{number}.py").write_text(TESTS.format(dies=number == 4))

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--numprocesses=2", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert "crashed while running 'test_file_4.py::test_one[3]'" in done.stdout, done.stdout + done.stderr
    assert "1 failed, 47 passed" in done.stdout
    begun = Counter((tmp_path / "begun.txt").read_text().splitlines())
    assert set(begun.values()) == {1}
    assert len(begun) == 48
