"""The demo model in the package, and the README's first requests."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from service.model.loading import load_bundle
from service.model.manifest import DEMO_BUNDLE
from tests.support.http_server import HttpServer, http_server
from tests.support.places import ROOT

EXAMPLES = ROOT / "examples"
LABELS = ["cat", "dog", "horse", "motorcycle", "rocket", "cup", "airplane", "bicycle", "tree", "house"]
MAX_BYTES = 16_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """Serve the demo bundle in a process of its own."""
    with http_server(DEMO_BUNDLE, tmp_path_factory.mktemp("demo")) as running:
        yield running


def test_it_is_whole_small_and_knows_its_origin() -> None:
    """Digests match, the size is limited, and the manifest has recipe, licence and parity."""
    manifest = load_bundle(DEMO_BUNDLE).manifest

    assert "demo" == manifest.name
    assert sum(path.stat().st_size for path in DEMO_BUNDLE.iterdir()) <= MAX_BYTES
    assert manifest.parity is not None
    assert manifest.parity.max_abs_difference <= 1e-4
    assert manifest.parity.min_cosine >= 0.9999
    assert manifest.provenance.licence
    assert manifest.provenance.card
    assert manifest.provenance.recipe is not None
    assert str(ROOT) not in (DEMO_BUNDLE / "manifest.json").read_text("utf-8")


@pytest.mark.parametrize("name", ["cat", "cup", "rocket"])
def test_it_names_the_example_photos(server: HttpServer, name: str) -> None:
    """Of ten labels the right one comes first."""
    with (EXAMPLES / f"{name}.jpg").open("rb") as image:
        answer = httpx.post(f"{server.url}/v1/classify", files={"image": image}, data={"labels": LABELS})

    assert 200 == answer.status_code, answer.text
    assert name == answer.json()["predictions"][0]["label"]


def readme_requests() -> list[str]:
    """Find the README's curl lines, continuation lines joined."""
    text = (ROOT / "README.md").read_text("utf-8").replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if re.match(r"\s*curl ", line)]


def test_the_readme_shows_each_way_to_send_a_picture() -> None:
    """A form, the picture as the body, JSON, and a batch; the next test runs them."""
    lines = "\n".join(readme_requests())

    assert len(readme_requests()) >= 5
    assert all(word in lines for word in ("image=@", "--data-binary", "application/json", "/v1/classify/batch"))


@pytest.mark.parametrize("line", readme_requests())
def test_the_readmes_requests_work_as_written(server: HttpServer, line: str) -> None:
    """Each gets predictions when copied into a shell."""
    command = line.replace("http://127.0.0.1:8000", server.url).replace("127.0.0.1:8000", server.url)
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, check=True, timeout=60)

    answers = [json.loads(text) for text in done.stdout.decode().splitlines() if text]
    assert answers
    assert all("predictions" in answer for answer in answers), done.stdout.decode()


def test_the_first_screens_answer_is_the_models(server: HttpServer) -> None:
    """The README shows the answer to its first request."""
    text = (ROOT / "README.md").read_text("utf-8")
    shown = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL).group(1))  # type: ignore[union-attr]
    command = readme_requests()[0].replace("127.0.0.1:8000", server.url)
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, check=True, timeout=60)
    answer = json.loads(done.stdout)

    assert shown["model"] == answer["model"]
    assert [entry["label"] for entry in shown["predictions"]] == [entry["label"] for entry in answer["predictions"]]
    for expected, actual in zip(shown["predictions"], answer["predictions"], strict=True):
        assert actual["score"] == pytest.approx(expected["score"], abs=0.01)


def test_the_command_line_needs_no_server() -> None:
    """`anyclass classify` runs the demo model in its process."""
    done = subprocess.run(
        [sys.executable, "-m", "service", "classify", "examples/rocket.jpg", "--labels", ",".join(LABELS), "--json"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "ANYCLASS_PROVIDER": "cpu"},
    )

    assert "rocket" == json.loads(done.stdout)["predictions"][0]["label"]
