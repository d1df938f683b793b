"""Tests of checkpoints: written in the background by each rank, read on any number of them, and never if corrupt."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from model_export.errors import TrainingError
from model_export.training.checkpoint_writer import CheckpointWriter
from model_export.training.checkpoints import Checkpoint, State, newest_step, open_newest
from model_export.training.joining import joined
from model_export.training.ranks import ALONE, Ranks
from model_export.training.run import train
from tests.model_export.training.test_run import VIT, quiet, recipe
from tests.support.ranks import on_ranks, outcomes_on_ranks


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Make tensors of several types, orders in memory and sizes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "model/a": torch.randn(7, 4, generator=generator),
        "model/kernel": torch.randn(4, 3, 2, 2, generator=generator).to(memory_format=torch.channels_last),
        "model/count": torch.tensor(seed),
        "model/half": torch.randn(5, generator=generator).bfloat16(),
        "optimizer/AdamW/a/step": torch.tensor(3.0),
        "optimizer/AdamW/a/exp_avg": torch.randn(7, 4, dtype=torch.float64, generator=generator),
    }


def state(step: int) -> State:
    """Make a state."""
    return State(
        step=step,
        recipe_digest="recipe",
        data_digests=("data",),
        seconds=1.25,
        tally={"pairs": 3},
        scaler={"scale": 65536.0, "growth_interval": 2000},
    )


@contextmanager
def writer(folder: Path, ranks: Ranks = ALONE, say: Callable[[str], None] = print) -> Iterator[CheckpointWriter]:
    """Open a writer, and close it."""
    opened = CheckpointWriter(folder, ranks, say)
    try:
        yield opened
    finally:
        opened.close()


def write(folder: Path, *steps: int) -> None:
    """Write checkpoints, whose tensors follow from the step."""
    with writer(folder) as opened:
        for step in steps:
            opened.begin(state(step), tensors(step))


def assert_holds(checkpoint: Checkpoint, expected: dict[str, Tensor]) -> None:
    """Compare all tensors of a checkpoint, bit for bit."""
    found = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    checkpoint.load(found)
    assert {name: tensor.shape for name, tensor in expected.items()} == dict(checkpoint.sizes)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_the_last_two_are_kept_and_read_as_they_were_written(tmp_path: Path) -> None:
    """Tensors bit for bit, numbers with their types; `sha256sum --check` could verify the files."""
    write(tmp_path, 4, 8, 12)
    assert ["step-00000008", "step-00000012"] == sorted(path.name for path in tmp_path.iterdir())
    assert 12 == newest_step(tmp_path)
    checkpoint = open_newest(tmp_path, ALONE, pytest.fail)
    assert state(12) == checkpoint.state
    assert isinstance(checkpoint.state.scaler["growth_interval"], int)
    assert_holds(checkpoint, tensors(12))
    lines = (checkpoint.path / "SHA256SUMS").read_text("utf-8").splitlines()
    files = {path.name: path for path in checkpoint.path.iterdir() if path.name != "SHA256SUMS"}
    assert sorted(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}" for name, path in files.items()) == (
        sorted(lines)
    )


def test_the_state_may_change_as_soon_as_it_is_copied(tmp_path: Path) -> None:
    """The checkpoint holds the values of its step, also if the same memory is copied for the second time."""
    own = tensors()
    expected = {}
    with writer(tmp_path) as opened:
        for step in (1, 2):
            expected[step] = {name: tensor.clone() for name, tensor in own.items()}
            opened.begin(state(step), own)
            opened.copied()
            for tensor in own.values():
                tensor.add_(1)
    assert_holds(open_newest(tmp_path, ALONE, pytest.fail), expected[2])
    shutil.rmtree(tmp_path / "step-00000002")
    assert_holds(open_newest(tmp_path, ALONE, pytest.fail), expected[1])


def test_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    """By name, before any is changed."""
    write(tmp_path, 4)
    checkpoint = open_newest(tmp_path, ALONE, pytest.fail)
    for wrong, message in (("model/b", "model/b is missing"), ("model/a", r"has the shape \(7, 4\), not \(1,\)")):
        own = {"model/count": torch.tensor(-1), wrong: torch.zeros(1)}
        with pytest.raises(TrainingError, match=message):
            checkpoint.load(own)
        assert -1 == own["model/count"].item()


def divided(ranks: Ranks, seed: int) -> dict[str, Tensor]:
    """Divide the larger tensors among the ranks."""
    whole = tensors(seed)
    if ranks.size > 1:
        mesh = init_device_mesh("cpu", (ranks.size,))
        for name in ("model/a", "optimizer/AdamW/a/exp_avg"):
            whole[name] = distribute_tensor(whole[name], mesh, [Shard(0)])
    return whole


def write_on_ranks(folder: Path) -> list[str]:
    """Write two checkpoints of a divided model; return the lines that were said."""
    said: list[str] = []
    with joined("cpu") as ranks, writer(folder, ranks, said.append) as opened:
        for step in (4, 8):
            opened.begin(state(step), divided(ranks, step))
            opened.finish()
    return said


def holds_on_ranks(folder: Path) -> bool:
    """Read the newest checkpoint into a divided model, and compare this rank's parts."""
    with joined("cpu") as ranks:
        checkpoint = open_newest(folder, ranks, pytest.fail)
        expected, found = divided(ranks, 8), divided(ranks, 1)
        checkpoint.load(found)
        return all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.parametrize(("writing", "reading"), [(2, [1, 3]), (1, [2])])
