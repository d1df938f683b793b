import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from model_export.cli import main
from model_export.errors import DataError
from model_export.evaluation.data.samples import Label, Rows, Sample, choose_rows, printable
from model_export.evaluation.data.sources import SampleColumns, expand, open_data
from model_export.evaluation.figures import Confusion, answers, confusion_matrix, figures
from model_export.evaluation.measure import Measurement
from model_export.evaluation.open_clip_metadata import imagenet_class_names, imagenet_templates
from model_export.evaluation.plot import write_plot
from model_export.evaluation.run import Evaluation, Request, evaluate
from model_export.evaluation.templates import TEMPLATE_SETS, choose_templates
from service.images.decoding import decode
from service.model.engine.engine import OnnxEngine
from service.model.loading import load_bundle
from service.model.manifest import DEMO_BUNDLE
from service.model.tokenizer import Tokenizer
from tests.support.classifying import picture, tiny_engine
from tests.support.labelled import webdataset, write_folder, write_hugging_face, write_parquet, write_tar
from tests.support.pictures import encode, noise, quadrants
from tests.support.tiny_bundle import write_tiny_bundle

# Each evaluation loads an engine, slowly on a busy machine.
pytestmark = pytest.mark.timeout(300)

# Pictures of one colour, which the tiny bundle recognises, so every other label is a confusion by design.
LABELLED = [
    *[(picture("red"), "red")] * 3,
    (picture("green"), "red"),
    (picture("blue"), "blue"),
    *[(picture("red"), "blue")] * 2,
    (picture("green"), "green"),
]
EXPECTED = {
    "images": 8,
    "top1": 5 / 8,
    "mean_per_class": pytest.approx((3 / 4 + 1 / 3 + 1) / 3),
    "per_class": {"red": (4, 3 / 4), "blue": (3, 1 / 3), "green": (1, 1.0)},
    "confusions": [("blue", "red", 2, 2 / 3), ("red", "green", 1, 1 / 4)],
}
WORDNET = {"n01440764": "red", "n01443537": "green", "n02012849": "blue"}


class Silent:
    """Shows nothing, and records the parts and their progress."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.totals: dict[str, int] = {}

    def begin(self, what: str, total: int) -> Callable[[int], None]:
        """Record a part of the work."""
        self.totals[what], self.done[what] = total, 0

        def advance(count: int) -> None:
            self.done[what] += count

        return advance


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the bundle that recognises colours; tests must not change it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def measured(bundle: Path, *data: object, **options: object) -> Evaluation:
    """Evaluate with few images at a time."""
    request = Request(bundle=bundle, data=tuple(map(str, data)), **({"batch_size": 3} | options))  # type: ignore[arg-type]
    return evaluate(request, Silent())


def summary(found: Evaluation, title: str = "none") -> dict[str, object]:
    """Return one set's figures, with names instead of indices."""
    own, names = found.figures[title], found.classes
    return {
        "images": own.images,
        "top1": own.top1,
        "mean_per_class": own.mean_per_class,
        "per_class": {
            name: (int(images), float(top1))
            for name, images, top1 in zip(names, own.class_images, own.class_top1, strict=True)
            if images
        },
        "confusions": [(names[true], names[taken], images, share) for true, taken, images, share in own.confusions],
    }


# --- layouts ---


def _folder(path: Path) -> Path:
    return write_folder(path / "photos", LABELLED)


def _wordnet_folder(path: Path) -> Path:
    ids = {name: wordnet_id for wordnet_id, name in WORDNET.items()}
    (path / "ILSVRC" / "Data").mkdir(parents=True)
    lines = [f"{wordnet_id} {name}, a colour" for wordnet_id, name in WORDNET.items()]
    (path / "LOC_synset_mapping.txt").write_text("\n".join([*lines, "n09999999 never seen"]) + "\n")
    labelled = [(content, ids[name]) for content, name in LABELLED]
    return write_folder(path / "ILSVRC" / "Data" / "val", labelled, ".JPEG")


def _parquet(path: Path) -> Path:
    return write_parquet(path / "photos.parquet", LABELLED)


def _hugging_face(path: Path) -> Path:
    return write_hugging_face(path / "photos.parquet", LABELLED, ["green", "blue", "red"])


