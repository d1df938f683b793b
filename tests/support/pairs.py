"""Small image-text pairs for training tests: plain coloured pictures whose noun and class name the colour."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "white": (240, 240, 240),
}
# As in real data, some pictures of a class have a finer noun.
NOUNS = {"red": ("red", "scarlet"), "green": ("green", "olive"), "blue": ("blue", "navy"), "white": ("white",)}


def encoded_picture(colour: tuple[int, int, int], rng: np.random.Generator, size: int = 16) -> bytes:
    """Encode a noisy picture of one colour as PNG."""
    noise = rng.integers(-25, 26, (size, size, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_pairs(path: Path, rows: int, *, row_group_size: int = 16, seed: int = 0) -> Path:
    """Write ``rows`` pairs with the columns image, text and label."""
    rng = np.random.default_rng(seed)
    labels = [list(COLOURS)[int(i)] for i in rng.integers(0, len(COLOURS), rows)]
    table = pa.table(
        {
            "image": [encoded_picture(COLOURS[label], rng) for label in labels],
            "text": [NOUNS[label][int(rng.integers(len(NOUNS[label])))] for label in labels],
            "label": labels,
        }
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def break_pictures(path: Path, rows: Iterable[int], *, row_group_size: int = 16) -> None:
    """Replace the pictures of these rows by bytes that are none."""
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    for row in rows:
        images[row] = b"no picture"
    pq.write_table(table.set_column(0, "image", pa.array(images, pa.binary())), path, row_group_size=row_group_size)


def recipe_text(files: list[Path], **overrides: str) -> str:
    """Return a recipe for a tiny model; an override replaces a key's value in any section."""
    values = {
        "epochs": "3",
        "batch_size": "16",
        "lr": "3e-3",
        "workers": "0",
        "max_broken": "0.0",
        "checkpoint_every": "4",
        "evaluate_every": "0",
        "precision": '"fp32"',
        "phases": "[]",
        "validation_every": "10",
        "kind": '"residual_conv"',
        "tower": "stem_width = 8\nwidths = [16, 24]",
        **overrides,
    }
    return f"""
name = "colours"
seed = 7
log_every = 1
evaluate_every = {values["evaluate_every"]}
checkpoint_every = {values["checkpoint_every"]}

[data]
files = [{", ".join(f'"{file}"' for file in files)}]
validation_every = {values["validation_every"]}
shuffle_window = 2
workers = {values["workers"]}
max_broken = {values["max_broken"]}

[augment]
crop_area = [0.8, 1.0]
shift = 0.1
flip = true

[captions]
templates = ["a {{}} picture.", "{{}}"]

[captions.template_sets]
default = ["a {{}} picture."]

[model]
embed_dim = 16

[model.image]
kind = {values["kind"]}
image_size = 16
{values["tower"]}

[model.text]
vocab_size = 560
context_length = 12
width = 32
layers = 1
heads = 2

[optim]
epochs = {values["epochs"]}
batch_size = {values["batch_size"]}
lr = {values["lr"]}
weight_decay = 0.1
warmup_steps = 2
precision = {values["precision"]}
phases = {values["phases"]}
"""
