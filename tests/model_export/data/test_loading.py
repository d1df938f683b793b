from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from model_export.checkpoints.model_source import text_section
from model_export.data import loading
from model_export.data.augment import Augmentation, is_odd
from model_export.data.captions import CaptionEncoder, Captioner, meaning
from model_export.data.loading import Batch, BatchLoader, batches
from model_export.data.opening import open_pairs
from model_export.data.pairs import Pair
from model_export.data.parquet import PairColumns, ParquetPairs
from model_export.data.plan import Phase, TrainingPlan
from model_export.data.reader import PairReader
from model_export.errors import DataError, ServerError
from service.model.manifest import ImageSection
from service.model.resizing import preprocess
from service.model.tokenizer import Tokenizer
from tests.support.object_stores import http_server
from tests.support.pairs import write_pairs
from tests.support.tiny_run import END, tiny_tokenizer


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


def test_texts_are_read_without_pictures(tmp_path: Path) -> None:
    """All rows, or those of evenly spaced groups; the classes of any rows."""
    path = write_pairs(tmp_path / "pairs.parquet", 80)
    rows = pq.read_table(path, columns=["text", "label"]).to_pylist()
    expected = [(row["text"], row["label"]) for row in rows]
    pairs = reader(path)

    assert expected == list(pairs.texts(most=80))
    assert [*expected[:16], *expected[32:48], *expected[64:]] == list(pairs.texts(most=40))
    assert [expected[row][1] for row in (0, 15, 16, 79)] == pairs.labels(np.array([0, 15, 16, 79]))


def test_the_class_is_optional(tmp_path: Path) -> None:
    """A file may lack the column, and a row the value."""
    bare, some = tmp_path / "bare.parquet", tmp_path / "some.parquet"
    pq.write_table(pa.table({"image": [b"x"], "text": ["a"]}), bare)
    pq.write_table(pa.table({"image": [b"x", b"y"], "text": ["a", None], "label": [None, "b"]}), some)
    pairs = reader(bare, some)

    assert [Pair(b"x", "a", None), Pair(b"x", "a", None), Pair(b"y", None, "b")] == [pairs[row] for row in range(3)]
    assert [False, True] == [file.has_labels for file in pairs.files]
    with pytest.raises(DataError, match=r"bare\.parquet: no column 'label' \(it has: image, text\)"):
        ParquetPairs(bare, PairColumns(label_required=True))


def test_a_text_that_is_not_utf8_is_none(tmp_path: Path) -> None:
    """Files of other programs may hold any bytes in a column of strings."""
    path = tmp_path / "pairs.parquet"
    text = pa.array([b"caf\xe9", b"tea"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"image": [b"x", b"y"], "text": text}), path)

    assert [None, "tea"] == [row.text for row in reader(path).texts(most=9)]


def loader_of(path: Path, *, context: int = 24, rows: int = 12) -> BatchLoader:
    """Load batches of augmented pictures of 16x16 pixels."""
    pairs = reader(path)
    backend = tiny_tokenizer()
    end: Any = backend.token_to_id(END)
    tokenizer = Tokenizer(backend, text_section(context_length=context, pad_id=end, end_of_text_id=end))
    plan = TrainingPlan(
        pairs.groups, held_out_every=0, seed=3, batch_size=rows, epochs=1, window=2, phases=[Phase(0.0, 16)]
    )
    return BatchLoader(
        pairs,
        plan,
        Augmentation((0.5, 1.0), shift=0.1),
        Captioner(("{}", "a {}."), 0.5),
        CaptionEncoder(tokenizer, context),
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_server_that_goes_away_is_told_from_data_that_are_wrong(tmp_path: Path, workers: int) -> None:
    """By a loading process too: it may come back, so that another start is worth while."""
    path = write_pairs(tmp_path / "pairs.parquet", 20)
    with http_server(tmp_path) as address:
        remote = PairReader(open_pairs([f"{address}/{path.name}"], PairColumns()), groups_in_memory=2)
    loader = replace(loader_of(path), reader=remote)
    with pytest.raises(ServerError, match=rf"^{address}/pairs\.parquet: cannot be read"):
        next(batches(loader, first_step=0, workers=workers, pin_memory=False))


@pytest.mark.parametrize("cuts", [[6], [4, 8], [3, 6, 9], [5]])
def test_parts_of_a_batch_have_the_pictures_and_captions_of_the_whole(tmp_path: Path, cuts: list[int]) -> None:
    """However many ranks share a batch, each row is drawn the same."""
    loader = loader_of(write_pairs(tmp_path / "pairs.parquet", 40))
    bounds = [0, *cuts, 12]

    whole = loader[1]
    parts = [loader.part(a, b)[1] for a, b in pairwise(bounds)]

    for name in ("pixels", "label", "noun"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    drawn = [batch_ids(batch) for batch in (whole, *parts)]
    assert drawn[0] == list(chain(*drawn[1:]))


def batch_ids(batch: Batch) -> list[list[int]]:
    """Return the ids of each pair's caption, up to the end of text."""
    end = tiny_tokenizer().token_to_id(END)
    return [row[: row.index(end) + 1] for row in batch.ids[batch.caption].tolist()]


def test_the_share_of_captions_that_were_cut_is_counted(tmp_path: Path) -> None:
    """Each pair counts whose caption is longer than the context; its ids end with the end of text."""
    path = write_pairs(tmp_path / "pairs.parquet", 40)
    short, long = (loader_of(path, context=context)[0] for context in (24, 5))

    lengths = [len(ids) for ids in batch_ids(short)]
    assert 0 == short.tally.truncated
    assert 0 < long.tally.truncated == sum(length > 5 for length in lengths) < 12
    assert [min(5, length) for length in lengths] == [len(ids) for ids in batch_ids(long)]


def test_rows_without_a_text_are_replaced_and_counted(tmp_path: Path) -> None:
    """The batch stays full, its other rows are the same, and it is the same each time."""
    path = write_pairs(tmp_path / "pairs.parquet", 48, row_group_size=48)
    table = pq.read_table(path)
    before = loader_of(path)[2]
    texts = [None if i % 4 == 0 else " " if i % 4 == 1 else text for i, text in enumerate(table["text"].to_pylist())]
    pq.write_table(table.set_column(1, "text", pa.array(texts)), path, row_group_size=48)
    loader = loader_of(path)

    batch, again = loader[2], loader_of(path)[2]

    planned = loader.plan.batch(2).rows
    assert 12 == len(batch.pixels) == batch.tally.pairs
    assert 0 < np.sum(planned % 4 < 2) <= batch.tally.skipped
    assert torch.equal(batch.pixels, again.pixels)
    kept = torch.from_numpy(planned % 4 >= 2)
    assert torch.equal(before.pixels[kept], batch.pixels[kept])
    assert meaning(" ") not in batch.noun.tolist()


def test_data_without_any_text_are_refused(tmp_path: Path) -> None:
    """The message names the last row that was tried."""
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"image": [b"x"] * 12, "text": [""] * 12}), path)
    with pytest.raises(DataError, match=r"pairs\.parquet, row \d+: has no text to train on; nor can 99 other"):
        loader_of(path)[0]


