"""Whole runs in several processes."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from rich.console import Console
from safetensors.torch import load_file

from model_export.cli import app
from model_export.cli.training import _repeated as repeated
from model_export.training.run import train
from tests.support.pairs import recipe_text, write_pairs
from tests.support.places import ROOT
from tests.support.ranks import on_ranks, outcomes_on_ranks
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

VIT = {"kind": '"vit"', "tower": "patch_size = 8\nwidth = 32\nlayers = 1\nheads = 2"}
STEPS = 30

KILLS = int(os.environ.get("KILLS", "2"))
"""Kills that a run survives in a test; `make kill-ranks` sets it to 10."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pairs, and a recipe of 30 steps of 12 with a checkpoint at 10 and 20."""
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "recipe.toml"
    pairs = write_pairs(folder / "pairs.parquet", 134)  # every tenth row is held out
    path.write_text(recipe_text([pairs], **VIT, batch_size="12", epochs="3", checkpoint_every="10"), "utf-8")
    return path


def train_part(recipe: Path, run: Path, **options: Any) -> str:
    """Train on this rank, and return the console's text."""
    console = Console(file=io.StringIO(), width=200)
    train(recipe, out=run, device="cpu", console=console, **options)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """Train on three ranks, undisturbed. Not to be written to."""
    run = recipe.parent / "three"
    first, *others = on_ranks(3, train_part, recipe, run)
    assert "30 steps of 12 on cpu, 3 processes" in first
    assert "step 30: zero-shot on pairs, 13 held-out pictures of 4 classes: top-1" in first
    assert ["", ""] == others
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Read a run's weights."""
    return load_file(run / "model.safetensors")


def with_broken_pictures(recipe: Path, path: Path, rows: list[int]) -> Path:
    """Write the recipe's pairs to another file, without the pictures of some rows."""
    table = pq.read_table(recipe.parent / "pairs.parquet").to_pydict()
    for row in rows:
        table["image"][row] = b"no picture"
    pq.write_table(pa.table(table), path, row_group_size=16)
    return path


def metrics(run: Path) -> list[dict[str, float]]:
    """Read a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def losses(run: Path) -> list[float]:
    """Read the loss of each step."""
    return [line["loss"] for line in metrics(run) if "loss" in line]


def assert_close(one: Path, other: Path, *, exactly: bool) -> None:
    """Compare the weights of two runs: bit for bit, or to 1e-5."""
    expected, actual = weights(one), weights(other)
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        if exactly:
            assert torch.equal(tensor, actual[name]), name
        # A softmax does not see a key's bias: its gradient is rounding alone, which Adam scales to full steps.
        elif "k_proj.bias" not in name:
            torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-5)


def test_three_processes_train_as_one(recipe: Path, whole: Path) -> None:
    """The same losses, weights and files; one of them reports, of all pairs."""
    alone = recipe.parent / "one"
    train_part(recipe, alone)
    assert STEPS == len(losses(alone))
    assert losses(alone) == pytest.approx(losses(whole), abs=1e-5)
    assert_close(alone, whole, exactly=False)
    assert {path.name for path in alone.iterdir()} == {path.name for path in whole.iterdir()}


def cut_back(whole: Path, run: Path) -> Path:
    """Copy a run as it was after its tenth step."""
    shutil.copytree(whole, run)
    (run / "model.safetensors").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    return run


def test_a_run_goes_on_with_the_same_bits_on_as_many_ranks(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """Three ranks: the order in which they add gradients is the same after a resumption."""
    run = cut_back(whole, tmp_path / "run")
    first, *_ = on_ranks(3, train_part, recipe, run, resume=True)
    assert "from step 10" in first
    assert_close(whole, run, exactly=True)
    assert losses(whole) == losses(run)


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_goes_on_with_another_number_of_ranks(recipe: Path, whole: Path, tmp_path: Path, size: int) -> None:
    """The batches do not depend on it; weights differ by the order of additions alone."""
    run = cut_back(whole, tmp_path / "run")
    on_ranks(size, train_part, recipe, run, auto_resume=True)
    assert_close(whole, run, exactly=False)


class Stopping(io.StringIO):
    """A terminal at which Ctrl-C is pressed when it shows a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def write(self, shown: str) -> int:
        """Raise what Ctrl-C raises."""
        if self.text in shown:
            raise KeyboardInterrupt
        return super().write(shown)


