"""Make training data: tars of photo-like JPEGs with captions, as img2dataset writes them."""

import io
import tarfile
from pathlib import Path
from typing import Final

import numpy as np

from tests.bench import pictures, words

TARS: Final = 4
_PAIRS: Final = 1_024
"""Pairs of all tars; a trainer begins again after the last."""
_PICTURES: Final = 96
"""Different pictures among them: decoding one costs the same each time."""
_MEDIAN_WORDS: Final = 10
_SPREAD: Final = 0.6
_FEWEST, _MOST = 3, 70


def captions(count: int) -> list[str]:
    """Return captions whose lengths are spread as those of pictures on web pages: 10 words in the middle, some 40."""
    rng = np.random.default_rng(0)
    vocabulary = np.array(sorted({word for label in words.LABELS for word in label.split()} | {"a", "of", "the", "in"}))
    lengths = np.exp(rng.normal(np.log(_MEDIAN_WORDS), _SPREAD, count)).round().clip(_FEWEST, _MOST).astype(int)
    return [" ".join(rng.choice(vocabulary, length)) for length in lengths]


def tars(folder: Path) -> list[Path]:
    """Return the tars in a folder; write them if they are missing."""
    paths = [folder / f"{number:03}.tar" for number in range(TARS)]
    if paths[-1].exists():
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    jpegs = pictures.jpegs(_PICTURES)
    texts = captions(_PAIRS)
    for number, path in enumerate(paths):
        partial = path.with_suffix(".part")
        with tarfile.open(partial, "w") as tar:
            for pair in range(number, _PAIRS, TARS):
                _add(tar, f"{pair:06}.jpg", jpegs[pair % _PICTURES])
                _add(tar, f"{pair:06}.txt", texts[pair].encode())
        partial.rename(path)
    return paths


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
