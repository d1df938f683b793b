"""The table of docs/scale.md is what the script prints."""

import subprocess
import sys

from tests.support.places import ROOT


def printed(*options: str) -> str:
    """Return the script's table."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/scale.py", *options], capture_output=True, text=True, check=True
    )
    assert "" == done.stderr
    return done.stdout


def test_the_pages_table_is_the_scripts() -> None:
    """With the defaults, for 400 million and 12.8 billion pairs."""
    assert f"\n{printed()}" in (ROOT / "docs/scale.md").read_text("utf-8")


def test_a_rate_is_an_option() -> None:
    """Twice the cores take half the time, at the same price."""
    first, double = (printed("--cores", cores).splitlines()[-1].split(" | ") for cores in ("100", "200"))
    assert abs(hours(first[5]) / 2 - hours(double[5])) < 0.1 < hours(double[5])
    assert first[7] == double[7]


def hours(cell: str) -> float:
    """Return the number of a cell with hours."""
    return float(cell.removesuffix(" h"))