def _parquet_folder(path: Path) -> Path:
    (path / "shards").mkdir()
    write_parquet(path / "shards" / "0.parquet", LABELLED[:3])
    write_parquet(path / "shards" / "1.parquet", LABELLED[3:])
    return path / "shards"


def _tars(path: Path) -> Path:
    for index in range(2):
        write_tar(path / f"photos-{index:03d}.tar", webdataset(LABELLED[index::2]))
    return path / "photos-{000..001}.tar"


def _compressed_tar_with_texts(path: Path) -> Path:
    return write_tar(path / "photos.tar.gz", webdataset(LABELLED, suffix="txt"), "w:gz")


@pytest.mark.parametrize(
    "layout",
    [
        _folder,
        _wordnet_folder,
        _parquet,
        _hugging_face,
        _parquet_folder,
        _tars,
        _compressed_tar_with_texts,
    ],
)
def test_known_confusions_are_found_in_every_layout(
    bundle: Path, tmp_path: Path, layout: Callable[[Path], Path]
) -> None:
    """The same pictures give the same hand-computed figures in every layout."""
    found = measured(bundle, layout(tmp_path), templates=("none",))
    assert EXPECTED == summary(found)
    assert 0 == found.broken_count
    assert () == found.remarks


def test_classes_by_number_and_more_classes_than_the_data_have(bundle: Path, tmp_path: Path) -> None:
    """--classes names numeric labels, and the model chooses from all of its classes."""
    colours = ["blue", "white", "red", "white white", "green", "a white one"]
    (tmp_path / "classes.txt").write_text("\n".join(colours) + "\n\n")
    labelled = [(content, str(colours.index(name))) for content, name in LABELLED]
    shard = write_tar(tmp_path / "photos.tar", webdataset(labelled))

    found = measured(bundle, shard, templates=("none",), classes=str(tmp_path / "classes.txt"))

    assert EXPECTED == summary(found)
    assert tuple(colours) == found.classes
    numbers = found.figures["none"].class_top1
    assert np.isnan(numbers[[1, 3, 5]]).all()


def test_several_paths_are_one_set(bundle: Path, tmp_path: Path) -> None:
    """Files of different kinds form one set; spaces do not distinguish classes."""
    folder = write_folder(tmp_path / "photos", [(picture("red"), "bright_red"), (picture("blue"), "blue")])
    table = write_parquet(tmp_path / "photos.parquet", [(picture("red"), "bright  red "), (picture("green"), "green")])

    found = measured(bundle, folder, table, templates=("none",))

    assert ("blue", "bright red", "green") == found.classes
    assert [1, 2, 1] == found.figures["none"].class_images.tolist()
    assert 1.0 == found.figures["none"].top1


def test_classes_that_share_a_name_are_reported(bundle: Path, tmp_path: Path) -> None:
    """ImageNet has two cranes: they tie to the bit, the first is taken, and a remark says so."""
    index = {"0": ["n01440764", "red"], "1": ["n01443537", "crane_bird"], "2": ["n02012849", "red"]}
    folder = write_folder(tmp_path / "val", [(picture("red"), wordnet_id) for wordnet_id, _ in index.values()])
    (folder / "imagenet_class_index.json").write_text(json.dumps(index))

    found = measured(bundle, folder, templates=("none", "default"))

    assert ("red", "crane bird", "red") == found.classes
    assert [("red", "red"), ("crane bird", "red")] == [
        (found.classes[true], found.classes[taken])
        for true, taken, *_ in sorted(found.figures["none"].confusions)[::-1]
    ]
    assert 1 / 3 == found.figures["none"].top1
    assert "'red': several classes have this name" in found.remarks[0]


def test_a_first_name_that_two_ids_share_is_written_out(bundle: Path, tmp_path: Path) -> None:
    """`maillot` and `maillot, tank suit` are two classes."""
    folder = write_folder(tmp_path / "val", [(picture("red"), "n03710637"), (picture("red"), "n03710721")])
    (tmp_path / "classnames.txt").write_text("n03710637 Maillot\nn03710721 maillot, tank suit\n")
    assert ("Maillot", "maillot, tank suit") == measured(bundle, folder, templates=("none",)).classes


