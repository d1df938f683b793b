"""Tests of the means between a published start and a run, and of the report of what was forgotten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.errors import TrainingError
from model_export.training.averaging import average
from model_export.training.forgetting import measure_shares
from model_export.training.run import train
from model_export.training.validation import LabelledImages, zero_shot
from service.model.tokenizer import Tokenizer
from tests.model_export.test_cli import error_of, in_this_process
from tests.model_export.training.test_start import TEXTS, quiet, recipe, write_captions
from tests.support.tiny_hugging_face import write_tiny_clip
from tests.support.tiny_run import write_tiny_run


@pytest.fixture
def tuned(tmp_path: Path) -> tuple[Path, Path]:
    """Write a published CLIP, and a run that began with it and went far away."""
    source = write_tiny_clip(tmp_path / "source")
    write_captions(tmp_path / "captions.parquet", TEXTS * 4, labels=True)
    path = recipe(tmp_path, TEXTS)
    path.write_text(path.read_text("utf-8").replace("lr = 1e-4", "lr = 3e-2"), "utf-8")
    return source, train(path, out=tmp_path / "run", start_from=source, device="cpu", console=quiet())


def top1(model: ModelSource, pictures: Path) -> float:
    """Measure a model by the code that validates in training."""
    import io

    import pyarrow.parquet as pq
    import tokenizers
    from PIL import Image

    from service.model.resizing import preprocess

    table = pq.read_table(pictures)
    pixels = [preprocess(Image.open(io.BytesIO(data)), model.image) for data in table["image"].to_pylist()]
    data = LabelledImages(
        "", np.stack(pixels), np.array([int(each) for each in table["label"].to_pylist()]), ("0", "1")
    )
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(model.tokenizer.decode()), model.text)
    images = ImageEncoder(model.model, model.image.mean, model.image.std).eval()
    texts = TextEncoder(model.model).eval()
    found = zero_shot(images, texts, data, model.templates["default"], tokenizer.encode, device=torch.device("cpu"))
    return found.top1


def test_a_published_start_and_its_run_are_averaged_and_compared(tmp_path: Path, tuned: tuple[Path, Path]) -> None:
    """The mean is a run with both origins; each row of the table is the accuracy of the mean with that share."""
    source, run = tuned
    out, data = tmp_path / "mean", tmp_path / "captions.parquet"

    done = in_this_process("average", source, run, "--out", out, "--shares", "1,3", "--data", data)

    assert 0 == done.returncode, done.stderr
    before, after, mean = (load_model(path, SourceOptions()) for path in (source, run, out))
    for name, tensor in mean.weights().items():
        torch.testing.assert_close(tensor, 0.25 * before.weights()[name] + 0.75 * after.weights()[name])
    assert before.provenance.source_sha256 is not None
    assert f"0.25 of sha256:{before.provenance.source_sha256}" in mean.provenance.source
    assert all(f" {share} " in done.stdout for share in ("0.25", "0.50", "0.75", "1.00"))

    rows = {row.share: row.top1[0] for row in measure_shares([before, after], [str(data)])}
    models = {0.0: load_model(source, SourceOptions()), 0.75: mean, 1.0: load_model(run, SourceOptions())}
    assert {share: rows[share] for share in models} == {share: top1(model, data) for share, model in models.items()}
    assert 1 < len(set(rows.values())), "every mean answers alike: the test says nothing"


def test_what_cannot_be_averaged_or_compared_is_refused(tmp_path: Path, tuned: tuple[Path, Path]) -> None:
    """One line and exit 2 before anything is written: no run last, other weights, three models, no data."""
    source, run = tuned
    out = tmp_path / "mean"
    with pytest.raises(TrainingError, match="is no training run; name the run last"):
        average([run, source], out)
    other = write_tiny_run(tmp_path / "other", "vit")
    with pytest.raises(TrainingError, match=r"source: differs from the tokenizer of .*other"):
        average([source, other], out)
    assert "name two RUNs, not 3" in error_of(in_this_process("average", source, run, run, "--out", out, "--data", "x"))
    assert "does not exist" in error_of(in_this_process("average", source, run, "--out", out, "--data", tmp_path / "x"))
    assert not out.exists()
