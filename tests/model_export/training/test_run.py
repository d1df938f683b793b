from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from model_export.errors import DataError, RecipeError, SourceError, TrainingError
from model_export.training.progress import duration
from model_export.training.run import train
from model_export.training.run_folder import kept_to_one_training
from tests.support.pairs import break_pictures, recipe_text, write_pairs
from tests.support.places import ROOT
from tests.support.tars import write_tars

WHITENING = {"tower": 'stem = "whitening"\nstem_width = 24\nwidths = [16, 24]', "lr": "5e-3\nmuon_lr = 0.02"}
VIT = {"kind": '"vit"', "tower": "patch_size = 8\nwidth = 32\nlayers = 1\nheads = 2"}


def recipe(folder: Path, *, rows: int = 160, **overrides: str) -> Path:
    """Write a recipe for a tiny model, and its pairs if they are not there yet."""
    pairs = folder / "pairs.parquet"
    if not pairs.exists():
        write_pairs(pairs, rows)
    path = folder / "recipe.toml"
    path.write_text(recipe_text([pairs], **overrides), encoding="utf-8")
    return path


def quiet() -> Console:
    """Make a console that records its output."""
    return Console(file=io.StringIO(), width=200)


def metrics(run: Path) -> list[dict[str, float]]:
    """Read a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("tower", [{}, WHITENING, VIT], ids=["residual_conv", "whitening and muon", "vit"])
def test_it_learns_to_name_colours(tmp_path: Path, tower: dict[str, str]) -> None:
    """Trained on pictures and captions only, a model recognises held-out pictures by their class names."""
    console = quiet()
    run = train(
        recipe(tmp_path, rows=400, **{"epochs": "8", "lr": "5e-3", "precision": '"auto"', **tower}),
        out=tmp_path / "run",
        device="cpu",
        console=console,
    )

    accuracy = [line["pairs/top1"] for line in metrics(run) if "pairs/top1" in line]
    assert accuracy[-1] >= 0.9
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    assert losses[-1] < losses[0] / 2
    assert "zero-shot on pairs, 40 held-out pictures of 4 classes" in console.file.getvalue()  # type: ignore[attr-defined]
    assert {"config.json", "tokenizer.json", "model.safetensors", "recipe.toml", "metrics.jsonl", "tensorboard"} <= {
        path.name for path in run.iterdir()
    }
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))


SCRIPT = """
import sys
from pathlib import Path
from model_export.training.run import train
if __name__ == "__main__":
    train(Path(sys.argv[1]), out=Path(sys.argv[2]), device="cpu")