def test_names_without_ids_are_in_the_order_of_the_ids(bundle: Path, tmp_path: Path) -> None:
    """A plain list of class names fits ImageNet's folders if it has one name for each folder."""
    folder = _wordnet_folder(tmp_path)
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    found = measured(bundle, folder, templates=("none",), classes=str(tmp_path / "names.txt"))
    assert EXPECTED == summary(found)

    (tmp_path / "names.txt").write_text("red\ngreen\n")
    with pytest.raises(DataError, match="has 2 names without WordNet ids, the data have 3"):
        measured(bundle, folder, classes=str(tmp_path / "names.txt"))


# --- figures ---


def test_ranks_and_accuracies_are_those_of_a_plain_sort() -> None:
    """Against sorting in Python, with many ties: a class of equal cosine and lower index comes first."""
    rng = np.random.default_rng(1)
    cosines = (rng.integers(0, 6, (200, 9)) / 6).astype(np.float32)
    targets = rng.integers(0, 8, 200)  # the last class has no images

    given = answers(cosines, targets)
    found = figures(given, 9)

    orders = [
        [index for _, index in sorted((-value, index) for index, value in enumerate(row))] for row in cosines.tolist()
    ]
    assert [order.index(target) for order, target in zip(orders, targets, strict=True)] == given.ranks.tolist()
    assert [order[0] for order in orders] == given.taken_for.tolist()
    right = [order[0] == target for order, target in zip(orders, targets, strict=True)]
    per_class = [np.mean([r for r, t in zip(right, targets, strict=True) if t == c]) for c in range(8)]
    assert sum(right) / 200 == pytest.approx(found.top1)
    assert np.mean([t in order[:5] for order, t in zip(orders, targets, strict=True)]) == pytest.approx(found.top5)
    assert np.mean(per_class) == pytest.approx(found.mean_per_class)
    assert sum(not r for r in right) == sum(confusion.images for confusion in found.confusions)
    assert found.confusions[0].images == max(confusion.images for confusion in found.confusions)

    matrix = confusion_matrix(found)
    assert np.allclose(1, matrix[:8].sum(axis=1))
    assert np.isnan(matrix[8]).all()


def test_all_right_has_no_confusions() -> None:
    """Right answers are no confusions."""
    found = figures(answers(np.eye(3, dtype=np.float32), np.arange(3)), 3)
    assert (1.0, 1.0, ()) == (found.top1, found.mean_per_class, found.confusions)
    assert Confusion(0, 1, 1, 1.0) == figures(answers(np.eye(2, dtype=np.float32)[[1]], np.array([0])), 2).confusions[0]


def test_template_sets_are_averaged_as_unit_vectors_by_the_shipped_model(tmp_path: Path) -> None:
    """On the demo bundle, a plain computation with its graphs gives the same figures for each set."""
    names = ["cat", "dog", "truck", "rocket", "apple", "sea", "forest", "clock", "orange"]
    pictures = [encode(quadrants(), "PNG"), *(encode(noise(40 + i, 37, seed=i), "JPEG") for i in range(14))]
    labelled = [(content, names[index % len(names)]) for index, content in enumerate(pictures)]
    data = write_parquet(tmp_path / "photos.parquet", labelled)

    found = measured(DEMO_BUNDLE, data, templates=("default,ensemble", "seven"), batch_size=4)

    opened = load_bundle(DEMO_BUNDLE)
    engine, tokenizer = OnnxEngine.load(opened, "cpu"), Tokenizer.from_bundle(opened)
    images = np.concatenate(
        [engine.encode_images(decode(content, opened.manifest.image)[None]) for content in pictures]
    )
    classes = sorted(names)
    assert tuple(classes) == found.classes
    sets = {**opened.templates, **TEMPLATE_SETS}
    assert ["default", "ensemble", "seven"] == list(found.figures)
    for title in found.figures:
        vectors = []
        for name in classes:
            prompts = np.concatenate(
                [engine.encode_texts(tokenizer.encode([t.replace("{}", name)])) for t in sets[title]]
            )
            mean = prompts.astype(np.float64).mean(axis=0)
            vectors.append(mean / np.linalg.norm(mean))
        ranked = [[classes[index] for index in np.argsort(-(np.array(vectors) @ image))] for image in images]
        hits = [(order[0] == label, label in order[:5]) for order, (_, label) in zip(ranked, labelled, strict=True)]
        top1, top5 = np.mean(hits, axis=0)
        assert (top1, top5) == pytest.approx((found.figures[title].top1, found.figures[title].top5))
        wrong = {(label, order[0]) for order, (_, label) in zip(ranked, labelled, strict=True) if order[0] != label}
        assert wrong == {(classes[c.true], classes[c.taken_for]) for c in found.figures[title].confusions}


