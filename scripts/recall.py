"""Measure how well models find the caption of a picture, and the picture of a caption, among held-out pairs.

    PYTHONPATH=. python scripts/recall.py MODEL [MODEL …] --pairs pairs.parquet --every 10

A model is a training run, or any checkpoint that ``anyclass-export export`` reads. Prints recall at 5 both ways. Equal
captions are one, and each of their pictures is right for it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
import torch

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.data.captions import CaptionEncoder, is_usable, meaning
from model_export.data.loading import open_image
from model_export.data.opening import open_pairs
from model_export.data.parquet import PairColumns
from model_export.data.reader import PairReader
from model_export.training.averaging import read_model
from service.model.resizing import preprocess
from service.model.tokenizer import Tokenizer

_BATCH = 64
_AMONG = 5


def recalls(similarities: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], among: int) -> tuple[float, float]:
    """Return the shares of rows, and of columns, with a right entry among the most similar ones.

    Args:
        similarities: float ``[pictures, captions]``.
        right: bool of the same shape.
        among: number of the most similar entries that are looked at.
    """

    def found(values: npt.NDArray[np.floating], wanted: npt.NDArray[np.bool_]) -> float:
        best = np.argsort(-values, axis=1, kind="stable")[:, :among]
        return float(np.take_along_axis(wanted, best, axis=1).any(axis=1).mean())

    return found(similarities, right), found(similarities.T, right.T)


@torch.no_grad()
def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--pairs", type=Path, required=True, help="a file of pairs, as [data] files names them")
    parser.add_argument("--every", type=int, default=25, help="the run's data.validation_every")
    options = parser.parse_args()
    reader = PairReader(open_pairs([str(options.pairs)], PairColumns()), groups_in_memory=2)
    rows = [row for row in range(options.every - 1, len(reader), options.every) if is_usable(reader[row].text)]
    texts = {meaning(text): text for text in (reader[row].text for row in rows) if text is not None}
    of_row = [list(texts).index(meaning(reader[row].text or "")) for row in rows]
    right = np.arange(len(texts)) == np.array(of_row)[:, None]
    say(f"{len(rows)} pictures, {len(texts)} captions: recall at {_AMONG} by chance {_AMONG / len(texts):.1%}")
    for name in options.models:
        model = read_model(name)
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(model.tokenizer.decode()), model.text)
        pixels = np.stack([preprocess(open_image(reader, row, reader[row].image), model.image) for row in rows])
        ids = CaptionEncoder(tokenizer, model.text.max_length)(list(texts.values()))
        image = ImageEncoder(model.model, model.image.mean, model.image.std).eval()
        text = TextEncoder(model.model).eval()
        images, captions = (
            torch.cat([encode(part) for part in torch.split(torch.from_numpy(given), _BATCH)])
            for encode, given in ((image, pixels), (text, ids))
        )
        by_picture, by_caption = recalls((images @ captions.T).numpy(), right, _AMONG)
        say(f"{name}: picture to caption {by_picture:.1%}, caption to picture {by_caption:.1%}")


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
