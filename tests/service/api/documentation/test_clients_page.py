"""Run the examples of docs/clients.md, docs/classify-many.md and docs/label-sets.md as written, on the demo model."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from service.model.manifest import DEMO_BUNDLE
from tests.support.http_server import HttpServer, http_server
from tests.support.javascript import CLIENTS, installed
from tests.support.places import ROOT

BLOCK = re.compile(r"^```(python|js|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "docs/clients.md").read_text("utf-8"))
NUMBER = r"-?\d+\.\d+(?:e-\d+)?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """The demo model, as `make run` serves it."""
    folder = tmp_path_factory.mktemp("demo")
    with http_server(DEMO_BUNDLE, folder, env={"ANYCLASS_STATE_URL": str(folder / "state")}) as running:
        yield running


def blocks(kind: str) -> list[str]:
    """The examples in one language."""
    return [text for each, text in BLOCKS if each == kind]


def run(command: list[str], text: str, server: HttpServer, **environment: str) -> str:
    """What an example prints when it is sent to this server."""
    here = text.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
    done = subprocess.run(
        [*command, here], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, check=False, timeout=60
    )
    assert 0 == done.returncode, done.stderr.decode()
    return done.stdout.decode()


def test_every_client_has_an_example() -> None:
    """The other tests have something to run."""
    python = "\n".join(blocks("python"))
    assert all(f"import {name}" in python for name in ("InferenceClient", "openai", "tritonclient.http"))
    assert 1 == len(blocks("js"))
    assert 3 == len(blocks("sh"))


def test_hugging_face_in_python(server: HttpServer) -> None:
    """The right label is first."""
    (text,) = [text for text in blocks("python") if "huggingface_hub" in text]
    assert re.fullmatch(rf"cup {NUMBER}\n(\w+ {NUMBER}\n){{2}}", run([sys.executable, "-c"], text, server))


def test_hugging_face_in_javascript(server: HttpServer) -> None:
    """The right label is first there too."""
    if not installed():
        pytest.skip("@huggingface/inference is not installed; scripts/clients.sh installs it if node is available")
    (text,) = blocks("js")
    here = CLIENTS / f"example-{os.getpid()}.mjs"
    here.write_text(text.replace("http://127.0.0.1:8000", server.url), "utf-8")
    try:
        done = subprocess.run(["node", here], cwd=ROOT, capture_output=True, check=True, timeout=60)
    finally:
        here.unlink()
    assert re.match(r"\[\s*{ label: 'cup', score: \d", done.stdout.decode())


def test_openai_in_python(server: HttpServer) -> None:
    """The photo of a cup is nearer to its name than to another."""
    (text,) = [text for text in blocks("python") if "openai" in text]
    cup, rocket = map(float, run([sys.executable, "-c"], text, server).split())
    assert cup > rocket


def test_triton_in_python(server: HttpServer) -> None:
    """The scores are those of the photo's labels, and a vector comes with them."""
    (text,) = [text for text in blocks("python") if "tritonclient" in text]
    printed = run([sys.executable, "-c"], text, server)
    scores = [float(number) for number in re.findall(NUMBER, printed)]
    assert 1 == scores.index(max(scores))
    assert re.search(r"\(1, \d+\)$", printed.strip())


@pytest.mark.parametrize("text", blocks("sh"))
def test_the_requests_work_as_written(server: HttpServer, text: str) -> None:
    """Copied into a shell, each is answered, and with no error."""
    answer = json.loads(run(["bash", "-c"], text, server))
    assert isinstance(answer, list) or "error" not in answer


def commands_of(page: str) -> str:
    """The one block of commands on a page."""
    text: str
    (text,) = [text for kind, text in BLOCK.findall((ROOT / page).read_text("utf-8")) if kind == "sh"]
    return text


def documents(text: str) -> list[Any]:
    """The JSON documents that follow one another in a text."""
    found, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def test_a_label_set_as_written(server: HttpServer) -> None:
    """It is ready when it is written, and a photo is classified against it."""
    written, answer = documents(run(["bash", "-ec"], commands_of("docs/label-sets.md"), server))
    assert ("animals", "ready", 3) == (written["name"], written["status"], written["label_count"])
    assert answer["predictions"][0]["label"] in ("cat", "dog", "red fox")
    assert {"labels": 3, "labels_cached": 3} == answer["usage"]


def test_an_archive_as_written(server: HttpServer) -> None:
    """A line for each file of the folder: the photos have their best label, what is no photo an error."""
    lines = documents(run(["bash", "-ec"], commands_of("docs/classify-many.md"), server))
    photos = {each["name"]: len(each["predictions"]) for each in lines if each["name"].endswith(".jpg")}
    assert {f"./{path.name}": 1 for path in (ROOT / "examples").glob("*.jpg")} == photos
    others = [each for each in lines if not each["name"].endswith(".jpg")]
    assert all(each["error"]["status"] == 415 for each in others)
    assert len(list((ROOT / "examples").iterdir())) == len(lines)