# --- which rows ---


def test_every_and_limit() -> None:
    """--every takes the rows that training holds out; --limit draws from these, the same ones each time."""
    assert [[4, 9], [4]] == [rows.tolist() for rows in choose_rows([12, 7], every=5)]
    assert [[0, 1, 2], [0]] == [rows.tolist() for rows in choose_rows([3, 1], limit=4)]

    drawn = choose_rows([1000, 500], limit=300)
    assert 300 == sum(map(len, drawn))
    assert 150 < len(drawn[0]) < 250  # from everywhere, not the first rows
    assert all(np.array_equal(rows, np.unique(rows)) for rows in drawn)
    assert drawn[0].max() < 1000
    assert drawn[1].max() < 500
    again = choose_rows([1000, 500], limit=300)
    assert all(np.array_equal(one, other) for one, other in zip(drawn, again, strict=True))


@pytest.mark.parametrize("layout", [_folder, _parquet, _tars])
def test_only_the_chosen_rows_are_read(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    """A source yields exactly the requested rows, with their own bytes."""
    for source in open_data([str(layout(tmp_path))]):
        rows = choose_rows([len(source.labels)], every=2)[0]
        samples = list(source.samples(rows))
        assert rows.tolist() == [sample.row for sample in samples]
        everything = {sample.row: sample.read() for sample in source.samples(np.arange(len(source.labels)))}
        assert [everything[row] for row in rows.tolist()] == [sample.read() for sample in samples]


def test_a_row_group_is_read_in_pieces(tmp_path: Path) -> None:
    """Hugging Face's row groups may hold gigabytes, so only a part is in memory."""
    labelled = [(np.random.default_rng(i).bytes(100_000), "ab"[i % 2]) for i in range(200)]
    # Data pages of a few pictures each, as a writer of large values makes them.
    data = write_parquet(tmp_path / "large.parquet", labelled, group_rows=200, write_batch_size=4)
    (source,) = open_data([str(data)])
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in source.samples(np.arange(200))]
    assert max(held) < 10_000_000


class Counted:
    """A source of many pictures that counts the taken ones."""

    path = Path("counted")
    class_names = None

    def __init__(self, count: int) -> None:
        self.labels: Sequence[Label] = ["red"] * count
        self.taken = 0

    def samples(self, rows: Rows) -> Iterator[Sample]:
        """Count, and give a red picture."""
        for row in rows.tolist():
            self.taken += 1
            yield Sample(row, str(row), lambda: picture("red"))


def test_images_are_streamed(tmp_path: Path) -> None:
    """Of any number of images, only the batch on the device and the next one are in memory."""
    source, done, ahead = Counted(100), 0, []

    def advance(count: int) -> None:
        nonlocal done
        ahead.append(source.taken - done)
        done += count

    engine = tiny_engine(tmp_path / "bundle")
    matrix = np.eye(2, engine.dim, dtype=np.float32)
    measurement = Measurement(engine, load_bundle(tmp_path / "bundle").manifest.image, {"one": matrix}, [0, 1], 8)
    measurement.run([source], [np.arange(100)], [np.zeros(100, np.int64)], advance)

    assert 100 == done
    assert max(ahead) <= 2 * 8 + 1


# --- what cannot be read ---


