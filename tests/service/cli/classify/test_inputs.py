"""Images and labels that the commands read: files, folders, patterns and label sets."""

import re
from pathlib import Path

import pytest

from service.cli.inputs import InputError, find_images, read_label_set
from tests.service.cli.classify.photos import LABELS, below
from tests.support.commands import anyclass


def test_a_folder_stands_for_the_images_below_it(folder: Path) -> None:
    """Sorted by name, without hidden files, links to folders and files that are not images by name."""
    found = find_images([str(folder / "photos")])
    assert ["a.png", "b/10.JPG", "b/2.png", "b/broken.png", "c.bmp"] == below(found, folder)


def test_a_pattern_stands_for_the_files_it_matches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders do not match; a file whose name looks like a pattern is that file."""
    found = find_images([f"{folder}/photos/b/*", f"{folder}/photos/**/*.bmp"])
    assert ["b/10.JPG", "b/2.png", "b/broken.png", "c.bmp"] == below(found, folder)
    monkeypatch.chdir(folder)
    assert ["./photos/a.png", "nowhere.png"] == find_images(["./photos/a.png", "nowhere.png"])
    (folder / "odd[1].png").write_bytes(b"")
    assert ["odd[1].png"] == find_images(["odd[1].png"])


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