"""


def start(script: Path, recipe_path: Path, run: Path) -> subprocess.Popen[bytes]:
    """Train in a process of its own."""
    # In a group of its own, the loading workers die with it, as they would with the machine.
    return subprocess.Popen(
        [sys.executable, str(script), str(recipe_path), str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def steps_logged(run: Path) -> int:
    """Count the steps that a run has logged so far."""
    path = run / "metrics.jsonl"
    return path.read_text(encoding="utf-8").count('"loss"') if path.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["parquet", pytest.param("tar", marks=pytest.mark.long)])
def test_a_killed_run_resumes_exactly(tmp_path: Path, kind: str) -> None:
    """Killed with -9 in the middle of an epoch, with two loading workers: the resumed weights are the same bits."""
    recipe_path = recipe(
        tmp_path,
        rows=480,
        workers="2",
        epochs="2",
        checkpoint_every="10",
        precision='"auto"',
        phases="[{start = 0.0, size = 12}, {start = 0.6, size = 16}]",
        **WHITENING,
    )
    if kind == "tar":
        write_tars(tmp_path / "tars", [180, 120, 180])
        text = recipe_path.read_text("utf-8").replace(str(tmp_path / "pairs.parquet"), "tars/{00000..00002}.tar")
        recipe_path.write_text(text, "utf-8")
    script = tmp_path / "run_training.py"
    script.write_text(SCRIPT, encoding="utf-8")
    steps_per_epoch = 432 // 16

    train(recipe_path, out=tmp_path / "whole", device="cpu", console=quiet())

    cut = tmp_path / "cut"
    killed = start(script, recipe_path, cut)
    deadline = time.monotonic() + 300
    # Past the first checkpoint of the second epoch, and off its mark.
    while steps_logged(cut) < steps_per_epoch + 9 and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    stopped_after = steps_logged(cut)
    assert steps_per_epoch < stopped_after < 2 * steps_per_epoch, "the run was not killed in the middle of an epoch"
    assert not (cut / "model.safetensors").exists()

    console = quiet()
    train(recipe_path, out=cut, resume=True, device="cpu", console=console)
    (begun_at,) = map(int, re.findall(r"from step (\d+)", console.file.getvalue()))  # type: ignore[attr-defined]
    assert 0 == begun_at % 10  # at a checkpoint of the epoch in which it was killed
    assert steps_per_epoch < begun_at <= stopped_after

    expected = load_file(tmp_path / "whole" / "model.safetensors")
    actual = load_file(cut / "model.safetensors")
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, actual[name]), name
    losses = [[line["loss"] for line in metrics(run) if "loss" in line] for run in (tmp_path / "whole", cut)]
    assert losses[0] == losses[1]


def test_the_first_step_is_reported_at_once_with_an_estimate(tmp_path: Path) -> None:
    """Off a terminal too, however large `log_every` is; then each `log_every`-th step and the last."""
    path = recipe(tmp_path, rows=80, epochs="2")
    path.write_text(path.read_text("utf-8").replace("log_every = 1", "log_every = 5"), "utf-8")
    console = quiet()
    run = train(path, out=tmp_path / "run", device="cpu", console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    first = next(i for i, line in enumerate(lines) if line.startswith("step "))
    assert lines[first].startswith("step 1/8 ")
    assert re.fullmatch(r"about \d+ s for 7 more steps, if each takes \S+ s as this one", lines[first + 1])
    assert [0, 4, 7] == [line["step"] for line in metrics(run) if "loss" in line]


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (1500, "25 min"), (12_600, "3.5 h")])
def test_a_time_for_people(seconds: float, text: str) -> None:
    """Seconds, minutes or hours."""
    assert text == duration(seconds)


def test_a_default_size_far_above_the_pictures_draws_a_line(tmp_path: Path) -> None:
    """`kind = "vit"` alone means 224 pixels, on small pictures hours for nothing. A size that is set is meant."""
    path = recipe(
        tmp_path, kind='"vit"', tower="width = 8\nlayers = 1\nheads = 1", epochs="1", rows=32, batch_size="16"
    )
    chosen = path.read_text("utf-8")
    path.write_text(chosen.replace("image_size = 16", ""), "utf-8")
    console = quiet()
    train(path, out=tmp_path / "run", device="cpu", console=console)
    assert "note: model.image.image_size is 224, the default of vit, and the first picture has 16x16 pixels: " in (
        console.file.getvalue()  # type: ignore[attr-defined]
    )
    path.write_text(chosen.replace("image_size = 16", "image_size = 64"), "utf-8")
    console = quiet()
    train(path, out=tmp_path / "other", device="cpu", console=console)
    assert "note:" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_captions_need_no_classes(tmp_path: Path) -> None:
    """The column `label` may be missing, unless the recipe wants it in captions or names it."""
    path = recipe(tmp_path, rows=80, epochs="1")
    pairs = tmp_path / "pairs.parquet"
    pq.write_table(pq.read_table(pairs).drop(["label"]), pairs, row_group_size=16)
    console = quiet()
    run = train(path, out=tmp_path / "run", device="cpu", console=console)
    assert (run / "model.safetensors").is_file()
    assert "note: no column 'label': pairs with the same text mean the same" in console.file.getvalue()  # type: ignore[attr-defined]
    assert not [line for line in metrics(run) if "pairs/top1" in line]

    text = path.read_text("utf-8")
    path.write_text(text.replace("[captions]\n", "[captions]\nclass_name_share = 0.1\n"), "utf-8")
    with pytest.raises(DataError, match=r"no column 'label' .*captions\.class_name_share = 0"):
        train(path, out=tmp_path / "other", device="cpu", console=quiet())
    path.write_text(text.replace("[captions]\n", '[data.columns]\nlabel = "label"\n[captions]\n'), "utf-8")
    with pytest.raises(DataError, match="no column 'label' "):
        train(path, out=tmp_path / "other", device="cpu", console=quiet())


class InterruptedText(io.StringIO):
    """A stream on which Ctrl-C comes when it is written `words`, once."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def write(self, text: str) -> int:
        """Write, or raise."""
        if self._words in text and self._words:
            self._words = ""
            raise KeyboardInterrupt
        return super().write(text)


