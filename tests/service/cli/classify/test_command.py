"""`anyclass classify` on many images: where they come from, what is written, and a service that is busy or away."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from PIL import Image

from service.cli.inputs import InputError, find_images, read_label_set
from tests.support.commands import COMMAND, Reply, anyclass, on_a_terminal, scripted
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle

KEY = "0123456789abcdef0123"
LABELS = ("--labels", "red,green")
COLUMNS = ["image", "rank", "label", "score", "model", "error"]
MANY = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and photos in two folders, one of which is broken, beside what is no photo."""
    folder = tmp_path_factory.mktemp("cli-classify")
    write_tiny_bundle(folder / "bundle")
    for name, colour in {"b/2.png": "red", "b/10.JPG": "red", "a.png": "lime", "c.bmp": "lime"}.items():
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), colour).save(folder / "photos" / name)
    (folder / "photos" / "b" / "broken.png").write_bytes((folder / "photos" / "a.png").read_bytes()[:50])
    (folder / "photos" / "notes.txt").write_text("not a photo")
    (folder / "photos" / ".trash").mkdir()
    (folder / "photos" / ".trash" / "old.png").write_bytes(b"")
    (folder / "photos" / ".hidden.png").write_bytes(b"")
    (folder / "photos" / "loop").symlink_to(folder / "photos", target_is_directory=True)
    (folder / "empty").mkdir()
    for number in range(MANY):
        (folder / "many").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "red" if number % 2 else "lime").save(folder / "many" / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[HttpServer]:
    """A service that wants a key and lets it ask but eight times a second, three at once."""
    env = {
        "ANYCLASS_API_KEYS": KEY,
        "ANYCLASS_RATE_LIMIT_PER_S": "8",
        "ANYCLASS_RATE_LIMIT_BURST": "3",
        "ANYCLASS_STATE_URL": str(folder / "state"),
    }
    with http_server(folder / "bundle", folder, env=env) as running:
        yield running


@pytest.fixture(params=["here", "remote"])
def where(request: pytest.FixtureRequest, folder: Path) -> list[object]:
    """Options that have the classification done in the command's process, or by the service."""
    if request.param == "here":
        return ["--model", folder / "bundle", "--provider", "cpu"]
    return ["--url", request.getfixturevalue("server").url, "--api-key", KEY]


def answer(label: str = "red") -> Reply:
    """Make a service's answer by hand."""
    body = {
        "model": "tiny",
        "revision": "r",
        "predictions": [{"label": label, "score": 1.0}],
        "usage": {"labels": 1, "labels_cached": 0},
    }
    return 200, {}, body


def problem(status: int, slug: str, **headers: str) -> Reply:
    """Make a service's refusal by hand."""
    return status, headers, {"type": f"urn:anyclass:problem:{slug}", "detail": f"It is {slug}."}


def names(paths: list[str], folder: Path) -> list[str]:
    """The paths below the folder of photos."""
    return [os.path.relpath(path, folder / "photos") for path in paths]


def test_a_folder_stands_for_the_images_below_it(folder: Path) -> None:
    """By name; hidden files, links to folders and what is no image by its name are passed over."""
    found = find_images([str(folder / "photos")])
    assert ["a.png", "b/10.JPG", "b/2.png", "b/broken.png", "c.bmp"] == names(found, folder)


def test_a_pattern_stands_for_the_files_it_matches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are no files; a file whose name looks like a pattern is itself."""
    found = find_images([f"{folder}/photos/b/*", f"{folder}/photos/**/*.bmp"])
    assert ["b/10.JPG", "b/2.png", "b/broken.png", "c.bmp"] == names(found, folder)
    monkeypatch.chdir(folder)
    assert ["./photos/a.png", "nowhere.png"] == find_images(["./photos/a.png", "nowhere.png"])
    (folder / "odd[1].png").write_bytes(b"")
    assert ["odd[1].png"] == find_images(["odd[1].png"])


@pytest.mark.parametrize("argument", ["empty", "*.gif"])
def test_nothing_to_classify_is_bad_input(folder: Path, monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    """An empty folder, or a pattern that matches nothing, is more likely a mistake than meant."""
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=re.escape(argument)):
        find_images([argument])
    result = anyclass("classify", argument, *LABELS)
    assert (2, "") == (result.returncode, result.stdout)
    assert [True] == [line.startswith("Error: no ") for line in result.stderr.splitlines()]


def test_csv_in_a_file(folder: Path, where: list[object], tmp_path: Path) -> None:
    """A row for each prediction, in the images' order; one that failed has its reason, and fails no other."""
    output = tmp_path / "results.csv"
    result = anyclass("classify", folder / "photos", *LABELS, "--output", output, *where)
    assert (1, "") == (result.returncode, result.stdout)
    error, summary = result.stderr.splitlines()
    assert re.match(r"Error: .*broken\.png: The PNG image is corrupt", error)
    assert re.fullmatch(r"4 of 5 images classified in .* s.*; 1 failed; results in .*results\.csv\.", summary)
    with output.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert COLUMNS == header
    assert names([row[0] for row in rows], folder) == [
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
    """With types: the rank is a number, what is missing is null."""
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
    """The standard output will do, where it is no terminal."""
    arguments: list[Any] = ["classify", folder / "photos" / "a.png", *LABELS, "--model", folder / "bundle"]
    done = subprocess.run([*COMMAND, *arguments, "--format", "parquet"], capture_output=True, check=True)
    assert 2 == pq.read_table(io.BytesIO(done.stdout)).num_rows


def test_parquet_without_pyarrow(folder: Path, tmp_path: Path) -> None:
    """One line says what to install, before anything is classified."""
    hidden = "import sys; sys.modules['pyarrow'] = None; from service.cli.commands import main; main()"
    arguments: list[Any] = ["classify", folder / "photos", *LABELS, "-o", tmp_path / "results.parquet"]
    done = subprocess.run([sys.executable, "-c", hidden, *arguments], capture_output=True, text=True, check=False)
    assert (2, "") == (done.returncode, done.stdout)
    assert 1 == done.stderr.count("\n")
    assert "Error: Parquet needs pyarrow (extra parquet), which is not installed: " in done.stderr
    assert (
        f"{sys.prefix}/bin/pip install -e '.[parquet]' -c constraints.txt".removeprefix(f"{Path.cwd()}/") in done.stderr
    )


def test_lines_of_json_by_the_name_of_the_file(folder: Path, tmp_path: Path) -> None:
    """The same as --json on the standard output."""
    images = [folder / "photos" / "a.png", folder / "photos" / "b" / "broken.png"]
    model = ["--model", folder / "bundle", "--provider", "cpu"]
    printed = anyclass("classify", *images, *LABELS, "--json", *model)
    written = anyclass("classify", *images, *LABELS, "-o", tmp_path / "out.jsonl", *model)
    assert (1, 1) == (printed.returncode, written.returncode)
    assert printed.stdout == (tmp_path / "out.jsonl").read_text("utf-8")
    first, second = map(json.loads, printed.stdout.splitlines())
    assert (["image", "model", "revision", "predictions", "usage"], ["image", "error"]) == (list(first), list(second))


def test_many_images_have_a_line_each(folder: Path) -> None:
    """The best label first, and no line ends in spaces."""
    result = anyclass("classify", folder / "many", "--labels", "red,green,blue,white", "--model", folder / "bundle")
    assert (0, "") == (result.returncode, result.stderr)
    lines = result.stdout.splitlines()
    assert MANY == len(lines)
    assert lines == [line.rstrip() for line in lines]
    assert [f"{folder}/many/01.png", "100.0%", "red"] == lines[1].split()[:3]
    assert 3 == lines[1].count("%")


def test_a_table_in_a_file(folder: Path, tmp_path: Path) -> None:
    """A name that asks for no other format gives what a terminal would show, without its colours."""
    output = tmp_path / "results.txt"
    anyclass("classify", folder / "photos" / "a.png", *LABELS, "-o", output, "--model", folder / "bundle")
    lines = output.read_text("utf-8").splitlines()
    assert ["green", "100.0%"] == lines[1].split()[:2]
    assert "\x1b" not in "".join(lines)


def test_a_bar_on_a_terminal(folder: Path) -> None:
    """It counts to the end below the results, and a line sums up."""
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


def test_a_service_that_is_too_busy_is_waited_for(folder: Path, server: HttpServer) -> None:
    """Refusals cost time and no image, also where many requests are under way at once."""
    result = anyclass(
        "classify", folder / "many", *LABELS, "--json", "--url", server.url, "--in-flight", 16, ANYCLASS_API_KEY=KEY
    )
    assert (0, "") == (result.returncode, result.stderr)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [f"{folder}/many/{number:02}.png" for number in range(MANY)] == [line["image"] for line in lines]
    assert ["green", "red"] * (MANY // 2) == [line["predictions"][0]["label"] for line in lines]
    scrape = httpx.get(f"{server.url}/metrics").text
    refused = re.search(r'anyclass_access_refused_total\{reason="rate"\} (\S+)', scrape)
    assert refused is not None
    assert 0 < float(refused[1]) < 10 * MANY


def test_a_key_is_needed(folder: Path, server: HttpServer) -> None:
    """One line says how to give it; a key is never shown."""
    for key in ({}, {"ANYCLASS_API_KEY": "wrong-key-0123456789"}):
        result = anyclass("classify", folder / "many", *LABELS, "--url", server.url, **key)
        assert (2, "", 1) == (result.returncode, result.stdout, len(result.stderr.splitlines()))
        assert "--api-key or the variable ANYCLASS_API_KEY" in result.stderr
        assert "wrong" not in result.stderr
    result = anyclass("classify", folder / "many", *LABELS, "--url", server.url, "--api-key", "key of\nmine")
    assert (2, True, False) == (result.returncode, "printable ASCII" in result.stderr, "mine" in result.stderr)


def test_a_service_that_stays_busy_is_given_up(folder: Path) -> None:
    """With exit code 1, its reason, and how long it was waited for; what it asks for beyond that is not waited for."""
    images = sorted((folder / "many").iterdir())[:3]
    with scripted(lambda number: problem(503, "not-ready")) as url:
        result = anyclass("classify", *images, *LABELS, "--url", url, "--retry-for", 0.8)
    assert (1, "") == (result.returncode, result.stdout)
    assert ["Error: It is not-ready. (gave up after 0.8 s of retries (--retry-for))"] == (result.stderr.splitlines())
    with scripted(lambda number: problem(429, "rate-limited", **{"retry-after": "3600"})) as url:
        result = anyclass("classify", *images, *LABELS, "--url", url)
    assert 1 == result.returncode
    assert "the service asks to retry in 3600 s; --retry-for allows 60 s" in result.stderr


def test_a_service_that_starts_anew_is_waited_for(folder: Path) -> None:
    """Connections that break and a proxy's 502 fail no image, once the service has answered."""
    replies = {1: (0, {}, None), 2: (502, {}, "Bad Gateway"), 3: problem(503, "not-ready", **{"retry-after": "0"})}
    with scripted(lambda number: replies.get(number, answer())) as url:
        result = anyclass("classify", folder / "many", *LABELS, "--json", "--url", url, "--in-flight", 1)
    assert (0, "", MANY) == (result.returncode, result.stderr, len(result.stdout.splitlines()))


def test_an_answer_that_is_no_classification(folder: Path) -> None:
    """It is not taken for one."""
    with scripted(lambda number: (200, {}, {"hello": "world"})) as url:
        result = anyclass("classify", folder / "photos" / "a.png", *LABELS, "--url", url)
    assert (1, "") == (result.returncode, result.stdout)
    assert "does not look like an anyclass service" in result.stderr


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_is_done_is_kept(folder: Path, tmp_path: Path, suffix: str) -> None:
    """Ctrl-C ends with 130, with whole results of all that came before and a line that says how many."""
    output = tmp_path / f"results.{suffix}"
    command: list[Any] = [*COMMAND, "classify", folder / "many", *LABELS, "--in-flight", "1", "-o", output]
    started: list[subprocess.Popen[str]] = []

    def reply(number: int) -> Reply:
        if number == 5:
            started[0].send_signal(signal.SIGINT)
        return answer()

    with scripted(reply) as url:
        # A shell's background jobs, tests among them, ignore Ctrl-C, and hand that on.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        started.append(
            subprocess.Popen([*command, "--url", url], stderr=subprocess.PIPE, text=True, preexec_fn=heed)  # noqa: PLW1509 - no threads run here yet that could hold a lock
        )
        _, stderr = started[0].communicate(timeout=60)
    assert 130 == started[0].returncode
    error, summary = stderr.splitlines()
    assert "Error: interrupted" == error
    done = int(summary.split()[0])
    assert 4 <= done < MANY
    assert f"{MANY - done} not tried" in summary
    rows = pq.read_table(output).num_rows if suffix == "parquet" else len(output.read_text().splitlines()) - 1
    assert done == rows


def test_a_reader_that_has_seen_enough(folder: Path) -> None:
    """`| head -1` ends the command quietly."""
    command = f"{sys.executable} -m service classify many --labels red,green --json --model bundle | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    assert (1, "") == (len(done.stdout.splitlines()), done.stderr)


def test_label_sets_are_the_services(folder: Path, server: HttpServer) -> None:
    """A set's labels and templates are used by its name, with a service only, and not beside others."""
    with httpx.Client(base_url=server.url, headers={"x-api-key": KEY}) as client:
        client.put("/v1/label-sets/colours", json={"labels": ["red", "green"]}).raise_for_status()
    image = folder / "photos" / "b" / "2.png"
    remote = ["--url", server.url, "--api-key", KEY]
    result = anyclass("classify", image, "--label-set", "colours", "--top-k", 1, "--json", *remote)
    assert ["red"] == [each["label"] for each in json.loads(result.stdout)["predictions"]]
    for arguments, words in (
        (["--label-set", "colours"], "give --url"),
        (["--label-set", "colours", *LABELS, *remote], "has its own labels"),
        (["--label-set", "colours", "--templates", "a {}", *remote], "has its own labels"),
        (["--label-set", "nothing", *remote], "No label set has this name; list them: anyclass label-sets list"),
    ):
        result = anyclass("classify", image, *arguments)
        assert (2, "", True) == (result.returncode, result.stdout, words in result.stderr)


def test_temperature_reaches_the_classifier(folder: Path, where: list[object]) -> None:
    """The scores are flatter."""
    image = folder / "photos" / "a.png"
    result = anyclass("classify", image, *LABELS, "--temperature", 1000, "--json", *where)
    best, other = json.loads(result.stdout)["predictions"]
    assert 0.5 < best["score"] < 0.6
    assert 0.4 < other["score"] < 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json", "--format", "csv"], "contradict"),
        (["--output", "nowhere/out.csv"], "the folder nowhere does not exist"),
        (["--output", "photos"], "it is a folder"),
        (["--temperature", "0"], "--temperature must be above 0"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    """Before a model is loaded."""
    monkeypatch.chdir(folder)
    result = anyclass("classify", "photos", *LABELS, *arguments)
    assert (2, "", True) == (result.returncode, result.stdout, words in result.stderr)


def test_parquet_is_not_for_a_terminal(folder: Path) -> None:
    """It would only spoil it."""
    code, seen = on_a_terminal("classify", folder / "photos", *LABELS, "--format", "parquet")
    assert (2, True) == (code, "give --output FILE" in seen)


def test_a_full_disk(folder: Path) -> None:
    """The command ends with the reason, and does not go on for nothing."""
    result = anyclass("classify", folder / "many", *LABELS, "-o", "/dev/full", "--model", folder / "bundle")
    assert (1, True) == (result.returncode, "cannot write the results: No space left on device" in result.stderr)


def test_a_label_set_from_a_file(tmp_path: Path) -> None:
    """Lines, a list, or an object as the service takes it; what only looks like JSON is a line."""
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
