"""The whole way, by the commands a user types: pairs in tars, a training, a bundle, the service, answers over HTTP."""

import io
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.support.http_server import http_server
from tests.support.places import ROOT
from tests.support.tars import write_tar

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COLOURS = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 215), "yellow": (225, 205, 50)}
SHAPES = {"circle": 0, "square": 4, "triangle": 3}
"""Shapes with their corners."""

CLASSES = [f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES)]
CAPTIONS = ("a {colour} {shape}", "a picture of a {colour} {shape}", "{shape} in {colour}", "the {shape} is {colour}")
SIDE = 32

RECIPE = """
name = "shapes"
seed = 3
log_every = 50

[data]
files = ["{00000..00003}.tar"]
validation_every = 0
shuffle_window = 4
workers = 0

[captions]
templates = ["{}"]
class_name_share = 0
template_sets = { default = ["a {}", "a picture of a {}"] }

[model]
embed_dim = 32

[model.image]
kind = "vit"
image_size = 32
patch_size = 8
width = 64
layers = 2
heads = 2

[model.text]
vocab_size = 560
context_length = 12
width = 64
layers = 1
heads = 2

[optim]
epochs = 12
batch_size = 128
lr = 2e-3
muon_lr = 0.02
warmup_steps = 20
precision = "fp32"
"""


def picture(colour: str, shape: str, rng: np.random.Generator) -> bytes:
    """Draw a shape of some size, about the middle of a noisy grey ground; encode it as PNG."""
    ground = int(rng.integers(60, 200))
    image = Image.new("RGB", (SIDE, SIDE), (ground, ground, ground))
    radius = float(rng.uniform(10, 14))
    x, y = (float(value) for value in rng.uniform(SIDE / 2 - 3, SIDE / 2 + 3, 2))
    draw = ImageDraw.Draw(image)
    if corners := SHAPES[shape]:
        draw.regular_polygon((x, y, radius), corners, rotation=float(rng.uniform(-5, 5)), fill=COLOURS[colour])
    else:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])
    pixels = np.asarray(image) + rng.normal(0, 12, (SIDE, SIDE, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_pairs(folder: Path, *, tars: int, rows: int) -> None:
    """Write tars of pictures and captions; nothing else says what a picture shows."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for tar in range(tars):
        members = []
        for row in range(rows):
            colour, shape = (list(each)[int(rng.integers(len(each)))] for each in (COLOURS, SHAPES))
            caption = CAPTIONS[int(rng.integers(len(CAPTIONS)))].format(colour=colour, shape=shape)
            members += [(f"{row:05d}.png", picture(colour, shape, rng)), (f"{row:05d}.txt", caption.encode())]
        write_tar(folder / f"{tar:05d}.tar", members)


def anyclass_export(*arguments: object) -> str:
    """Run the command to its end; return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "model_export", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "300"},
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


def test_pairs_become_answers(tmp_path: Path) -> None:
    """Two processes train on captions alone; the service then names pictures it has never seen, of twelve kinds."""
    write_pairs(tmp_path / "data", tars=4, rows=320)
    recipe, run, bundle = tmp_path / "recipe.toml", tmp_path / "run", tmp_path / "bundle"
    recipe.write_text(RECIPE, "utf-8")

    trained = anyclass_export("train", recipe, "--data", tmp_path / "data", "--out", run, "--processes", 2)
    assert "1,280 pairs to train" in trained
    assert "2 processes" in trained
    anyclass_export("export", run, bundle)
    assert "every check passed" in anyclass_export("verify", bundle)

    rng = np.random.default_rng(1)
    held_out = [
        (f"{colour} {shape}", picture(colour, shape, rng))
        for colour, shape in product(COLOURS, SHAPES)
        for _ in range(5)
    ]
    right = 0
    with http_server(bundle, tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for name, image in held_out:
            answer = client.post("/v1/classify", files={"image": ("held-out.png", image)}, data={"labels": CLASSES})
            assert 200 == answer.status_code, answer.text
            predictions = answer.json()["predictions"]
            assert math.isclose(sum(each["score"] for each in predictions), 1, abs_tol=1e-4)
            right += predictions[0]["label"] == name
    # By chance it would be one in twelve; with these seeds about 50 of the 60 are right.
    assert right >= 30, f"{right} of {len(held_out)}"
