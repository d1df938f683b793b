"""Output of `anyclass classify`: CSV, Parquet, JSON lines, tables and the progress bar."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.service.cli.classify.photos import LABELS, MANY, below
from tests.support.commands import COMMAND, anyclass, on_a_terminal

COLUMNS = ["image", "rank", "label", "score", "model", "error"]


def test_csv_in_a_file(folder: Path, where: list[object], tmp_path: Path) -> None:
    """A row for each prediction, in the images' order; a failed image has its reason, and fails no other."""
    output = tmp_path / "results.csv"
    result = anyclass("classify", folder / "photos", *LABELS, "--output", output, *where)
    assert (1, "") == (result.returncode, result.stdout)
    note, error, summary = result.stderr.splitlines()
    assert f"1 file passed over: {folder}/photos/notes.txt" == note
    assert re.match(r"Error: .*broken\.png: The PNG image is corrupt", error)
    assert re.fullmatch(r"4 of 5 images classified in .* s.*; 1 failed; results in .*results\.csv\.", summary)
    with output.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert COLUMNS == header
    assert below([row[0] for row in rows], folder) == [
        *["a.png"] * 2,
        *["b/10.JPG"] * 2,
        *["b/2.png"] * 2,
        "b/broken.png",
        *["c.bmp"] * 2,
    ]
    assert ["1", "green", "1.0", "tiny", ""] == [*rows[0][1:3], f"{float(rows[0][3]):.1f}", *rows[0][4:]]
    assert ["2", "red"] == rows[1][1:3]
    assert ["", "", "", ""] == rows[6][1:5]
    assert error.endswith(rows[6][5])


def test_parquet_has_the_rows_of_csv(folder: Path, tmp_path: Path) -> None:
    """The columns have types: ranks are numbers, missing values null."""
    output = tmp_path / "results.parquet"
    model = ["--model", folder / "bundle", "--provider", "cpu"]
    by_csv = anyclass("classify", folder / "photos", *LABELS, "--format", "csv", *model)
    result = anyclass("classify", folder / "photos", *LABELS, "-o", output, *model)
    assert (1, "") == (result.returncode, result.stdout)
    table = pq.read_table(output)
    assert ["string", "int32", "string", "float", "string", "string"] == [str(kind) for kind in table.schema.types]
    rows = [["" if value is None else str(value) for value in row.values()] for row in table.to_pylist()]
    expected = list(csv.reader(by_csv.stdout.splitlines()))
    assert expected[0] == table.schema.names
    assert [row[:3] + row[4:] for row in expected[1:]] == [row[:3] + row[4:] for row in rows]
    scores = [(float(a[3]), float(b[3])) for a, b in zip(expected[1:], rows, strict=True) if a[3]]
    assert all(abs(a - b) < 1e-6 for a, b in scores)


def test_parquet_through_a_pipe(folder: Path) -> None:
    """Parquet can go to the standard output, unless that is a terminal."""
    arguments: list[Any] = ["classify", folder / "photos" / "a.png", *LABELS, "--model", folder / "bundle"]
    done = subprocess.run([*COMMAND, *arguments, "--format", "parquet"], capture_output=True, check=True)
    assert 2 == pq.read_table(io.BytesIO(done.stdout)).num_rows


def test_parquet_without_pyarrow(folder: Path, tmp_path: Path) -> None:
    """One line says what to install, before any classification."""
    hidden = "import sys; sys.modules['pyarrow'] = None; from service.cli.commands import main; main()"
    arguments: list[Any] = ["classify", folder / "photos", *LABELS, "-o", tmp_path / "results.parquet"]
    done = subprocess.run([sys.executable, "-c", hidden, *arguments], capture_output=True, text=True, check=False)
    assert (2, "") == (done.returncode, done.stdout)
    assert 1 == done.stderr.count("\n")
    assert "Error: Parquet needs pyarrow (extra parquet), which is not installed: " in done.stderr
    assert (
        f"{sys.prefix}/bin/pip install -e '.[parquet]' -c constraints.txt".removeprefix(f"{Path.cwd()}/") in done.stderr
    )


def test_parquet_is_not_for_a_terminal(folder: Path) -> None:
    """Its bytes would garble the terminal."""
    code, seen = on_a_terminal("classify", folder / "photos", *LABELS, "--format", "parquet")
    assert (2, True) == (code, "give --output FILE" in seen)


