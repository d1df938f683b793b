"""Tables, bars and the welcome on terminals of any width."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from service.classification.types import Classification, Prediction
from service.cli.console.rendering import bar, example_photo, heading, predictions_table, printable, shown_path, welcome
from tests.support.places import ROOT


def classification(**scores: float) -> Classification:
    """Make a classification by hand."""
    predictions = tuple(Prediction(label.replace("_", " "), score) for label, score in scores.items())
    return Classification("tiny", "r", predictions, len(predictions), 0)


def shown(name: str, result: Classification, width: int, **options: Any) -> str:
    """Render predictions as a terminal would show them."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, **options)
    console.print(heading(name, result))
    console.print(predictions_table(result, cosine=False, console=console))
    return stream.getvalue()


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_a_table_fits_the_terminal(width: int) -> None:
    """A long label is wrapped, not cut, and no line is wider than the terminal."""
    text = shown("photo.jpg", classification(a_very_long_label_that_goes_on_and_on_and_on=0.9, short=0.1), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    letters = "".join(character for character in text if character.isalpha())
    assert "averylonglabelthatgoesonandonandon" in letters


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR switches colours off."""
    assert "\x1b[1;32m" in shown("a", classification(cat=0.9), 80, force_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "32m" not in shown("a", classification(cat=0.9), 80, force_terminal=True)


def test_nothing_controls_the_terminal() -> None:
    """A label or file name with control characters is shown without them."""
    assert "�[31mred�" == printable("\x1b[31mred\x07")
    assert "\x1b" not in shown("\x1b]0;x", classification(**{"\x1b[2J": 0.5}), 80)


def test_no_predictions() -> None:
    """The table says that no label reaches the minimum score."""
    assert "no label" in shown("a", classification(), 80)


@pytest.mark.parametrize(
    ("score", "blocks", "expected"),
    [
        (1.0, True, "████"),
        (0.5, True, "██"),
        (0.53, True, "██▏"),
        (0.0, True, ""),
        (-0.4, True, ""),
        (0.5, False, "##"),
    ],
)
def test_bars(score: float, blocks: bool, expected: str) -> None:
    """Bars have eighths of a character, or number signs on a terminal without blocks."""
    assert expected == bar(score, 4, blocks=blocks)


def test_the_welcome_names_what_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a curl line with an existing photo, quoted for the shell."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "my cat.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    photo = example_photo([tmp_path / "nowhere", tmp_path / "examples"])
    assert photo is not None
    assert "'examples/my cat.jpg'" == shown_path(photo)
    text = welcome("http://127.0.0.1:8000", version="1", model="demo", seconds=0.5, photo=photo, keyed=False)
    assert "Authorization" not in text
    assert "-F image=@'examples/my cat.jpg'" in text
    assert "http://127.0.0.1:8000/docs" in text
    assert "http://127.0.0.1:8000/metrics" in text
    (line,) = [line for line in text.splitlines() if "toy" in line]
    assert "a real one: make run MODEL=openai/clip-vit-base-patch32 (605 MB, about 4 minutes once)" in line
    assert "toy" not in welcome("http://x", version="1", model="mine", seconds=0.5, photo=photo, keyed=False)
    assert "photo.jpg" in welcome("http://x", version="1", model="demo", seconds=0.5, photo=None, keyed=False)
    assert example_photo([tmp_path / "nowhere"]) is None
    (tmp_path / "examples" / "rocket.jpg").write_bytes(b"")
    assert tmp_path / "examples" / "rocket.jpg" == example_photo([tmp_path / "examples"])


def test_the_example_photos_are_found() -> None:
    """The repository has photos for the welcome."""
    assert example_photo([ROOT / "examples"]) is not None
