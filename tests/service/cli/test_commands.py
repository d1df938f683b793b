import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from service.cli.commands import app
from service.installation import VERSION
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle and two pictures, one of them broken."""
    folder = tmp_path_factory.mktemp("cli")
    write_tiny_bundle(folder / "bundle")
    Image.new("RGB", (16, 16), "red").save(folder / "red.png")
    Image.new("RGB", (16, 16), "lime").save(folder / "green.png")
    (folder / "broken.png").write_bytes((folder / "red.png").read_bytes()[:50])
    (folder / "labels.txt").write_text("red\n\n  green, or so \nгрюн\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[HttpServer]:
    """One service for all tests of this module."""
    with http_server(folder / "bundle", folder) as running:
        yield running


def run(*arguments: object, stdin: str = "", **env: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, env=env)


@pytest.fixture(params=["here", "remote"])
def where(request: pytest.FixtureRequest, folder: Path) -> list[object]:
    """Return options to classify in this process, or by a service."""
    if request.param == "here":
        return ["--model", folder / "bundle", "--provider", "cpu"]
    return ["--url", request.getfixturevalue("server").url]


def test_a_table_for_each_image(folder: Path, where: list[object]) -> None:
    """Name, labels by falling score, and a bar; in process as over HTTP."""
    result = run("classify", folder / "red.png", folder / "green.png", "--labels", "red, green,blue", *where)
    assert 0 == result.exit_code
    assert re.fullmatch(r"2 of 2 images classified in .* s.*\.\n", result.stderr)
    first, second = result.stdout.split("\n\n")
    assert "red.png" in first.splitlines()[0]
    assert ["red", "100.0%"] == first.splitlines()[1].split()[:2]
    assert "█" in first.splitlines()[1]
    assert ["green", "100.0%"] == second.splitlines()[1].split()[:2]
    assert not [line for line in result.stdout.splitlines() if line != line.rstrip()]


def test_json_is_a_line_for_each_image(folder: Path, where: list[object]) -> None:
    """Each line is a complete document, with the members of the HTTP answer."""
    result = run("classify", folder / "red.png", folder / "green.png", "--labels", "red,green", "--json", *where)
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert ["image", "model", "revision", "predictions", "usage"] == list(first)
    assert [str(folder / "red.png"), str(folder / "green.png")] == [first["image"], second["image"]]
    assert ["red", "green"] == [first["predictions"][0]["label"], second["predictions"][0]["label"]]


def test_options_reach_the_classifier(folder: Path, where: list[object]) -> None:
    """Templates, scoring, top k and minimum score."""
    options = ["--templates", "a {}", "--templates", "the {}", "--scoring", "cosine", "--top-k", 2, "--min-score", 0.1]
    result = run("classify", folder / "red.png", "--labels", "red,green", "--json", *options, *where)
    (prediction,) = json.loads(result.stdout)["predictions"]
    assert "red" == prediction["label"]
    assert 0.1 <= prediction["score"] < 1
    result = run("classify", folder / "red.png", "--labels", "red", "--templates", "nothing", *where)
    assert (2, "") == (result.exit_code, result.stdout)
    assert "template" in result.stderr


def test_an_image_that_fails_fails_no_other(folder: Path, where: list[object]) -> None:
    """Errors are on standard error, in the exit code, and with --json in the image's line."""
    images = [folder / "broken.png", folder / "nowhere.png", folder / "red.png"]
    result = run("classify", *images, "--labels", "red,green", "--json", *where)
    assert 1 == result.exit_code
    broken, nowhere, red = (json.loads(line) for line in result.stdout.splitlines())
    assert ["image", "error"] == list(broken)
    assert "No such file" in nowhere["error"]["detail"]
    assert "predictions" in red
    assert ["broken.png", "nowhere.png"] == [
        Path(line.split(": ")[1]).name for line in result.stderr.splitlines() if line.startswith("Error: ")
    ]


@pytest.mark.parametrize("labels", [["--labels", "red,red"], ["--labels", " , "], []])
def test_bad_labels_are_bad_usage(folder: Path, where: list[object], labels: list[str]) -> None:
    """An error that concerns every image ends the command with exit code 2."""
    result = run("classify", folder / "red.png", folder / "green.png", *labels, *where)
    assert (2, "") == (result.exit_code, result.stdout)
    assert 1 == result.stderr.count("Error: ")


def test_labels_from_a_file(folder: Path) -> None:
    """A label on each line, which may have commas in it; - is the standard input."""
    arguments = ["classify", folder / "red.png", "--model", folder / "bundle", "--json", "--labels", "blue"]
    by_file = run(*arguments, "--labels-file", folder / "labels.txt")
    assert {"blue", "red", "green, or so", "грюн"} == {p["label"] for p in json.loads(by_file.stdout)["predictions"]}
    by_stdin = run(*arguments, "--labels-file", "-", stdin="red\ngreen\n")
    assert {"blue", "red", "green"} == {p["label"] for p in json.loads(by_stdin.stdout)["predictions"]}
    missing = run(*arguments, "--labels-file", folder / "none.txt")
    assert (2, True) == (missing.exit_code, "cannot read" in missing.stderr)
    (folder / "latin.txt").write_bytes(b"gr\xfcn")
    latin = run(*arguments, "--labels-file", folder / "latin.txt")
    assert (2, True) == (latin.exit_code, "UTF-8" in latin.stderr)