def test_unreadable_images_are_counted_and_named(bundle: Path, tmp_path: Path) -> None:
    """The figures omit every kind of broken picture; each is named with the reason."""
    folder = write_folder(tmp_path / "photos", LABELLED)
    (folder / "red" / "cut.png").write_bytes(encode(noise(50, 50), "PNG")[:500])
    (folder / "red" / "empty.png").write_bytes(b"")
    (folder / "red" / "text.jpg").write_bytes(b"<html>")
    (folder / "red" / "gone.png").symlink_to("nowhere")
    (folder / "red" / "huge.png").write_bytes(b"")
    with (folder / "red" / "huge.png").open("r+b") as file:
        file.truncate(2**40)
    (folder / "red" / "notes.md").write_text("not an image, and not taken for one")

    found = measured(bundle, folder, templates=("none",))

    assert EXPECTED == summary(found)
    assert 5 == found.broken_count
    assert ["cut.png", "empty.png", "gone.png", "huge.png", "text.jpg"] == [
        Path(broken.where).name for broken in found.broken
    ]
    assert "corrupt" in found.broken[0].reason
    assert "limit" in found.broken[3].reason

    empty = write_parquet(tmp_path / "empty.parquet", LABELLED, image=pa.array([None] * len(LABELLED), pa.binary()))
    with pytest.raises(DataError, match=r"none of the 8 images can be read; the first is .*empty.parquet, row 0: "):
        measured(bundle, empty)


def test_hostile_tar_files_write_nothing_and_read_nothing_else(bundle: Path, tmp_path: Path) -> None:
    """A member's name is never a path; links, devices and giant members are not pictures."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture("green"))
    shard = tmp_path / "shards" / "hostile.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as archive:

        def add(name: str, content: bytes = b"", **fields: object) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for field, value in fields.items():
                setattr(entry, field, value)
            archive.addfile(entry, io.BytesIO(content))

        add("../../up.png", picture("red"))
        add("../../up.cls", b"red")
        add(f"{tmp_path}/absolute\x1b[31m.png", b"broken")
        add(f"{tmp_path}/absolute\x1b[31m.cls", b"blue")
        add("link.png", type=tarfile.SYMTYPE, linkname=str(secret))
        add("link.cls", b"green")
        add("hard.png", type=tarfile.LNKTYPE, linkname=str(secret))
        add("pipe.png", type=tarfile.FIFOTYPE)
    before = sorted(tmp_path.rglob("*"))

    found = measured(bundle, shard, templates=("none",))

    assert before == sorted(tmp_path.rglob("*"))
    assert ("blue", "red") == found.classes
    assert [0, 1] == found.figures["none"].class_images.tolist()
    (broken,) = found.broken
    assert "\x1b" not in broken.where
    assert r"\x1b[31m.png" in broken.where


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2 + 100]


def _cut_between_members(content: bytes) -> bytes:
    return content[: 1024 * 3]


def _damaged_header(content: bytes) -> bytes:
    return content[:3072] + b"x" * 512 + content[3584:]


def _lone_block_of_zeros(content: bytes) -> bytes:
    return content[:3072] + bytes(512) + content[3584:]


@pytest.mark.parametrize(
    "damage", [_cut, _cut_between_members, _damaged_header, _lone_block_of_zeros, lambda content: content[:100]]
)
def test_a_damaged_tar_file_is_refused(bundle: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Damage is reported even if the library takes it for the end of the file."""
    whole = write_tar(tmp_path / "whole.tar", webdataset(LABELLED))
    (tmp_path / "damaged.tar").write_bytes(damage(whole.read_bytes()))
    with pytest.raises(DataError, match=r"damaged\.tar: .*; copy the file again"):
        measured(bundle, tmp_path / "damaged.tar")


def test_a_name_cannot_steer_a_terminal() -> None:
    """Escape sequences, line ends and lone surrogates are escaped, and long names are cut."""
    assert r"a\x1b[2J\nb\udc80é" == printable("a\x1b[2J\nb\udc80é")
    assert 201 == len(printable("x" * 10_000))


# --- wrong input ---