@pytest.mark.parametrize(
    ("step", "words"), [(6, "4 steps are kept. Continue, "), (2, "nothing is kept; the same command starts again")]
)
def test_an_interrupted_run_says_what_it_kept(tmp_path: Path, step: int, words: str) -> None:
    """Ctrl-C: the newest checkpoint and the command that continues, or that nothing is kept."""
    path = recipe(tmp_path, rows=160, epochs="1", checkpoint_every="4")
    out, stream = tmp_path / "run", InterruptedText(f"step {step}/")
    with pytest.raises(KeyboardInterrupt):
        train(path, out=out, device="cpu", console=Console(file=stream, width=200))
    assert words in stream.getvalue()
    resumes = step > 4
    assert (f"anyclass-export train {path} --out {out} --resume" in stream.getvalue()) == resumes
    train(path, out=out, resume=resumes, device="cpu", console=quiet())
    assert (out / "model.safetensors").is_file()


def test_threads_are_torchs(tmp_path: Path) -> None:
    """`threads` sets the number of threads that torch uses."""
    before = torch.get_num_threads()
    try:
        train(recipe(tmp_path, rows=32, epochs="1"), out=tmp_path / "run", device="cpu", threads=1, console=quiet())
        assert 1 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    """Batches follow from the step, not from the process that prepared them."""
    weights = []
    for workers in ("0", "2"):
        path = recipe(tmp_path, rows=80, epochs="1", workers=workers)
        run = train(path, out=tmp_path / workers, device="cpu", console=quiet())
        weights.append(load_file(run / "model.safetensors"))

    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_loss_that_is_no_number_stops_the_run_and_says_what_to_do(tmp_path: Path) -> None:
    """A far too high rate ends in an error that names the step and the settings, not in hours of NaN."""
    path = recipe(tmp_path, epochs="20", lr="1e30")

    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at step \d+.*Lower optim\.lr"):
        train(path, out=tmp_path / "run", device="cpu", console=quiet())

    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_broken_picture_is_named_by_file_and_row(tmp_path: Path, workers: str) -> None:
    """A broken row is one line with file and row, also from a worker process."""
    break_pictures(write_pairs(tmp_path / "pairs.parquet", 40), [5])

    with pytest.raises(DataError, match=r"pairs\.parquet, row 5: ") as caught:
        train(recipe(tmp_path, workers=workers), out=tmp_path / "run", device="cpu", console=quiet())

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_share_of_broken_rows_is_passed_over_and_each_is_listed_once(tmp_path: Path, workers: str) -> None:
    """A run goes on over several epochs; file and row of each broken row, also of a worker's, stand in the folder."""
    broken = [3, 9, 24, 100]  # rows 9 and 29, … are held out
    break_pictures(write_pairs(tmp_path / "pairs.parquet", 160), broken)
    console = quiet()
    path = recipe(tmp_path, workers=workers, max_broken="0.05")
    run = train(path, out=tmp_path / "run", device="cpu", console=console)

    listed = [json.loads(line) for line in (run / "broken.jsonl").read_text("utf-8").split("\n") if line]
    assert [3, 24, 100] == sorted(line["row"] for line in listed)
    assert all(line["problem"].startswith(f"{tmp_path}/pairs.parquet, row {line['row']}: ") for line in listed)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert 3 == output.count("passed over: ")
    assert any(line["broken"] > 0 for line in metrics(run) if "loss" in line)
    # 16 rows of the file are held out, and one of them is broken.
    assert "zero-shot on pairs, 15 held-out pictures" in output


def test_more_broken_rows_than_the_share_end_the_run(tmp_path: Path) -> None:
    """In one line that names a row, the share and the list; before that, the first rows are listed."""
    break_pictures(write_pairs(tmp_path / "pairs.parquet", 160), range(0, 160, 4))
    path = recipe(tmp_path, max_broken="0.05", epochs="1")

    with pytest.raises(DataError) as caught:
        train(path, out=tmp_path / "run", device="cpu", console=quiet())

    # 5% of the 144 rows to train on are 7.
    pattern = r".*pairs\.parquet, row \d+: .*; (\d+) of \d+ rows are broken, more than data\.max_broken = 0\.05\. .*"
    found = re.fullmatch(pattern, str(caught.value))
    assert found
    assert 8 <= int(found[1]) == (tmp_path / "run" / "broken.jsonl").read_text("utf-8").count("problem")