def test_a_bundle_that_is_not_there(folder: Path) -> None:
    """The file is named, without a traceback."""
    result = run("classify", folder / "red.png", "--labels", "a", "--model", folder / "nowhere")
    assert (2, "") == (result.exit_code, result.stdout)
    assert "manifest.json" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("http://127.0.0.1:1", 1, "No service answers"),
        ("nonsense", 2, "not a service URL"),
        ("127.0.0.1:8000", 2, "127.0.0.1:8000 is not a service URL: it must begin with http:// or https://."),
        ("http://[::", 2, "not a service URL"),
    ],
)
def test_a_service_that_is_not_there(folder: Path, url: str, code: int, words: str) -> None:
    """One line says so, for any number of images."""
    result = run("classify", folder / "red.png", folder / "green.png", "--labels", "a", "--url", url)
    assert (code, "") == (result.exit_code, result.stdout)
    assert 1 == len(result.stderr.splitlines())
    assert words in result.stderr


def test_another_kind_of_server(folder: Path, server: HttpServer) -> None:
    """An answer of another server is reported as such."""
    result = run("classify", folder / "red.png", "--labels", "a", "--url", f"{server.url}/docs/assets")
    assert result.exit_code in (1, 2)
    assert result.stderr.startswith("Error: ")


def test_provider_contradicts_url(folder: Path) -> None:
    """An option without effect is refused."""
    result = run("classify", folder / "red.png", "--labels", "a", "--url", "http://127.0.0.1:1", "--provider", "cpu")
    assert 2 == result.exit_code


@pytest.mark.parametrize("arguments", [["classify", "--help"], ["serve", "--help"], ["--help"]])
def test_help(arguments: list[str]) -> None:
    """Each command explains itself, with examples."""
    result = run(*arguments)
    assert 0 == result.exit_code
    assert arguments == ["--help"] or "Examples" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("classify",),
        ("serve",),
        *(("label-sets", name) for name in ("list", "show", "put", "wait", "delete")),
        *(("batches", name) for name in ("create", "list", "status", "wait", "cancel", "download")),
    ],
)
def test_examples_can_be_copied(command: tuple[str, ...]) -> None:
    """In 80 columns each example is one line; only the terminal breaks paragraphs."""
    result = run(*command, "--help", COLUMNS="80")
    lines = [line.strip() for line in result.stdout.splitlines()]
    examples = lines[lines.index("Examples") + 2 :]
    examples = examples[: examples.index("")]
    assert examples
    assert [line for line in examples if not line.startswith(f"anyclass {' '.join(command)}")] == []


def test_help_is_broken_by_the_terminal_alone() -> None:
    """A paragraph fills its lines, whatever their width."""
    shown = run("classify", "--help", COLUMNS="80").stdout
    assert "\n fails no other: the reason is on standard error, and in CSV, JSON and Parquet" in shown


@pytest.mark.parametrize("argument", ["version", "--version"])
def test_version(argument: str) -> None:
    """One line."""
    result = run(argument)
    assert (0, f"{VERSION}\n", "") == (result.exit_code, result.stdout, result.stderr)


def serve(*arguments: object, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run `anyclass serve` to its end in a process of its own."""
    command = [sys.executable, "-m", "service", "serve", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **env})


def test_serve_refuses_a_bundle_that_is_not_there(folder: Path) -> None:
    """One clear line, no traceback, exit code 2."""
    result = serve("--port", 0, "--model", folder / "nowhere")
    assert 2 == result.returncode
    (line,) = [line for line in map(json.loads, result.stderr.splitlines()) if line["level"] == "error"]
    assert "manifest.json" in line["reason"]
    assert "exception" not in line


def test_serve_refuses_bad_settings() -> None:
    """The variable at fault is named."""
    result = serve(ANYCLASS_PORT="many")
    assert (2, True) == (result.returncode, result.stderr.startswith("Error: ANYCLASS_PORT"))
    assert "choose another with --port (make run PORT=…)" in result.stderr
    several = serve(ANYCLASS_PORT="70000", ANYCLASS_WORKERS="0")
    assert ["Error: ANYCLASS_PORT: must be at most 65535", "Error: ANYCLASS_WORKERS: must be at least 1"] == [
        line.partition(";")[0] for line in several.stderr.splitlines()
    ]


def test_serve_says_when_the_port_is_taken(folder: Path) -> None:
    """One clear line, exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = serve("--port", taken.getsockname()[1], "--model", folder / "bundle")
    assert 1 == result.returncode
    assert "cannot listen on 127.0.0.1" in result.stderr
    assert "choose another with --port (make run PORT=…)" in result.stderr
    elsewhere = serve("--host", "192.0.2.1")
    assert (1, True) == (elsewhere.returncode, "with --host (make run HOST=…)" in elsewhere.stderr)
    assert "Traceback" not in result.stderr


def test_the_welcome_is_the_end_of_the_start(folder: Path) -> None:
    """Log lines of the model precede it; with API keys, the request to try has one."""
    command = [sys.executable, "-m", "service", "serve", "--welcome", "--port", "0", "--model", str(folder / "bundle")]
    env = {**os.environ, "ANYCLASS_API_KEYS": "me:a-key-of-thirty-two-characters-or-more"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, env=env
    ) as process:
        assert process.stdout is not None
        before = ""
        for line in process.stdout:
            before += line
            if "Ctrl-C" in line:
                break
        process.terminate()
        after = process.stdout.read()
    assert '"model loaded"' in before
    assert 'curl -s -H "Authorization: Bearer $KEY" -F image=@' in before
    assert "model loaded" not in after