def _write(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda p: {"data": p / "no"}, "does not exist; name a file or a folder"),
        (lambda p: {"data": _write(p / "data.csv", "a,b")}, "is neither a folder nor a file named .parquet or .tar"),
        (lambda p: {"data": p}, "holds neither Parquet or tar files nor sub-folders of images"),
        (lambda p: {"data": write_folder(p / "x", [(b"", "train"), (b"", "val")])}, "holds splits, not classes"),
        (lambda p: {"data": write_folder(p / "x", [(b"", "cat"), (b"", "dog")], ".md")}, "holds no image"),
        (lambda p: {"data": write_folder(p / "x", [(b"", "cat")])}, "has the class 'cat' only"),
        (lambda p: {"data": write_folder(p / "x", [(b"", "n01440764"), (b"", "cat")])}, "put LOC_synset_mapping.txt"),
        (lambda p: {"data": p / "{9..0}.tar"}, "must count upwards"),
        (lambda p: {"data": p / "{0..999999999}.tar"}, "must count upwards"),
        (lambda p: {"data": _write(p / "x.parquet", "PAR1")}, "is not a readable Parquet file"),
        (lambda p: {"data": _parquet(p), "columns": SampleColumns(image="img")}, "name yours with --image-column"),
        (lambda p: {"data": _parquet(p), "columns": SampleColumns(label="class")}, "name yours with --label-column"),
        (lambda p: {"data": _parquet(p), "columns": SampleColumns(image="text")}, "not encoded images"),
        (
            lambda p: {"data": _parquet(p), "columns": SampleColumns(label="image")},
            "it must hold class names or numbers",
        ),
        (
            lambda p: {"data": write_parquet(p / "x.parquet", LABELLED, label=list(range(8)))},
            "its labels are numbers, such as 0; name them with --classes",
        ),
        (
            lambda p: {"data": write_parquet(p / "x.parquet", LABELLED, label=[None, *"abcdefg"])},
            "column 'label' has 1 empty rows",
        ),
        (
            lambda p: {"data": write_parquet(p / "x.parquet", LABELLED, label=[*"abcdefg", "\x1b"])},
            "holds a control character",
        ),
        (lambda p: {"data": write_tar(p / "x.tar", [("a.txt", b"hello")])}, "holds no images"),
        (lambda p: {"data": write_tar(p / "x.tar", [("a.png", b"")])}, r"a\.png has no label; put a\.cls or"),
        (lambda p: {"data": write_tar(p / "x.tar", [("a.cls", b""), ("a.png", b"")])}, r"a\.cls is empty"),
        (lambda p: {"data": write_tar(p / "x.tar", [("a.cls", b"\xff"), ("a.png", b"")])}, "not text in UTF-8"),
        (lambda p: {"data": write_tar(p / "x.tar", [("a.txt", b"x" * 2000), ("a.png", b"")])}, "has 2,000 bytes"),
        (lambda p: {"data": _parquet(p), "classes": str(p / "no.txt")}, r"no\.txt: does not exist; give --classes"),
        (lambda p: {"data": _parquet(p), "classes": _write(p / "c.txt", "\n")}, "is empty; write one class a line"),
        (lambda p: {"data": _parquet(p), "classes": _write(p / "c.txt", "red\n\nblue")}, "line 2 is empty"),
        (
            lambda p: {"data": _parquet(p), "classes": _write(p / "c.txt", "red\nblue\n")},
            "'green' not among the 2 classes of",
        ),
        (
            lambda p: {"data": _wordnet_folder(p), "classes": _write(p / "c.txt", "n01440764 red\nn00000001 x\n")},
            "'n01443537', 'n02012849' not among the 2 classes of",
        ),
        (
            lambda p: {"data": _parquet(p), "classes": _write(p / "c.json", '{"a": 1}')},
            "must hold a list of names, or an index",
        ),
        (lambda p: {"data": _parquet(p), "templates": ("nope",)}, "choose from default, none, seven, openai-imagenet"),
        (
            lambda p: {"data": _parquet(p), "templates": (str(p / "no.json"),)},
            "does not exist; name a JSON file of templates",
        ),
        (lambda p: {"data": _parquet(p), "templates": (_write(p / "t.json", "[]"),)}, "No templates were given"),
        (lambda p: {"data": _parquet(p), "templates": (_write(p / "t.json", '["a {} {}"]'),)}, "exactly once"),
        (lambda p: {"data": _parquet(p), "templates": (_write(p / "t.json", '{"a": 1}'),)}, "must hold a list"),
        (
            lambda p: {"data": _parquet(p), "templates": ("default", _write(p / "t.json", '{"default": ["{}"]}'))},
            "two different sets have the name 'default'",
        ),
        (
            lambda p: {"data": _parquet(p), "templates": (_write(p / "t.json", json.dumps(["z " * 40 + "{}"])),)},
            "in template 'z z .* of set 't' is longer than the model's context",
        ),
        (lambda p: {"data": _parquet(p), "every": 100}, "--every 100 leaves no row"),
    ],
)
def test_wrong_input_is_refused_before_any_image_is_read(
    bundle: Path, tmp_path: Path, prepare: Callable[[Path], dict[str, object]], said: str
) -> None:
    """Each error is one line with a remedy."""
    options = prepare(tmp_path)
    with pytest.raises(DataError, match=said) as raised:
        measured(bundle, options.pop("data"), **options)
    assert "\n" not in str(raised.value)


