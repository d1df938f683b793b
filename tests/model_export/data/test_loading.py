from __future__ import annotations

import pickle
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from model_export.data.augment import Augmentation, is_odd
from model_export.data.captions import Captioner, all_captions
from model_export.data.loading import BatchLoader
from model_export.data.parquet import PairColumns, ParquetPairs
from model_export.data.plan import Phase, TrainingPlan
from model_export.data.reader import PairReader
from model_export.errors import DataError
from tests.support.pairs import COLOURS, NOUNS, write_pairs


def reader(*paths: Path, groups_in_memory: int = 2) -> PairReader:
    """Open files whose columns have the usual names."""
    return PairReader([ParquetPairs(path, PairColumns()) for path in paths], groups_in_memory=groups_in_memory)


def test_rows_are_numbered_through_all_files(tmp_path: Path) -> None:
    """Global row numbers give the same pairs as reading the files one after the other, in any order."""
    paths = [write_pairs(tmp_path / f"{i}.parquet", 37, seed=i) for i in range(2)]
    expected = [row for path in paths for row in pq.read_table(path).to_pylist()]
    pairs = reader(*paths)

    for row in np.random.default_rng(0).permutation(74):
        assert expected[row] == pairs[int(row)]._asdict()
    assert [0, 37] == pairs.groups.files.tolist()
    assert f"{paths[1]}, row 3" == pairs.where(40)


def test_only_the_row_groups_in_use_are_kept(tmp_path: Path) -> None:
    """Memory is bounded by the number of groups, not by the size of the data."""
    pairs = reader(write_pairs(tmp_path / "pairs.parquet", 96), groups_in_memory=2)
    for row in range(96):
        pairs[row]

    assert 6 == len(pairs.groups.rows)
    assert 2 == len(pairs._cache)


def test_a_reader_travels_to_a_worker_without_its_files(tmp_path: Path) -> None:
    """A reader pickled after use carries no data and still reads."""
    pairs = reader(write_pairs(tmp_path / "pairs.parquet", 20))
    first = pairs[0]

    data = pickle.dumps(pairs)

    assert len(data) < 5000
    assert first == pickle.loads(data)[0]  # noqa: S301 - our own bytes


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(DataError, match=r"absent\.parquet: no such file"):
        reader(tmp_path / "absent.parquet")


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    """The error names the file, with the library's message."""
    path = tmp_path / "pairs.parquet"
    path.write_bytes(b"not parquet at all")

    with pytest.raises(DataError, match=r"pairs\.parquet: is not a readable Parquet file"):
        reader(path)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    """The error names the key [data.columns]."""
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"image": [b"x"], "caption": ["a"], "label": ["b"]}), path)

    with pytest.raises(DataError, match=r"no column 'text' \(it has: image, caption, label\)"):
        reader(path)


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    """A text column of pictures is refused at once, instead of failing hours later."""
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"image": ["x"], "text": ["a"], "label": ["b"]}), path)

    with pytest.raises(DataError, match="column 'image' is string, not binary"):
        reader(path)


def test_an_empty_text_is_refused_before_training(tmp_path: Path) -> None:
    """A missing caption is found while the text columns are read."""
    path = tmp_path / "pairs.parquet"
    table = pa.table({"image": [b"x", b"y"], "text": ["a", None], "label": ["b", "b"]})
    pq.write_table(table, path)

    with pytest.raises(DataError, match="column 'text' has 1 empty"):
        ParquetPairs(path, PairColumns()).text_columns()


def test_captions_are_drawn_from_nouns_class_names_and_templates() -> None:
    """Over many draws every combination appears, the class name in its share."""
    captioner = Captioner(("{}", "a {}."), class_name_share=0.25)
    rng = np.random.default_rng(0)
    drawn = [captioner.caption("navy", "blue", rng) for _ in range(2000)]

    assert set(all_captions(["{}", "a {}."], ["navy", "blue"])) == set(drawn)
    assert sum("blue" in caption for caption in drawn) / 2000 == pytest.approx(0.25, abs=0.03)


