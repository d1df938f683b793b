"""`anyclass batches` against a real service."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.commands import anyclass, on_a_terminal, scripted
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle

LINES = 70


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """Run a service with its own state directory."""
    folder = tmp_path_factory.mktemp("cli-batches")
    env = {"ANYCLASS_STATE_URL": str(folder / "state")}
    with http_server(write_tiny_bundle(folder / "bundle"), folder, env=env) as running:
        yield running


@pytest.fixture
def url(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set the service's address in the environment, for the commands."""
    monkeypatch.setenv("ANYCLASS_URL", server.url)
    return server.url


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """Write a file of requests with one invalid image, under an awkward name."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    file = tmp_path / 'red "é".jsonl'
    with file.open("w") as lines:
        for number in range(LINES):
            body = {"image": "bm8gaW1hZ2U=" if number == 7 else image, "labels": ["red", "green"]}
            line = {"custom_id": f"n{number}", "method": "POST", "url": "/v1/classify", "body": body}
            lines.write(json.dumps(line) + "\n")
    return file


def ids(file: Path) -> list[str]:
    """Return the custom ids in a file of results."""
    return [json.loads(line)["custom_id"] for line in file.read_text("utf-8").splitlines()]


@pytest.mark.usefixtures("url")
def test_created_waited_for_and_downloaded(requests: Path, tmp_path: Path) -> None:
    """One command writes answers and failed lines to files; a failed line gives exit code 1."""
    output, errors = tmp_path / "answers.jsonl", tmp_path / "errors.jsonl"
    result = anyclass("batches", "create", requests, "--wait", "--output", output, "--errors", errors)
    assert 1 == result.returncode
    batch = result.stderr.strip()
    assert f"{batch}  completed, {LINES - 1} of {LINES} answered, 1 failed\n" == result.stdout
    assert ([f"n{number}" for number in range(LINES) if number != 7], ["n7"]) == (ids(output), ids(errors))
    assert not list(tmp_path.glob("*.part"))
    status = anyclass("batches", "status", batch, "--json")
    assert "completed" == json.loads(status.stdout)["status"]
    again = anyclass("batches", "download", batch)
    assert (0, output.read_text("utf-8")) == (again.returncode, again.stdout)
    only_errors = anyclass("batches", "download", batch, "--errors", "-")
    assert (0, errors.read_text("utf-8")) == (only_errors.returncode, only_errors.stdout)


@pytest.mark.usefixtures("url")
def test_step_by_step(requests: Path, tmp_path: Path) -> None:
    """The id is the first word; list and status show it; the same key starts nothing twice."""
    good = tmp_path / "good.jsonl"
    good.write_text("".join(requests.read_text().splitlines(keepends=True)[:5]))
    arguments = ("batches", "create", good, "--metadata", "run=a=b", "--window", "2h", "--idempotency-key", "k1")
    created = anyclass(*arguments)
    assert (0, "") == (created.returncode, created.stderr)
    batch = created.stdout.split()[0]
    assert batch == anyclass(*arguments).stdout.split()[0]
    waited = anyclass("batches", "wait", batch)
    assert (0, f"{batch}  completed, 5 of 5 answered, 0 failed\n") == (waited.returncode, waited.stdout)
    shown = [re.split(r"  +", line, maxsplit=1) for line in anyclass("batches", "status", batch).stdout.splitlines()]
    fields: dict[str, str] = dict(shown)
    assert ("completed", "5", "a=b") == (fields["status"], fields["answered"], fields["metadata run"])
    listed = anyclass("batches", "list", "--limit", 1).stdout.splitlines()
    assert ["BATCH", "STATUS", "LINES", "ANSWERED", "FAILED", "ENDPOINT", "CREATED"] == listed[0].split()
    assert [batch, "completed", "5", "5", "0", "/v1/classify"] == listed[1].split()[:6]
    nothing = anyclass("batches", "download", batch, "--errors", tmp_path / "none.jsonl")
    assert (0, "") == (nothing.returncode, (tmp_path / "none.jsonl").read_text())


@pytest.mark.usefixtures("url")
def test_cancelled(requests: Path) -> None:
    """Its answers are kept; a batch with unanswered lines gives exit code 1."""
    batch = anyclass("batches", "create", requests).stdout.split()[0]
    cancelled = anyclass("batches", "cancel", batch)
    if cancelled.returncode == 0:  # else it was quicker
        assert re.match(rf"{batch}  cancell(ing|ed)", cancelled.stdout)
        waited = anyclass("batches", "wait", batch)
        assert (1, True) == (waited.returncode, waited.stdout.startswith(f"{batch}  cancelled"))
    again = anyclass("batches", "cancel", batch)
    assert (1, "") == (again.returncode, again.stdout)
    assert again.stderr.startswith("Error: ")


@pytest.mark.usefixtures("url")
def test_a_file_that_is_no_file_of_requests(tmp_path: Path) -> None:
    """Exit code 2, with the lines at fault."""
    file = tmp_path / "bad.jsonl"
    file.write_text('{"custom_id": "a"}\nnonsense\n')
    result = anyclass("batches", "create", file, "--wait")
    assert (2, True) == (result.returncode, "failed" in result.stdout)
    faults = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert ["Error: line 1:", "Error: line 2:"] == [fault[:14] for fault in faults]


@pytest.mark.usefixtures("url")
def test_many_faults_are_counted(tmp_path: Path) -> None:
    """Five are shown; a file of another kind has one in every line."""
    file = tmp_path / "bad.jsonl"
    file.write_text('{"custom_id": "a"}\n' + "nonsense\n" * 10)
    result = anyclass("batches", "create", file, "--wait")
    batch, *faults = result.stderr.splitlines()
    assert (2, 6) == (result.returncode, len(faults))
    assert f"Error: and 6 more; see them all: anyclass batches status {batch}" == faults[-1]
    assert "line 11: " in anyclass("batches", "status", batch).stdout


@pytest.mark.parametrize("content", ["# A text\n", "[1]\n", "", "\n \n", "\x80"])
@pytest.mark.parametrize("options", [(), ("--endpoint", "/v1/embeddings")])
@pytest.mark.usefixtures("url")
def test_a_file_of_another_kind_is_not_sent(tmp_path: Path, content: str, options: tuple[str, ...]) -> None:
    """Its first line is checked."""
    file = tmp_path / "README.md"
    file.write_text(content, "latin-1")
    before = anyclass("batches", "list", "--json").stdout
    result = anyclass("batches", "create", file, *options)
    assert (2, "") == (result.returncode, result.stdout)
    said = f"{file} is not a file of requests: its first line is not a JSON object; see docs/batch-jobs.md"
    assert f"Error: {said}\n" == result.stderr
    assert before == anyclass("batches", "list", "--json").stdout


@pytest.mark.usefixtures("url")
def test_what_makes_no_sense(tmp_path: Path, requests: Path) -> None:
    """Exit code 2 and one line."""
    for arguments, words in (
        (["create", tmp_path / "nowhere.jsonl"], "cannot read"),
        (["create", tmp_path], "cannot read"),
        (["create", requests, "--metadata", "nothing"], "KEY=VALUE"),
        (["create", requests, "--output", "x"], "go with --wait"),
        (["create", requests, "--wait", "--json", "--output", "-"], "cannot both"),
        (["create", requests, "--window", "9 days"], "completion_window"),
        (["create", requests, "--endpoint", "/v1/nothing"], "endpoint"),
        (["status", "batch_nothing"], "No batch has this id"),
        (["download", "batch_nothing"], "No batch has this id"),
    ):
        result = anyclass("batches", *arguments)
        assert (2, "", 1) == (result.returncode, result.stdout, len(result.stderr.splitlines())), arguments
        assert words in result.stderr


@pytest.mark.usefixtures("url")
def test_a_folder_that_is_not_there(requests: Path, tmp_path: Path) -> None:
    """The answers stay with the service, and the command says why they were not written."""
    batch = anyclass("batches", "create", requests, "--wait").stdout.split()[0]
    result = anyclass("batches", "download", batch, "--output", tmp_path / "nowhere" / "answers.jsonl")
    assert (1, True) == (result.returncode, "cannot write" in result.stderr)


@pytest.mark.usefixtures("url")
def test_a_bar_on_a_terminal(requests: Path) -> None:
    """The bar shows while the batch runs, and a line says how it ended."""
    code, seen = on_a_terminal("batches", "create", requests, "--wait")
    assert (1, True, True) == (code, "━" in seen, f"{LINES - 1} of {LINES} answered" in seen)


def test_a_service_that_goes_away_meanwhile(requests: Path) -> None:
    """The command retries; repeated requests carry the same key."""
    batch: dict[str, Any] = {
        **dict.fromkeys(("errors", "output_file_id", "error_file_id", "metadata")),
        "id": "batch_1",
        "endpoint": "/v1/classify",
        "status": "completed",
        "request_counts": {"total": 1, "completed": 1, "failed": 0},
    }
    replies: dict[int, Any] = {
        0: (503, {"retry-after": "0"}, {"error": {"message": "Wait.", "code": "state_unavailable"}}),
        1: (200, {}, {"id": "file-1"}),
        2: (0, {}, None),
        4: (0, {}, None),
    }
    with scripted(lambda number: replies.get(number, (200, {}, batch))) as url:
        result = anyclass("batches", "create", requests, "--wait", "--url", url)
    assert (0, "batch_1\n") == (result.returncode, result.stderr)
    assert "batch_1  completed, 1 of 1 answered, 0 failed\n" == result.stdout


def test_a_batch_that_is_not_done_has_no_answers() -> None:
    """Download says so, with exit code 1."""
    batch = {
        **dict.fromkeys(("errors", "output_file_id", "error_file_id", "metadata", "endpoint")),
        "id": "batch_1",
        "status": "in_progress",
        "request_counts": {"total": 1, "completed": 0, "failed": 0},
    }
    with scripted(lambda number: (200, {}, batch)) as url:
        result = anyclass("batches", "download", "batch_1", "--url", url)
    assert (1, "", True) == (result.returncode, result.stdout, "still in_progress" in result.stderr)