def test_pairs_mean_the_same_by_class_and_by_text(tmp_path: Path) -> None:
    """Equal classes and equal texts have equal numbers; without a class the text is the class."""
    path = write_pairs(tmp_path / "pairs.parquet", 12)
    loader = loader_of(path)
    rows = [loader.reader[row] for row in loader.plan.batch(0).rows.tolist()]
    assert [meaning(row.label or "") for row in rows] == loader[0].label.tolist()
    assert [meaning(row.text or "") for row in rows] == loader[0].noun.tolist()

    pq.write_table(pq.read_table(path).drop(["label"]), path)
    bare = loader_of(path)[0]
    assert [meaning(row.text or "") for row in rows] == bare.noun.tolist() == bare.label.tolist()


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


@pytest.mark.parametrize(("resize", "size"), [("squash", (70, 40)), ("shortest", (40, 40))])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_a_whole_view_is_prepared_as_the_service_prepares_it(
    resize: Any, size: tuple[int, int], interpolation: Any
) -> None:
    """A model that squashes pictures is trained on squashed ones; the filter is its own."""
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (*size[::-1], 3), np.uint8))
    augmentation = Augmentation(squash=resize == "squash", interpolation=interpolation)
    section = ImageSection(
        height=32,
        width=32,
        resize=resize,
        interpolation=interpolation,
        crop="none" if resize == "squash" else "center",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    np.testing.assert_array_equal(preprocess(image, section), augmentation.apply(image, 32, np.random.default_rng(0)))


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("sides", [(32, 32), (20, 41), (5, 4), (1, 1)])
@pytest.mark.parametrize("size", [32, 24])
def test_a_shifted_view_is_that_of_the_padded_picture(sides: tuple[int, int], size: int, squash: bool) -> None:
    """Copied or resized: the pixels are those of numpy's reflection, however small the picture."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*sides, 3), np.uint8))
    augmentation = Augmentation(shift=0.4, squash=squash)
    for seed in range(6):
        view = augmentation.apply(image, size, np.random.default_rng(seed))

        rng = np.random.default_rng(seed)
        rng.uniform()
        pad = round(0.4 * min(sides))
        padded = Image.fromarray(np.pad(np.asarray(image), ((pad, pad), (pad, pad), (0, 0)), "reflect"))
        width, height = image.size if squash else (min(sides), min(sides))
        left = int(rng.integers(padded.width - width + 1))
        top = int(rng.integers(padded.height - height + 1))
        box = (left, top, left + width, top + height)
        expected = padded.resize((size, size), Image.Resampling.BICUBIC, box=box)
        assert np.array_equal(np.asarray(expected), view)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_a_large_view_is_prepared_nearly_so(interpolation: Any) -> None:
    """Large crops are resized faster than by Pillow: few values differ, and hardly one by more than a level."""
    y, x = np.mgrid[:300, :300]
    noise = np.random.default_rng(3).integers(-20, 21, (300, 300, 3))
    waves = 128 + 90 * np.sin(x / 9)[..., None] * np.cos(y / 7)[..., None]
    image = Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))
    expected = image.resize((224, 224), Image.Resampling[interpolation.upper()])

    view = Augmentation(interpolation=interpolation).apply(image, 224, np.random.default_rng(0))

    difference = np.abs(view.astype(int) - np.asarray(expected).astype(int))
    assert (difference > 0).mean() < 0.03
    assert (difference > 1).mean() < 0.001


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


class StartingWorkers:
    """What torch's iterator does if a process still starts while the others are stopped."""

    stops = 0

    def __iter__(self) -> StartingWorkers:
        return self

    def __next__(self) -> int:
        return 1

    def _shutdown_workers(self) -> None:
        self.stops += 1
        if self.stops == 1:
            raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly with exit code 1.")

    def __del__(self) -> None:
        self._shutdown_workers()


def test_workers_that_still_start_are_stopped_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends early prints its own error only."""
    monkeypatch.setattr(loading, "DataLoader", lambda *_, **__: StartingWorkers())
    loader: Any = SimpleNamespace(plan=SimpleNamespace(total_steps=3))
    stream: Any = batches(loader, first_step=0, workers=1, pin_memory=False)
    assert 1 == next(stream)
    del stream
