"""`anyclass classify` with a service that is busy or away, interrupted, and with invalid options."""

import json
import re
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from tests.service.cli.classify.photos import KEY, LABELS, MANY
from tests.support.commands import COMMAND, Reply, anyclass, scripted
from tests.support.http_server import HttpServer

SAME = ("--labels", "red,RED,green")
"""Two of them have the same tokens."""


def answer(label: str = "red") -> Reply:
    """Make an answer of a service."""
    body = {
        "model": "tiny",
        "revision": "r",
        "predictions": [{"label": label, "score": 1.0}],
        "usage": {"labels": 1, "labels_cached": 0},
    }
    return 200, {}, body


def problem(status: int, slug: str, **headers: str) -> Reply:
    """Make a refusal of a service."""
    return status, headers, {"type": f"urn:anyclass:problem:{slug}", "detail": f"It is {slug}."}


def test_a_service_that_is_too_busy_is_waited_for(folder: Path, server: HttpServer) -> None:
    """Refusals cost time but no image, also with many concurrent requests."""
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
    """One line says how to give it; the key is never shown."""
    for key in ({}, {"ANYCLASS_API_KEY": "wrong-key-0123456789"}):
        result = anyclass("classify", folder / "many", *LABELS, "--url", server.url, **key)
        assert (2, "", 1) == (result.returncode, result.stdout, len(result.stderr.splitlines()))
        assert "--api-key or the variable ANYCLASS_API_KEY" in result.stderr
        assert "wrong" not in result.stderr
    result = anyclass("classify", folder / "many", *LABELS, "--url", server.url, "--api-key", "key of\nmine")
    assert (2, True, False) == (result.returncode, "printable ASCII" in result.stderr, "mine" in result.stderr)


def test_retries_of_a_busy_service_end(folder: Path) -> None:
    """Exit code 1, the reason, and the time spent; a longer wait that the service asks for does not start."""
    images = sorted((folder / "many").iterdir())[:3]
    with scripted(lambda number: problem(503, "not-ready")) as url:
        result = anyclass("classify", *images, *LABELS, "--url", url, "--retry-for", 0.8)
    assert (1, "") == (result.returncode, result.stdout)
    assert ["Error: It is not-ready. (gave up after 0.8 s of retries (--retry-for))"] == (result.stderr.splitlines())
    with scripted(lambda number: problem(429, "rate-limited", **{"retry-after": "3600"})) as url:
        result = anyclass("classify", *images, *LABELS, "--url", url)
    assert 1 == result.returncode
    assert "the service asks to retry in 3600 s; --retry-for allows 60 s" in result.stderr


def test_a_service_that_restarts_is_waited_for(folder: Path) -> None:
    """Broken connections and a proxy's 502 fail no image once the service has answered."""
    replies = {1: (0, {}, None), 2: (502, {}, "Bad Gateway"), 3: problem(503, "not-ready", **{"retry-after": "0"})}
    with scripted(lambda number: replies.get(number, answer())) as url:
        result = anyclass("classify", folder / "many", *LABELS, "--json", "--url", url, "--in-flight", 1)
    assert (0, "", MANY) == (result.returncode, result.stderr, len(result.stdout.splitlines()))


def test_an_answer_that_is_no_classification(folder: Path) -> None:
    """It is an error."""
    with scripted(lambda number: (200, {}, {"hello": "world"})) as url:
        result = anyclass("classify", folder / "photos" / "a.png", *LABELS, "--url", url)
    assert (1, "") == (result.returncode, result.stdout)
    assert "does not look like an anyclass service" in result.stderr


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_is_done_is_kept(folder: Path, tmp_path: Path, suffix: str) -> None:
    """Ctrl-C exits with 130, keeps all results so far, and prints their number."""
    output = tmp_path / f"results.{suffix}"
    command: list[Any] = [*COMMAND, "classify", folder / "many", *LABELS, "--in-flight", "1", "-o", output]
    started: list[subprocess.Popen[str]] = []

    def reply(number: int) -> Reply:
        if number == 5:
            started[0].send_signal(signal.SIGINT)
        return answer()

    with scripted(reply) as url:
        # Background jobs of a shell, such as tests, ignore Ctrl-C, and child processes inherit that.
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


def test_label_sets_are_the_services(folder: Path, server: HttpServer) -> None:
    """A set is used by its name, only with a service, and not beside other labels or templates."""
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
    """High temperatures flatten the scores."""
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
    """The command ends before a model is loaded."""
    monkeypatch.chdir(folder)
    result = anyclass("classify", "photos", *LABELS, *arguments)
    assert (2, "", True) == (result.returncode, result.stdout, words in result.stderr)


def test_warnings_are_printed_once(folder: Path, where: list[object]) -> None:
    """They are on standard error, one line each, whatever the number of images."""
    result = anyclass(
        "classify", folder / "photos" / "b" / "2.png", folder / "photos" / "a.png", *SAME, "--json", *where
    )
    assert 0 == result.returncode
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert warning.startswith("Warning: Labels 0 and 1 are the same to this model")
    alone = anyclass("classify", folder / "photos" / "a.png", "--labels", "red", *where)
    assert "Warning: The score of a single label is always 1 under softmax." in alone.stderr
