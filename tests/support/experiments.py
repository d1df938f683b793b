"""Recipes of experiments on made pictures, which take seconds."""

from __future__ import annotations

from pathlib import Path

from tests.support.pairs import write_pairs


def experiment_recipe(folder: Path, *, rows: int = 400, sections: str = "", **overrides: str) -> Path:
    """Write a recipe for a tiny model and coloured pictures; an override replaces a key's value in any section."""
    pairs = folder / "pairs.parquet"
    if not pairs.exists():
        write_pairs(pairs, rows)
    values = {
        "budgets": "[160, 640]",
        "seeds": "[0, 1]",
        "rates": "[1e-3, 4e-3, 1e-2]",
        "choose_rate": '"smallest"',
        "files": '["pairs.parquet"]',
        "test": "[]",
        "kind": '"residual_conv"',
        "tower": "stem_width = 8\nwidths = [16, 24]",
        **overrides,
    }
    path = folder / "experiment.toml"
    path.write_text(
        f"""
budgets = {values["budgets"]}
seeds = {values["seeds"]}

[data]
files = {values["files"]}
test = {values["test"]}
validation_every = 5
shuffle_window = 4

[model]
embed_dim = 16

[model.image]
kind = {values["kind"]}
image_size = 16
{values["tower"]}

[model.text]
vocab_size = 700
context_length = 24
width = 32
layers = 1
heads = 2

[optim]
batch_size = 16
rates = {values["rates"]}
choose_rate = {values["choose_rate"]}
precision = "fp32"
{sections}
""",
        encoding="utf-8",
    )
    return path
