"""Table and plot of the balance."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from model_export.curation.balance_report import (
    Band,
    bands,
    show_balance,
    write_balance_plot,
)
from model_export.errors import DataError
from model_export.plots import check_plot

MATCHED = np.array([1_200, 0, 5, 9, 10, 0, 30])
KEPT = np.array([100, 0, 5, 9, 10, 0, 30])


def test_bands_are_powers_of_ten() -> None:
    """Each query is in one band, those without pairs in one of their own."""
    assert [
        Band(0, 0, 2, 0, 0),
        Band(1, 9, 2, 14, 14),
        Band(10, 99, 2, 40, 40),
        Band(1_000, 9_999, 1, 1_200, 100),
    ] == list(bands(MATCHED, KEPT))


def test_the_table_names_the_most_frequent_queries() -> None:
    """Bands, then queries with matched, kept and share; brackets in a query are no markup."""
    console = Console(record=True, width=100)
    show_balance(console, MATCHED, KEPT, ["[red]photo", "none", "fox", "owl", "elk", "no", "sea"], 100)
    text = console.export_text()
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "1,000 – 9,999 1 1,200 100 8.3%" in lines
    assert "0 2 0 0 –" in lines
    assert "[red]photo 1,200 100 8.3%" in lines
    assert "none" not in text


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    """Matched and kept are drawn, also of queries that all have no pairs."""
    for name, matched, kept in (("some", MATCHED, KEPT), ("none", MATCHED * 0, KEPT * 0)):
        path = tmp_path / f"{name}.png"
        check_plot(path, "curate")
        write_balance_plot(path, matched, kept, 100)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_wrong_plot_is_refused_early(tmp_path: Path) -> None:
    """Another format and a missing folder are named."""
    with pytest.raises(DataError, match=r"name it .*kept\.png"):
        check_plot(tmp_path / "kept.jpg", "curate")
    with pytest.raises(DataError, match="folder does not exist"):
        check_plot(tmp_path / "no" / "kept.png", "curate")