def test_200_steps_on_another_number_of_ranks_give_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    """To 1e-5: the difference by rounding does not grow into another model."""
    path = tmp_path / "recipe.toml"
    pairs = recipe.parent / "pairs.parquet"
    path.write_text(recipe_text([pairs], **VIT, batch_size="12", epochs="22", checkpoint_every="20"), "utf-8")
    one, two = tmp_path / "one", tmp_path / "two"
    with pytest.raises(KeyboardInterrupt):
        train(path, out=one, device="cpu", console=Console(file=Stopping("step 21/220"), width=200))
    shutil.copytree(one, two)

    train_part(path, one, resume=True)
    first, _ = on_ranks(2, train_part, path, two, resume=True)

    assert "2 processes, from step 20" in first
    assert losses(one) == pytest.approx(losses(two), abs=1e-5)
    assert_close(one, two, exactly=False)


def test_a_finished_run_is_left_as_it_is_by_auto_resume(recipe: Path, whole: Path) -> None:
    """A job that is started again after its end succeeds at once."""
    before = (whole / "model.safetensors").stat().st_mtime_ns
    assert "is finished already" in train_part(recipe, whole, auto_resume=True)
    assert before == (whole / "model.safetensors").stat().st_mtime_ns


def test_rows_of_all_ranks_are_counted(recipe: Path, tmp_path: Path) -> None:
    """One list has the broken rows that each passed over; shares and budget are those of one process."""
    pairs = with_broken_pictures(recipe, tmp_path / "pairs.parquet", [41, 87, 122])
    path = tmp_path / "recipe.toml"
    text = recipe_text([pairs], **VIT, batch_size="12", epochs="2", max_broken="0.1")
    path.write_text(text.replace("log_every = 1", "log_every = 7"), "utf-8")
    alone, together = tmp_path / "alone", tmp_path / "together"
    train_part(path, alone)
    on_ranks(2, train_part, path, together)
    rows = [
        sorted(json.loads(line)["row"] for line in (run / "broken.jsonl").read_text("utf-8").split("\n") if line)
        for run in (alone, together)
    ]
    assert [41, 87, 122] == rows[0] == rows[1]
    shares = [[line["broken"] for line in metrics(run) if "broken" in line] for run in (alone, together)]
    assert shares[0] == shares[1]
    assert max(shares[0]) > 0

    path.write_text(path.read_text("utf-8").replace("max_broken = 0.1", "max_broken = 0.01"), "utf-8")
    failures = [text for fine, text in outcomes_on_ranks(2, train_part, path, tmp_path / "few") if not fine]
    assert 2 == len(failures)
    (said,) = [text for text in failures if "OtherRankError" not in text]
    assert "rows are broken, more than data.max_broken = 0.01" in said


@contextmanager
def started(*command: object) -> Iterator[subprocess.Popen[str]]:
    """Start a command; at the end of the block, nothing that it started is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "300"},
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # torch starts each rank in a session of its own, and ends it when asked to


def ranks_of(launcher: subprocess.Popen[str]) -> set[int]:
    """Return the process ids of the ranks that a launcher has started and that still run."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text("utf-8").split()
    found = set()
    for pid in children:
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"model_export" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(int(pid))
    return found


def steps_logged(run: Path) -> int:
    """Return the number of steps that a run has logged, also while it writes."""
    path = run / "metrics.jsonl"
    return path.read_text("utf-8").count('"loss"') if path.exists() else 0


def kill_one(launcher: subprocess.Popen[str], run: Path, *, after: int, killed: set[int] | None = None) -> None:
    """Kill a random rank of two with -9 when a run has logged some steps; `killed` are ranks of earlier starts."""
    ranks = set[int]()

    def ready() -> bool:
        ranks.clear()
        ranks.update(ranks_of(launcher) - (killed or set()))
        return launcher.poll() is not None or (len(ranks) == 2 and steps_logged(run) > after)

    wait_until(ready, within_s=120)
    assert 2 == len(ranks)
    os.kill(random.choice(sorted(ranks)), signal.SIGKILL)
    assert not (run / "model.safetensors").exists()
    if killed is not None:
        killed |= ranks


@pytest.fixture(scope="module")
def long_recipe(recipe: Path) -> Path:
    """Write a recipe of many steps, some of which are still to come when a test notices the first."""
    path = recipe.parent / "long.toml"
    pairs = recipe.parent / "pairs.parquet"
    epochs = str(8 + 4 * KILLS)  # of ten steps
    path.write_text(recipe_text([pairs], **VIT, batch_size="12", epochs=epochs, checkpoint_every="10"), "utf-8")
    return path


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="the ranks are found in /proc")


@needs_proc
def test_a_killed_rank_ends_all_with_one_line(long_recipe: Path, tmp_path: Path) -> None:
    """Within five seconds: the line names the rank and the signal."""
    run = tmp_path / "run"
    with started("model_export", "train", long_recipe, "--out", run, "--processes", 2) as launcher:
        kill_one(launcher, run, after=12)
        killed = time.monotonic()
        _, errors = launcher.communicate(timeout=60)
        took = time.monotonic() - killed
    (line,) = errors.splitlines()
    assert line.startswith("error: rank ")
    assert " of 2 was killed by SIGKILL (out of memory?); the last checkpoint is kept" in line
    assert 1 == launcher.returncode
    assert took < 5