def test_a_checkpoint_is_read_on_any_number_of_ranks(tmp_path: Path, writing: int, reading: list[int]) -> None:
    """Each rank writes a file of its own; divided tensors are divided again."""
    assert [[]] * writing == on_ranks(writing, write_on_ranks, tmp_path)
    files = sorted(path.name for path in (tmp_path / "step-00000008").iterdir() if path.suffix == ".distcp")
    assert [f"__{rank}_0.distcp" for rank in range(writing)] == files
    for size in reading:
        assert [True] * size == on_ranks(size, holds_on_ranks, tmp_path)


FILES = (".metadata", "SHA256SUMS", "__0_0.distcp", "state.json")


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Drop the second half."""
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=["a flipped bit", "truncated", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_a_corrupt_checkpoint_is_passed_over_in_one_line(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """For the one before, whichever file it is; a run that goes on from there replaces it."""
    write(tmp_path, 4, 8)
    newest = tmp_path / "step-00000008"
    assert sorted(FILES) == sorted(path.name for path in newest.iterdir())
    damage(newest / name)
    said: list[str] = []
    checkpoint = open_newest(tmp_path, ALONE, said.append)
    assert_holds(checkpoint, tensors(4))
    (line,) = said
    assert line.startswith(f"note: {newest}: ")
    assert line.endswith(": it is passed over for the one before")
    assert name in line or name == "SHA256SUMS"

    write(tmp_path, 6)
    assert ["step-00000004", "step-00000006"] == sorted(path.name for path in tmp_path.iterdir())
    write(tmp_path, 8)
    assert_holds(open_newest(tmp_path, ALONE, pytest.fail), tensors(8))


def test_without_a_whole_checkpoint_the_run_does_not_start(tmp_path: Path) -> None:
    """Nothing corrupt is loaded; the message says what is wrong and what to do."""
    write(tmp_path, 4)
    flip(tmp_path / "step-00000004" / "__0_0.distcp")
    with pytest.raises(TrainingError, match=r"no checkpoint is whole \(.*__0_0\.distcp is corrupt .*; begin a new run"):
        open_newest(tmp_path, ALONE, lambda _: None)


def checked_on_ranks(folder: Path) -> tuple[int, list[str]]:
    """Open the newest checkpoint; return its step and the lines that were said."""
    said: list[str] = []
    with joined("cpu") as ranks:
        return open_newest(folder, ranks, said.append).state.step, said


def test_ranks_agree_on_the_checkpoint(tmp_path: Path) -> None:
    """Each verifies some of the files, and all pass over the one in which any is corrupt."""
    on_ranks(2, write_on_ranks, tmp_path)
    (tmp_path / "step-00000008" / "__1_0.distcp").unlink()
    for step, said in on_ranks(2, checked_on_ranks, tmp_path):
        assert 4 == step
        assert 1 == len(said)
        assert "__1_0.distcp cannot be read (No such file or directory)" in said[0]


def test_metadata_are_never_executed(tmp_path: Path) -> None:
    """Not even if their digest is right."""
    write(tmp_path, 4)
    folder = tmp_path / "step-00000004"
    metadata, sums = folder / ".metadata", folder / "SHA256SUMS"
    before = hashlib.sha256(metadata.read_bytes()).hexdigest()
    metadata.write_bytes(f"cos\nmkdir\n(V{tmp_path / 'harm'}\ntR.".encode())
    after = hashlib.sha256(metadata.read_bytes()).hexdigest()
    sums.write_text(sums.read_text("utf-8").replace(before, after), "utf-8")
    with pytest.raises(TrainingError, match=r"\.metadata names os\.mkdir, which no checkpoint does"):
        open_newest(tmp_path, ALONE, lambda _: None)
    assert not (tmp_path / "harm").exists()


def write_and_be_killed(folder: Path, event: str, ending: str) -> None:
    """Write a checkpoint, and be killed with -9 as soon as a file or folder of some name is touched."""

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        if name == event and any(str(argument).endswith(ending) for argument in arguments):
            os.kill(os.getpid(), signal.SIGKILL)

    write(folder, 4)
    sys.addaudithook(watch)
    write(folder, 8)


@pytest.mark.parametrize(
    ("event", "ending"),
    [
        ("open", "step-00000008.partial/__0_0.distcp.sha256"),
        ("open", "step-00000008.partial/SHA256SUMS"),
        ("os.rename", "step-00000008"),
    ],
    ids=["before its digest", "before the list of digests", "before its name"],
)
def test_killed_while_it_writes_a_run_has_the_checkpoint_before(tmp_path: Path, event: str, ending: str) -> None:
    """A folder without its name is none, and the next one replaces it."""
    ((fine, text),) = outcomes_on_ranks(1, write_and_be_killed, tmp_path, event, ending)
    assert (False, "the process ended without an answer") == (fine, text)
    assert ["step-00000004", "step-00000008.partial"] == sorted(path.name for path in tmp_path.iterdir())
    assert 4 == newest_step(tmp_path)
    assert_holds(open_newest(tmp_path, ALONE, pytest.fail), tensors(4))
    write(tmp_path, 8)
    assert ["step-00000004", "step-00000008"] == sorted(path.name for path in tmp_path.iterdir())
    assert_holds(open_newest(tmp_path, ALONE, pytest.fail), tensors(8))


def write_too_much(folder: Path) -> list[str]:
    """Write a checkpoint, then one that does not fit on the disk, and one that does; return the lines."""
    said: list[str] = []
    with joined("cpu") as ranks, writer(folder, ranks, said.append) as opened:
        opened.begin(state(4), tensors(4))
        opened.finish()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if ranks.rank == ranks.size - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        opened.begin(state(8), {f"model/{i}": torch.zeros(200_000) for i in range(ranks.size)})
        opened.finish()
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        ranks.wait()
        assert ["step-00000004"] == [path.name for path in folder.iterdir()]
        ranks.wait()
        opened.begin(state(12), tensors(12))
    return said


@pytest.mark.parametrize("size", [1, 2])
def test_a_full_disk_costs_one_line(tmp_path: Path, size: int) -> None:
    """Training goes on, the checkpoint before stays, and the next one is written; on whichever rank it was."""
    line = (
        "note: the checkpoint of step 8 could not be written (File too large); training goes on, and the one of step 4 "
        "is kept"
    )
    assert [[line]] * size == on_ranks(size, write_too_much, tmp_path)
    assert_holds(open_newest(tmp_path, ALONE, pytest.fail), tensors(12))


def test_a_run_goes_on_exactly_from_the_checkpoint_before_a_corrupt_one(tmp_path: Path) -> None:
    """Its weights are the bits of an undisturbed run."""
    path = recipe(tmp_path, rows=160, epochs="1", checkpoint_every="3", **VIT)
    run = train(path, out=tmp_path / "run", device="cpu", console=quiet())
    whole = load_file(run / "model.safetensors")
    (run / "model.safetensors").unlink()
    flip(run / "checkpoints" / "step-00000006" / "__0_0.distcp")
    console = quiet()
    train(path, out=run, resume=True, device="cpu", console=console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert 1 == output.count("step-00000006: __0_0.distcp is corrupt")
    assert "from step 3" in output
    again = load_file(run / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"auto_resume": True}])
def test_checkpoints_of_older_versions_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """In one line that names the file, and nothing is written over it."""
    old = tmp_path / "run" / "checkpoints" / "step-00000004.pt"
    old.parent.mkdir(parents=True)
    old.touch()
    with pytest.raises(TrainingError, match=r"step-00000004\.pt: is a checkpoint of an older version, .* with --out"):
        train(recipe(tmp_path, rows=80, **VIT), out=tmp_path / "run", device="cpu", console=quiet(), **options)
    assert [old] == list(old.parent.iterdir())
