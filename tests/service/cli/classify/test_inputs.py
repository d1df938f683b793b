"""Images and labels that the commands read: files, folders, patterns and label sets."""

import re
from pathlib import Path

import pytest

from model_export.evaluation.data.samples import IMAGE_SUFFIXES as EVALUATED_SUFFIXES
from service.cli.inputs import (
    IMAGE_SUFFIXES,
    InputError,
    describe_passed_over,
    find_images,
    read_label_set,
    read_labels,
)
from tests.service.cli.classify.photos import LABELS, below
from tests.support.commands import anyclass


def test_a_folder_stands_for_the_images_below_it(folder: Path) -> None:
    """Sorted by name, without hidden files, links to folders and files that are not images by name."""
    found, passed_over = find_images([str(folder / "photos")])
    assert ["a.png", "b/10.JPG", "b/2.png", "b/broken.png", "c.bmp"] == below(found, folder)
    assert ["notes.txt"] == below(passed_over, folder)


def test_a_folder_reads_every_name_of_a_format(tmp_path: Path) -> None:
    """The names that browsers and tools give to JPEG and PNG are found too; `evaluate` finds the same."""
    names = ["a.jfif", "b.JPE", "c.apng", "d.dib", "e.pjpeg", "f.tif", "g.avif", "h.mpo"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert [str(tmp_path / name) for name in names] == find_images([str(tmp_path)]).images
    assert set(IMAGE_SUFFIXES) == {f".{suffix}" for suffix in EVALUATED_SUFFIXES}


def test_files_passed_over_are_named(tmp_path: Path) -> None:
    """A folder's other files are counted and the first named, HEIC with its remedy; a folder of them alone says so."""
    for name in ("IMG_1.HEIC", "IMG_2.heic"):
        (tmp_path / name).write_bytes(b"")
    only = f"no images in the folder {tmp_path} (2 files passed over: {tmp_path}/IMG_1.HEIC, {tmp_path}/IMG_2.heic; "
    with pytest.raises(InputError, match=re.escape(only + "HEIC is not read: export it as JPEG)")):
        find_images([str(tmp_path)])
    assert "" == describe_passed_over([])
    assert "1 file passed over: b.svg" == describe_passed_over(["b.svg"])
    many = [f"{number}.svg" for number in range(1_007)]
    assert "1,007 files passed over: 0.svg, 1.svg, 2.svg, 3.svg, 4.svg, and 1,002 more" == describe_passed_over(many)


def test_the_command_says_that_it_passed_over_a_file(folder: Path) -> None:
    """On standard error, before the results."""
    arguments = ["classify", folder / "photos", *LABELS, "--json", "--model", folder / "bundle", "--provider", "cpu"]
    result = anyclass(*arguments)
    note, error = result.stderr.splitlines()
    assert f"1 file passed over: {folder}/photos/notes.txt" == note
    assert (1, 5, True) == (result.returncode, len(result.stdout.splitlines()), "broken.png" in error)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("https://example.org/a.jpg", "is a URL, and images are read from files only; download it first"),
        ("s3://bucket/a.jpg", "is a URL"),
        ("-", "no image is read from the standard input (-); save it to a file"),
    ],
)
def test_an_image_that_is_no_file_is_bad_input(argument: str, words: str) -> None:
    """The message says what to do, before a model is loaded; a file of that name is still a file."""
    result = anyclass("classify", argument, *LABELS)
    assert (2, "", 1) == (result.returncode, result.stdout, len(result.stderr.splitlines()))
    assert words in result.stderr


def test_a_file_named_like_the_standard_input_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Existing files are taken as they are named."""
    monkeypatch.chdir(tmp_path)
    Path("-").write_bytes(b"")
    assert ["-"] == find_images(["-"]).images


def test_a_labels_file_may_have_comments(tmp_path: Path) -> None:
    """As in a key file, a line that begins with # is no label; a label that does is given by --labels."""
    file = tmp_path / "labels.txt"
    file.write_text("# animals\ncat\n  # more\nC# code\n", "utf-8")
    assert ["#1", "cat", "C# code"] == read_labels(["#1"], file)
    assert {"labels": ["cat", "C# code"]} == read_label_set([], file)


def test_a_pattern_stands_for_the_files_it_matches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders do not match; a file whose name looks like a pattern is that file."""
    found = find_images([f"{folder}/photos/b/*", f"{folder}/photos/**/*.bmp"]).images
    assert ["b/10.JPG", "b/2.png", "b/broken.png", "c.bmp"] == below(found, folder)
    monkeypatch.chdir(folder)
    assert ["./photos/a.png", "nowhere.png"] == find_images(["./photos/a.png", "nowhere.png"]).images
    (folder / "odd[1].png").write_bytes(b"")
    assert ["odd[1].png"] == find_images(["odd[1].png"]).images


@pytest.mark.parametrize("argument", ["empty", "*.gif"])
def test_nothing_to_classify_is_bad_input(folder: Path, monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    """An empty folder or a pattern without matches is probably a mistake."""
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=re.escape(argument)):
        find_images([argument])
    result = anyclass("classify", argument, *LABELS)
    assert (2, "") == (result.returncode, result.stdout)
    assert [True] == [line.startswith("Error: no ") for line in result.stderr.splitlines()]


def test_a_label_set_from_a_file(tmp_path: Path) -> None:
    """Lines, a list, or an object as in the HTTP API; text that only resembles JSON is a line."""
    file = tmp_path / "labels"
    for text, expected in (
        ("cat\n\n red fox \r\n", {"labels": ["old", "cat", "red fox"]}),
        ("[photo]\ncat\n", {"labels": ["old", "[photo]", "cat"]}),
        ('["cat"]', {"labels": ["old", "cat"]}),
        ('\ufeff{"labels": [{"label": "cat"}], "templates": "none"}', None),
    ):
        file.write_text(text, "utf-8")
        whole = {"labels": ["old", {"label": "cat"}], "templates": "none"}
        assert (expected or whole) == read_label_set(["old"], file)
    broken = tmp_path / "labels.json"
    broken.write_text("[", "utf-8")
    with pytest.raises(InputError, match="is not JSON"):
        read_label_set([], broken)
