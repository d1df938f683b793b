"""Small WebDataset tars for training tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tests.support.pairs import COLOURS, NOUNS, encoded_picture


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, form: int = tarfile.USTAR_FORMAT) -> Path:
    """Write a tar file with these names and contents."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def write_tars(folder: Path, rows: Sequence[int], *, seed: int = 0) -> list[Path]:
    """Write tars of coloured pictures with nouns and classes, as `write_pairs` does; ``rows`` samples in each."""
    rng = np.random.default_rng(seed)
    paths = []
    folder.mkdir(exist_ok=True)
    for at, count in enumerate(rows):
        members = []
        for row in range(count):
            label = list(COLOURS)[int(rng.integers(len(COLOURS)))]
            noun = NOUNS[label][int(rng.integers(len(NOUNS[label])))]
            key = f"{at:03d}{row:05d}"
            members += [
                (f"{key}.png", encoded_picture(COLOURS[label], rng)),
                (f"{key}.txt", noun.encode()),
                (f"{key}.cls", label.encode()),
            ]
        paths.append(write_tar(folder / f"{at:05d}.tar", members))
    return paths