def test_patterns_are_written_out(tmp_path: Path) -> None:
    """Patterns expand as in a shell, unless a file has that name."""
    assert ["x-008.tar", "x-009.tar", "x-010.tar"] == [str(path) for path in expand("x-{008..010}.tar")]
    assert ["a1/b0", "a1/b1", "a2/b0", "a2/b1"] == [str(path) for path in expand("a{1..2}/b{0..1}")]
    literal = tmp_path / "{0..1}.tar"
    literal.touch()
    assert [literal] == expand(str(literal))


# --- templates ---


def test_all_sets_of_the_bundle_are_compared_by_default_and_files_add_more(tmp_path: Path) -> None:
    """The default comes first; a file is one set named after it, or several with names."""
    own = {"none": ("{}",), "default": ("a {}.",)}
    assert ["default", "none"] == list(choose_templates([], own))
    one = _write(tmp_path / "mine.json", '["my {}"]')
    more = _write(tmp_path / "more.json", '{"x": ["x {}"], "y": ["y {}", "{} y"]}')
    assert {"none": ("{}",), "mine": ("my {}",), "x": ("x {}",), "y": ("y {}", "{} y")} == choose_templates(
        ["none", f"{one},{more}"], own
    )
    assert ("itap of a {}.", 7) == (choose_templates(["seven"], own)["seven"][0], len(TEMPLATE_SETS["seven"]))
    assert {"seven": ("own {}",)} == choose_templates(["seven"], {"seven": ("own {}",)})


METADATA = """
raise SystemExit("this file is data: it must be parsed, never run")
OPENAI_IMAGENET_TEMPLATES = (
    lambda c: f'a bad photo of a {c}.',
    lambda name: f'the {name} in a video game.',
)
IMAGENET_CLASSNAMES = ["red", "green",
    "blue"]
"""


@pytest.fixture
def open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a small open_clip_torch; return its data file."""
    site = tmp_path / "site"
    (site / "open_clip_torch-9.9.9.dist-info").mkdir(parents=True)
    (site / "open_clip_torch-9.9.9.dist-info" / "METADATA").write_text("Name: open_clip_torch\nVersion: 9.9.9\n")
    (site / "open_clip").mkdir()
    file = site / "open_clip" / "zero_shot_metadata.py"
    file.write_text(METADATA)
    monkeypatch.syspath_prepend(str(site))
    return file


def test_imagenet_prompts_and_names_come_from_open_clip_without_running_it(
    bundle: Path, tmp_path: Path, open_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are read from the installed package's source."""
    monkeypatch.setitem(sys.modules, "open_clip", None)  # an import would fail
    folder = _wordnet_folder(tmp_path)
    found = measured(bundle, folder, templates=("openai-imagenet",), classes="openai-imagenet")
    assert {"openai-imagenet": ("a bad photo of a {}.", "the {} in a video game.")} == found.template_sets
    assert EXPECTED == summary(found, "openai-imagenet")


@pytest.mark.parametrize(
    "prompt", ["f'a {c}.'", "lambda c: 'a ' + c", "lambda c: f'a {d}.'", "lambda c: f'{c} {c}'", "lambda c: f'a {c!r}'"]
)
def test_prompts_of_another_form_are_refused(open_clip: Path, prompt: str) -> None:
    """Unknown source is refused and not guessed; the error names the line."""
    open_clip.write_text(f"OPENAI_IMAGENET_TEMPLATES = (\n  {prompt},\n)\n")
    with pytest.raises(DataError, match="line 2: is not a prompt such as lambda c"):
        imagenet_templates(open_clip)
    with pytest.raises(DataError, match="has no IMAGENET_CLASSNAMES"):
        imagenet_class_names(open_clip)
    open_clip.write_text("IMAGENET_CLASSNAMES = list(map(str, range(3)))")
    with pytest.raises(DataError, match="is not a list of strings"):
        imagenet_class_names(open_clip)
    open_clip.write_text("(")
    with pytest.raises(DataError, match="cannot be read as Python source"):
        imagenet_class_names(open_clip)