def test_a_run_with_broken_rows_resumes_exactly(tmp_path: Path) -> None:
    """Replacements follow from the step; the counts go on, and no row is listed twice."""
    break_pictures(write_pairs(tmp_path / "pairs.parquet", 160), range(3, 160, 20))
    path = recipe(tmp_path, max_broken="0.2", epochs="2", checkpoint_every="5")
    whole = train(path, out=tmp_path / "whole", device="cpu", console=quiet())

    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        train(path, out=cut, device="cpu", console=Console(file=InterruptedText("step 8/"), width=200))
    # The share that ends a run is no part of what decides its weights.
    path = recipe(tmp_path, max_broken="0.3", epochs="2", checkpoint_every="5")
    train(path, out=cut, resume=True, device="cpu", console=quiet())

    weights = [load_file(run / "model.safetensors") for run in (whole, cut)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    shares = [[line["broken"] for line in metrics(run) if "loss" in line] for run in (whole, cut)]
    assert shares[0] == shares[1]
    states = [json.loads((run / "checkpoints/step-00000015/state.json").read_text("utf-8")) for run in (whole, cut)]
    assert states[0]["tally"] == states[1]["tally"]
    assert 15 * 16 == states[0]["tally"]["pairs"]
    lists = [sorted(set((run / "broken.jsonl").read_text("utf-8").split("\n"))) for run in (whole, cut)]
    assert lists[0] == lists[1]
    assert len(lists[1]) - 1 == (cut / "broken.jsonl").read_text("utf-8").count("problem")


def test_a_second_stage_begins_with_the_weights_and_the_tokenizer_of_the_first(tmp_path: Path) -> None:
    """With a tiny rate, the second run ends with the first run's weights; its ids mean the same words."""
    first = train(recipe(tmp_path, rows=80, epochs="1"), out=tmp_path / "first", device="cpu", console=quiet())
    path = recipe(tmp_path, epochs="1", lr="1e-12")
    second = train(path, out=tmp_path / "second", start_from=first, device="cpu", console=quiet())
    weights = hashlib.sha256((first / "model.safetensors").read_bytes()).hexdigest()
    source = json.loads((second / "config.json").read_text(encoding="utf-8"))["provenance"]["source"]
    assert f"trained from colours, beginning with the weights sha256:{weights}" == source

    before, after = (load_file(run / "model.safetensors") for run in (first, second))
    assert all(torch.allclose(before[name], after[name]) for name in before if ".bn" not in name)
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()


def test_starting_from_no_run_or_another_model_is_refused(tmp_path: Path) -> None:
    """Weights are loaded completely or not at all; nothing is written."""
    path = recipe(tmp_path, rows=80, epochs="1")
    with pytest.raises(SourceError, match="is neither a file or folder nor a hub id"):
        train(path, out=tmp_path / "run", start_from=tmp_path / "absent", device="cpu", console=quiet())

    first = train(path, out=tmp_path / "first", device="cpu", console=quiet())
    other = recipe(tmp_path, epochs="1", tower="stem_width = 8\nwidths = [16, 32]")
    with pytest.raises(
        RecipeError, match=r"does not fit the recipe's model: image\.widths is \[16, 32\] in the recipe"
    ):
        train(other, out=tmp_path / "second", start_from=first, device="cpu", console=quiet())
    assert not (tmp_path / "second").exists()


def test_a_finished_or_unfinished_run_is_not_overwritten(tmp_path: Path) -> None:
    """Starting again destroys neither; the error says how to continue."""
    path = recipe(tmp_path, rows=80, epochs="1", checkpoint_every="2")
    run = train(path, out=tmp_path / "run", device="cpu", console=quiet())

    with pytest.raises(TrainingError, match="finished run"):
        train(path, out=run, device="cpu", console=quiet())
    (run / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match="--resume"):
        train(path, out=run, device="cpu", console=quiet())


def test_a_folder_is_kept_to_one_training(tmp_path: Path) -> None:
    """Two that resume one run would write over each other's checkpoints; the lock of an ended one is free."""
    path, run = recipe(tmp_path), tmp_path / "run"
    with kept_to_one_training(run), pytest.raises(TrainingError, match="another training writes to this folder"):
        train(path, out=run, device="cpu", console=quiet())
    assert not (run / "metrics.jsonl").exists()

    train(path, out=run, device="cpu", console=quiet())


def test_resuming_nothing_or_another_recipe_is_refused(tmp_path: Path) -> None:
    """A run resumes only with its own recipe."""
    path = recipe(tmp_path, rows=80, epochs="1", checkpoint_every="2")
    with pytest.raises(TrainingError, match="no checkpoint"):
        train(path, out=tmp_path / "none", resume=True, device="cpu", console=quiet())

    run = train(path, out=tmp_path / "run", device="cpu", console=quiet())
    (run / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match="another recipe"):
        train(recipe(tmp_path, epochs="1", lr="1e-3"), out=run, resume=True, device="cpu", console=quiet())


def test_resuming_on_other_data_is_refused(tmp_path: Path) -> None:
    """One row changed under the same name: the file is named, and the unfinished run stays as it is."""
    path = recipe(tmp_path, rows=160, epochs="1", checkpoint_every="4")
    out, pairs = tmp_path / "run", tmp_path / "pairs.parquet"
    with pytest.raises(KeyboardInterrupt):
        train(path, out=out, device="cpu", console=Console(file=InterruptedText("step 6/"), width=200))
    original = pairs.read_bytes()
    table = pq.read_table(pairs)
    texts = table["text"].to_pylist()
    texts[70] = "violet"
    pq.write_table(table.set_column(1, "text", pa.array(texts)), pairs, row_group_size=16)

    with pytest.raises(TrainingError, match=r"pairs\.parquet: is not the file that the run was started on"):
        train(path, out=out, resume=True, device="cpu", console=quiet())

    pairs.write_bytes(original)
    train(path, out=out, resume=True, device="cpu", console=quiet())
    assert (out / "model.safetensors").is_file()


def test_a_caption_longer_than_the_context_is_cut_and_counted(tmp_path: Path) -> None:
    """One of two templates is too long: about half of the captions are cut; each line of metrics has their share."""
    path = recipe(tmp_path, rows=160, epochs="1")
    long = "one two three four five six seven eight nine ten eleven {}"
    text = path.read_text(encoding="utf-8").replace('"{}"]', f'"{long}"]', 1)
    path.write_text(text, encoding="utf-8")
    console = quiet()
    run = train(path, out=tmp_path / "run", device="cpu", console=console)

    shares = [line["truncated"] for line in metrics(run) if "loss" in line]
    assert 9 == len(shares)
    assert 0.25 < sum(shares) / len(shares) < 0.75
    assert "  truncated 0." in console.file.getvalue()  # type: ignore[attr-defined]
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert 12 == config["model"]["text"]["context_length"]


def test_rows_without_a_text_are_skipped_and_counted(tmp_path: Path) -> None:
    """They do not end a run; the metrics have their share."""
    pairs = write_pairs(tmp_path / "pairs.parquet", 160)
    table = pq.read_table(pairs)
    texts = ["" if i % 5 == 0 else text for i, text in enumerate(table["text"].to_pylist())]
    pq.write_table(table.set_column(1, "text", pa.array(texts)), pairs, row_group_size=16)
    run = train(recipe(tmp_path, epochs="1"), out=tmp_path / "run", device="cpu", console=quiet())

    shares = [line["skipped"] for line in metrics(run) if "loss" in line]
    assert 0.1 < sum(shares) / len(shares) < 0.3


def test_without_same_meaning_the_loss_is_the_papers(tmp_path: Path) -> None:
    """`off` counts every other pair as a negative: among 16 pairs of four colours the first loss is larger."""
    first = []
    for value in ("ignore", "off"):
        path = recipe(tmp_path, rows=80, epochs="1")
        text = path.read_text("utf-8").replace("[optim]\n", f'[objective]\nsame_meaning = "{value}"\n[optim]\n')
        path.write_text(text, "utf-8")
        first.append(metrics(train(path, out=tmp_path / value, device="cpu", console=quiet()))[0]["loss"])

    assert first[0] < first[1]


def test_a_class_too_long_for_the_measured_templates_is_refused(tmp_path: Path) -> None:
    """Held-out pictures are measured at the end of a run; their prompts are checked before its first step."""
    path = recipe(tmp_path)
    long = "one two three four five six seven eight nine ten eleven {}"
    before, found, after = path.read_text(encoding="utf-8").rpartition('default = ["a {} picture."]')
    path.write_text(before + found.replace("a {} picture.", long) + after, encoding="utf-8")

    with pytest.raises(DataError, match=r"caption 'one two three .* has more tokens than model\.text"):
        train(path, out=tmp_path / "run", device="cpu", console=quiet())


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    """A batch larger than the data is refused, because an epoch would have no step."""
    with pytest.raises(RecipeError, match="batch_size 5000"):
        train(recipe(tmp_path, batch_size="5000"), out=tmp_path / "run", device="cpu", console=quiet())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, so asking for one is no error")
def test_a_gpu_that_was_asked_for_and_is_not_there_stops_the_start(tmp_path: Path) -> None:
    """Training never falls back to the CPU silently."""
    with pytest.raises(TrainingError, match="finds no GPU"):
        train(recipe(tmp_path), out=tmp_path / "run", device="cuda", console=quiet())
