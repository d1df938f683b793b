"""A small recipe with every stage, and its data."""

from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.planted import scene

THINGS = ("dog", "cat", "boat", "house")
JUNK = ("my dog IMG_0001.JPG", "Ein Hund am Strand", "The weather was nice")
RECIPE = """
[data]
files = ["raw"]
[queries]
text = ["dump.txt"]
titles = ["views.tsv"]
least = 2
least_pmi = 0
least_views = 10
[match]
[filter]
images = true
shorter_side = 16
[dedup]
[balance]
most = 4
[output]
"""
_ROWS = 20


def write_whole_recipe(folder: Path, files: int) -> None:
    """Write ``recipe.toml``, so many files of pairs in ``raw``, and the sources of the query list."""
    (folder / "raw").mkdir()
    for number in range(files):
        at = range(number * _ROWS, (number + 1) * _ROWS)
        texts = [JUNK[row % 3] if row % 5 == 4 else f"My {THINGS[row % 7 % 4]} in the garden" for row in at]
        pictures = [encoded(row if row % 9 else 0) for row in at]  # every ninth shows the same
        pq.write_table(pa.table({"text": texts, "image": pictures}), folder / "raw" / f"{number}.parquet")
    (folder / "dump.txt").write_text("my dog\nmy dog\nmy cat\nthe boat\nthe boat\n")
    (folder / "views.tsv").write_text("House\t50\nRare\t1\n")
    (folder / "recipe.toml").write_text(RECIPE)


def encoded(seed: int) -> bytes:
    """Return a picture as JPEG."""
    stream = BytesIO()
    scene(seed, 64, 48).save(stream, "JPEG", quality=90)
    return stream.getvalue()