def test_without_open_clip_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command installs the package without its dependencies, which reading a file does not need."""
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(DataError, match="pip install --no-deps open_clip_torch"):
        choose_templates(["openai-imagenet"], {})


# --- the command ---


def test_the_command_shows_and_writes_everything_without_torch(bundle: Path, tmp_path: Path) -> None:
    """Tables on stdout, a PNG, and a JSON file have the same figures, without torch."""
    folder = write_folder(tmp_path / "photos", LABELLED)
    (folder / "red" / "broken.png").write_bytes(b"no")
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['anyclass-export', *sys.argv[1:]]; "
        "from model_export.cli import main; main()"
    )
    out = ["--plot", str(tmp_path / "out.png"), "--json", str(tmp_path / "out.json"), "--templates", "none,default"]
    command = [sys.executable, "-c", code, "evaluate", str(bundle), "--data", str(folder), *out]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert "" == done.stderr
    assert 1 == done.returncode  # for the broken picture
    for shown in ("8 images, 3 classes", "62.50%", "69.44%", "taken for", "66.7%", "broken.png", "1 image could not"):
        assert shown in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    figures_of_none = written["template_sets"]["none"]
    assert (5 / 8, 8, 1) == (figures_of_none["top1"], written["images"], written["broken"]["count"])
    assert {"true": "blue", "taken_for": "red", "images": 2, "share": 2 / 3} == figures_of_none["confusions"][0]
    with Image.open(tmp_path / "out.png") as drawn:
        assert "PNG" == drawn.format
    assert ["out.json", "out.png", "photos"] == sorted(path.name for path in tmp_path.iterdir())


class Command(Protocol):
    """Runs the command in this process; returns exit code, stdout and stderr."""

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Run it with these arguments."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`anyclass-export evaluate`, without the start of a process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["anyclass-export", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run


def test_max_broken_decides_the_exit_code(bundle: Path, tmp_path: Path, command: Command) -> None:
    """The exit code is 0 for up to --max-broken broken pictures, else 1; the report names them either way."""
    folder = write_folder(tmp_path / "photos", LABELLED)
    (folder / "red" / "broken.png").write_bytes(b"no")
    for allowed, expected in ((1, 0), (0, 1)):
        code, out, _ = command(bundle, "--data", folder, "--max-broken", allowed, "--limit", 9)
        assert expected == code
        assert "1 image could not be read and is not counted" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "no-such"], "no-such: does not exist"),
        (["--data", ".", "--plot", "out.jpg"], "name it out.png"),
        (["--data", ".", "--json", "no/out.json"], "its folder is missing"),
        (["--data", ".", "--json", "."], "is a folder; name a file"),
        (["--data", ".", "--provider", "abacus"], "Provider 'abacus' is not known"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(bundle: Path, command: Command, arguments: list[str], said: str) -> None:
    """The error shows no traceback."""
    code, out, err = command(bundle, *arguments)
    assert (2, "") == (code, out)
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_plot_takes_any_name_and_any_number_of_classes(bundle: Path, tmp_path: Path) -> None:
    """Dollar signs are not mathematics, unknown scripts do not fail, and above a hundred classes no matrix is drawn."""
    labelled = [(picture("red"), name) for name in ("$5 bill$ {}", "\\alpha_{", "猫", "x" * 40)]
    few = measured(bundle, write_parquet(tmp_path / "few.parquet", labelled), templates=("none", "seven"))
    write_plot(tmp_path / "few.png", few)
    (tmp_path / "classes.txt").write_text("red\n" + "\n".join(f"class {i}" for i in range(200)))
    data = write_parquet(tmp_path / "many.parquet", [(picture("red"), "red")])
    many = measured(bundle, data, classes=str(tmp_path / "classes.txt"))
    write_plot(tmp_path / "many.png", many)
    with Image.open(tmp_path / "few.png") as small, Image.open(tmp_path / "many.png") as large:
        assert small.height > large.height