@needs_proc
@pytest.mark.timeout(400 + 100 * KILLS)
def test_a_run_whose_ranks_are_killed_goes_on_by_itself(long_recipe: Path, tmp_path: Path) -> None:
    """With `--restarts`, the weights are the bits of an undisturbed run, however often a rank was killed."""
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    on_ranks(2, train_part, long_recipe, undisturbed)
    command = ("model_export", "train", long_recipe, "--out", run, "--processes", 2, "--restarts", KILLS)
    killed = set[int]()
    with started(*command) as launcher:
        for _ in range(KILLS):
            kill_one(launcher, run, after=steps_logged(run) + 12, killed=killed)
        output, errors = launcher.communicate(timeout=200)
    assert 0 == launcher.returncode, errors
    assert "" == errors
    notes = [line for line in output.splitlines() if line.startswith("note: started again after a failure")]
    assert [f"note: started again after a failure (restart {restart})" for restart in range(1, KILLS + 1)] == notes
    assert 2 * KILLS == len(killed)
    assert_close(undisturbed, run, exactly=True)
    assert losses(undisturbed) == losses(run)


@needs_proc
def test_too_many_broken_pictures_end_every_rank(recipe: Path, tmp_path: Path) -> None:
    """Whichever ranks read them: one line names the file and the row, and nothing is tried again."""
    pairs = with_broken_pictures(recipe, tmp_path / "pairs.parquet", [41, 87, 122])
    path, run = tmp_path / "recipe.toml", tmp_path / "run"
    path.write_text(recipe_text([pairs], **VIT, batch_size="12", epochs="20", max_broken="0.01"), "utf-8")
    with started("model_export", "train", path, "--out", run, "--processes", 2, "--restarts", 2) as launcher:
        ranks = set[int]()

        def seen() -> bool:
            ranks.update(ranks_of(launcher))
            return len(ranks) == 2 or launcher.poll() is not None

        wait_until(seen)
        output, errors = launcher.communicate(timeout=200)
    (line,) = errors.splitlines()
    assert re.match(rf"error: {pairs}, row (41|87|122): .*; \d of \d+ rows are broken, more than data.max_broken", line)
    assert 2 == launcher.returncode
    assert "started again" not in output
    assert 2 == len(ranks)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    listed = [json.loads(each)["row"] for each in (run / "broken.jsonl").read_text("utf-8").split("\n") if each]
    assert {41, 87, 122} >= set(listed)
    assert len(listed) >= 2


def test_each_process_gets_the_options_of_the_command() -> None:
    """The processes get every option except those for the number of processes."""
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    given = ["recipe.toml", "--out", "runs/a b", "--from", "hub/id", "--activation", "gelu", "--auto-resume"]
    context = command.make_context("train", [*given, "--threads", "2", "--processes", "4", "--restarts", "3"])

    name, *arguments = repeated(context)

    assert "train" == name
    again = command.make_context(name, arguments).params
    assert {**context.params, "processes": 1, "restarts": 0} == again


def test_under_torchrun_a_rank_that_fails_gives_its_reason_once(recipe: Path, tmp_path: Path) -> None:
    """A broken picture in one rank's part: its file and row, and no traceback of ours."""
    pairs = with_broken_pictures(recipe, tmp_path / "pairs.parquet", [41])
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text([pairs], **VIT, batch_size="12"), "utf-8")
    torchrun = ("torch.distributed.run", "--nproc-per-node", 2, "-m")
    with started(*torchrun, "model_export", "train", path, "--out", tmp_path / "run") as launcher:
        _, errors = launcher.communicate(timeout=100)
    assert 1 == launcher.returncode
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert f"{pairs}, row 41:" in line
    assert "gloo" not in errors
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_bad_input_is_one_line_and_exit_code_2(recipe: Path, tmp_path: Path) -> None:
    """Whichever rank meets it first; it would be bad again, so nothing is started again, and nothing is written."""
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.read_text("utf-8").replace("batch_size = 12", "batch_size = 13"), "utf-8")
    command = ("model_export", "train", path, "--out", tmp_path / "run", "--processes", 2, "--restarts", 3)
    with started(*command) as launcher:
        output, errors = launcher.communicate(timeout=100)
    assert 2 == launcher.returncode
    assert ["error: optim.batch_size 13 cannot be divided among 2 processes; 12 and 14 can"] == errors.splitlines()
    assert "" == output
    assert not (tmp_path / "run").exists()
