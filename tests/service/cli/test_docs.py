"""The examples of docs/cli.md, run as they are written, with the demo model."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.model.manifest import DEMO_BUNDLE
from tests.support.commands import anyclass
from tests.support.http_server import http_server
from tests.support.places import ROOT

PAGE = (ROOT / "docs/cli.md").read_text("utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_works_as_written(tmp_path: Path) -> None:
    """Each block in a shell that stops at the first command that fails; nothing is said on standard error but ids."""
    assert 4 == len(BLOCKS)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    outputs = []
    with http_server(DEMO_BUNDLE, tmp_path, env={"ANYCLASS_STATE_URL": str(tmp_path / "state")}) as server:
        for block in BLOCKS:
            here = block.replace("http://127.0.0.1:8000", server.url)
            script = ["bash", "-euo", "pipefail", "-c", here]
            done = subprocess.run(
                script, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=250, check=False
            )
            assert 0 == done.returncode, done.stderr
            assert "Error" not in done.stderr
            outputs.append(done.stdout)
    table, service, sets, batches = outputs
    assert re.search(r"examples/cat\.jpg  demo\n cat +9\d\.\d%", table)
    assert '{"image": "examples/cup.jpg", "model": "demo"' in table
    assert 4 == len((tmp_path / "results.csv").read_text().splitlines())
    assert re.search(r"examples/cat\.jpg  demo\n cat +9\d\.\d%", service)
    assert "things is deleted." in sets
    assert re.search(r"batch_\w+  completed, 3 of 3 answered, 0 failed", batches)
    assert 3 == len((tmp_path / "answers.jsonl").read_text().splitlines())


@pytest.mark.parametrize("command", [("classify",), ("label-sets", "put"), ("batches", "create")])
def test_every_option_of_the_page_is_one(command: tuple[str, ...]) -> None:
    """What the page names in its examples is in the help, and each help has examples."""
    shown = anyclass(*command, "--help", COLUMNS="200", TERM="dumb").stdout
    assert "Examples" in shown
    named = {
        option
        for block in BLOCKS
        for line in block.splitlines()
        if f"anyclass {' '.join(command)} " in line
        for option in re.findall(r"(?<= )--[a-z-]+", line)
    }
    assert named
    assert not [option for option in named if option not in shown]
