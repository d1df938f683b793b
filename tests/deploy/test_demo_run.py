"""The training run that scripts/demo_run.py makes of the shipped bundle."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import normalize

from model_export.checkpoints.training_run import load_training_run
from service.model.manifest import DEMO_BUNDLE
from tests.support.pictures import encode, noise
from tests.support.places import ROOT


def test_the_run_answers_as_the_bundle_in_training_too(tmp_path: Path) -> None:
    """Pictures and texts get the bundle's vectors; in training mode nearly so, as the norms have real statistics."""
    data = tmp_path / "data"
    data.mkdir()
    images = [encode(noise(80, 64, seed), "PNG") for seed in range(40)]
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), data / "pictures.parquet")

    done = subprocess.run(
        [sys.executable, "scripts/demo_run.py", str(DEMO_BUNDLE), str(data), str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    run = load_training_run(tmp_path / "run")
    assert run.scoring.logit_scale == pytest.approx(
        json.loads((DEMO_BUNDLE / "manifest.json").read_text())["scoring"]["logit_scale"]
    )
    pixels = np.stack([np.asarray(noise(64, 64, seed)) for seed in range(100, 132)])
    section = run.image
    normalised = (pixels / 255 - section.mean) / section.std
    ids = np.array([[0, 66, 518, run.text.end_of_text_id]])
    with torch.no_grad():
        model = run.model.eval()
        encoded = model.visual(torch.from_numpy(normalised.astype(np.float32)).permute(0, 3, 1, 2))
        text = model.text(torch.from_numpy(ids))
        model.train()
        trained = model.visual(torch.from_numpy(normalised.astype(np.float32)).permute(0, 3, 1, 2))
    assert cosines(encoded, graph("image_encoder.onnx", pixels)).min() > 0.99999
    assert cosines(text, graph("text_encoder.onnx", ids)).min() > 0.99999
    assert cosines(trained, graph("image_encoder.onnx", pixels)).min() > 0.9


def graph(name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return what one of the bundle's graphs gives."""
    session = onnxruntime.InferenceSession(str(DEMO_BUNDLE / name))
    vectors: npt.NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: values})[0]
    return vectors


def cosines(vectors: torch.Tensor, others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the cosine of each pair of rows; the others are of length 1."""
    found: npt.NDArray[np.float32] = (normalize(vectors, dim=1).numpy() * others).sum(axis=1)
    return found