def test_lines_of_json_by_the_name_of_the_file(folder: Path, tmp_path: Path) -> None:
    """The suffix gives the same as --json on the standard output."""
    images = [folder / "photos" / "a.png", folder / "photos" / "b" / "broken.png"]
    model = ["--model", folder / "bundle", "--provider", "cpu"]
    printed = anyclass("classify", *images, *LABELS, "--json", *model)
    written = anyclass("classify", *images, *LABELS, "-o", tmp_path / "out.jsonl", *model)
    assert (1, 1) == (printed.returncode, written.returncode)
    assert printed.stdout == (tmp_path / "out.jsonl").read_text("utf-8")
    first, second = map(json.loads, printed.stdout.splitlines())
    assert (["image", "model", "revision", "predictions", "usage"], ["image", "error"]) == (list(first), list(second))
    assert ["type", "title", "status", "detail"] == list(second["error"])
    assert ("urn:anyclass:problem:invalid-image", 422) == (second["error"]["type"], second["error"]["status"])


def test_an_error_in_json_is_a_problem_of_the_http_interface(folder: Path, where: list[object]) -> None:
    """In this process and from a service alike; the service's has the id of its request too."""
    result = anyclass("classify", folder / "photos" / "b" / "broken.png", *LABELS, "--json", *where)
    error = json.loads(result.stdout)["error"]
    assert {"type", "title", "status", "detail"} == error.keys() - {"request_id"}
    assert ("request_id" in error) == ("--url" in where)
    assert "The PNG image is corrupt" in error["detail"]


@pytest.mark.parametrize("name", ["results.xlsx", "results.tsv", "results.cvs", "results.csv.gz"])
def test_a_file_whose_name_says_no_format_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """Bars in a .xlsx help no reader: the command ends before a model is loaded, unless --format says what to write."""
    result = anyclass("classify", folder / "photos", *LABELS, "-o", tmp_path / name, "--model", "nowhere")
    assert (2, "", 1) == (result.returncode, result.stdout, len(result.stderr.splitlines()))
    assert "the end of the name says no format; use .txt, .csv, " in result.stderr
    assert "or give --format table|csv|jsonl|parquet" in result.stderr
    assert not (tmp_path / name).exists()
    image, model = folder / "photos" / "a.png", folder / "bundle"
    result = anyclass("classify", image, *LABELS, "-o", tmp_path / name, "--format", "csv", "--model", model)
    assert 0 == result.returncode
    assert ",".join(COLUMNS) == (tmp_path / name).read_text("utf-8").splitlines()[0]


def test_many_images_have_a_line_each(folder: Path) -> None:
    """The best label first, and no line ends in spaces."""
    result = anyclass("classify", folder / "many", "--labels", "red,green,blue,white", "--model", folder / "bundle")
    assert 0 == result.returncode
    assert re.fullmatch(rf"{MANY} of {MANY} images classified in .* s.*\.\n", result.stderr)
    lines = result.stdout.splitlines()
    assert MANY == len(lines)
    assert lines == [line.rstrip() for line in lines]
    assert [f"{folder}/many/01.png", "100.0%", "red"] == lines[1].split()[:3]
    assert 3 == lines[1].count("%")


def test_a_table_in_a_file(folder: Path, tmp_path: Path) -> None:
    """The suffix .txt gives the table of a terminal, without colours."""
    output = tmp_path / "results.txt"
    anyclass("classify", folder / "photos" / "a.png", *LABELS, "-o", output, "--model", folder / "bundle")
    lines = output.read_text("utf-8").splitlines()
    assert ["green", "100.0%"] == lines[1].split()[:2]
    assert "\x1b" not in "".join(lines)


def test_a_bar_on_a_terminal(folder: Path) -> None:
    """The bar counts below the results, and a line has the totals."""
    code, seen = on_a_terminal(
        "classify", folder / "many", folder / "photos" / "b" / "broken.png", *LABELS, "--model", folder / "bundle"
    )
    assert 1 == code
    assert "loading the model" in seen
    assert "━" in seen
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).replace("\r", "\n")
    assert re.search(r"\n\S*many/01\.png +100\.0% red +0\.0% green *\n", plain)
    assert re.search(r"Error: .*broken\.png: The PNG", plain)
    assert re.search(rf"{MANY} of {MANY + 1} images classified in .*; 1 failed\.\s*$", plain)
    code, seen = on_a_terminal("classify", folder / "many", *LABELS, "--no-progress", "--model", folder / "bundle")
    assert (0, False, False) == (code, "━" in seen, "classified in" in seen)


def test_a_reader_that_has_seen_enough(folder: Path) -> None:
    """`| head -1` ends the command quietly."""
    command = f"{sys.executable} -m service classify many --labels red,green --json --model bundle | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    assert (1, "") == (len(done.stdout.splitlines()), done.stderr)


def test_a_full_disk(folder: Path) -> None:
    """The command ends at once with the reason."""
    result = anyclass("classify", folder / "many", *LABELS, "-o", "/dev/full", "--model", folder / "bundle")
    assert (1, True) == (result.returncode, "cannot write the results: No space left on device" in result.stderr)