def loader_of(path: Path) -> BatchLoader:
    """Load batches of 12 augmented pictures; a caption's id is its length."""
    pairs = reader(path)
    plan = TrainingPlan(
        pairs.groups, held_out_every=0, seed=3, batch_size=12, epochs=1, window=2, phases=[Phase(0.0, 16)]
    )
    return BatchLoader(
        pairs,
        plan,
        Augmentation((0.5, 1.0), shift=0.1),
        Captioner(("{}", "a {}."), 0.5),
        lambda texts: np.array([[len(text)] for text in texts]),
        {colour: at for at, colour in enumerate(COLOURS)},
        {noun: at for at, noun in enumerate(chain(*NOUNS.values()))},
    )


@pytest.mark.parametrize("cuts", [[6], [4, 8], [3, 6, 9], [5]])
def test_parts_of_a_batch_have_the_pictures_and_captions_of_the_whole(tmp_path: Path, cuts: list[int]) -> None:
    """However many ranks share a batch, each row is drawn the same."""
    loader = loader_of(write_pairs(tmp_path / "pairs.parquet", 40))
    bounds = [0, *cuts, 12]

    whole = loader[1]
    parts = [loader.part(a, b)[1] for a, b in pairwise(bounds)]

    for name in ("pixels", "label", "noun"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    assert torch.equal(whole.ids[whole.caption], torch.cat([part.ids[part.caption] for part in parts]))


def gradient(width: int, height: int) -> Image.Image:
    """Make a picture whose red is x and whose green is y."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 9)], axis=2).astype(np.uint8))


def test_without_augmentation_a_square_picture_of_the_right_size_is_untouched() -> None:
    """A view of the picture's own size is not resampled."""
    image = gradient(32, 32)

    np.testing.assert_array_equal(np.asarray(image), Augmentation().apply(image, 32, np.random.default_rng(0)))


def test_a_crop_is_a_square_of_the_picture() -> None:
    """At the size of the short side the crop is a copy of neighbouring pixels, at varying places."""
    image = gradient(64, 32)
    rng = np.random.default_rng(0)
    lefts = set()
    for _ in range(50):
        crop = Augmentation().apply(image, 32, rng)
        left = int(crop[0, 0, 0])
        np.testing.assert_array_equal(np.asarray(image)[:, left : left + 32], crop)
        lefts.add(left)

    assert len(lefts) > 10
    assert max(lefts) <= 32


def test_a_shift_fills_the_border_with_mirrored_pixels_and_a_flip_mirrors_the_odd() -> None:
    """Shifting adds no colour; `flip` mirrors odd pictures only."""
    image = gradient(32, 32)
    rng = np.random.default_rng(0)
    views = [Augmentation(shift=0.125, flip=True).apply(image, 32, rng, odd=i % 2 == 1) for i in range(200)]

    mirrored = [int(view[16, 10, 0]) > int(view[16, 20, 0]) for view in views]
    assert [False, True] * 100 == mirrored
    assert bytes(Augmentation(flip=False).apply(image, 32, rng, odd=True)) == np.asarray(image).tobytes()
    assert len({view.tobytes() for view in views}) > 50
    assert all((view[..., 2] == 9).all() for view in views)


def test_two_epochs_show_every_picture_both_ways() -> None:
    """A row that is odd in one epoch is not in the next; in each about half of the rows are, neighbours mixed."""
    even, odd = ([is_odd(row, epoch) for row in range(2000)] for epoch in (0, 1))

    assert [not value for value in even] == odd
    assert 900 <= sum(even) <= 1100
    alike = sum(a == b for a, b in pairwise(even))
    assert 500 <= alike <= 1500


def test_crop_area_bounds_the_zoom() -> None:
    """A quarter of the area is half of the side."""
    image = gradient(64, 64)
    view = Augmentation(crop_area=(0.25, 0.25)).apply(image, 32, np.random.default_rng(1))

    assert 31 == int(view[0, -1, 0]) - int(view[0, 0, 0])


def test_a_share_of_the_pictures_is_zoomed_into() -> None:
    """With a share of a half, about half of the views show a quarter of the area, the others all of it."""
    image = gradient(64, 64)
    rng = np.random.default_rng(0)
    augmentation = Augmentation(zoom_area=(0.25, 0.25))
    spans = []
    for _ in range(200):
        view = augmentation.apply(image, 32, rng, zoom_share=0.5)
        spans.append(int(view[0, -1, 0]) - int(view[0, 0, 0]))

    zoomed = sum(span < 40 for span in spans)
    assert 70 <= zoomed <= 130
    assert all(span >= 60 or 28 <= span <= 33 for span in spans)
