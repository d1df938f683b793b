"""`anyclass label-sets` against a real service."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import anyclass, on_a_terminal, scripted
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """Run a service that computes sets of more than ten prompts in the background."""
    folder = tmp_path_factory.mktemp("cli-label-sets")
    env = {"ANYCLASS_STATE_URL": str(folder / "state"), "ANYCLASS_LABEL_SET_INLINE_PROMPTS": "10"}
    with http_server(write_tiny_bundle(folder / "bundle"), folder, env=env) as running:
        yield running


@pytest.fixture
def url(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set the service's address in the environment, for the commands."""
    monkeypatch.setenv("ANYCLASS_URL", server.url)
    return server.url


@pytest.mark.usefixtures("url")
def test_the_life_of_a_set(tmp_path: Path) -> None:
    """A set is written from a file, shown, listed, replaced by version, and deleted."""
    (tmp_path / "colours.txt").write_text("red\ngreen, or so\n", "utf-8")
    put = anyclass("label-sets", "put", "colours", tmp_path / "colours.txt", "--new")
    assert (0, "") == (put.returncode, put.stderr)
    found = re.fullmatch(r"colours is ready: 2 labels, version (\w+)\.\n", put.stdout)
    assert found is not None
    shown = anyclass("label-sets", "show", "colours").stdout
    assert ["name", "colours"] == shown.splitlines()[0].split()
    assert ["version", found[1]] in [line.split() for line in shown.splitlines()]
    assert "model tiny  ready, 2 of 2" in shown
    assert "red\ngreen, or so\n" == anyclass("label-sets", "show", "colours", "--labels").stdout
    listed = anyclass("label-sets", "list").stdout.splitlines()
    assert ["NAME", "STATUS", "LABELS", "COMPUTED", "WRITTEN", "VERSION"] == listed[0].split()
    assert [found[1]] == [line.split()[-1] for line in listed if line.startswith("colours ")]

    changed = anyclass(
        "label-sets", "put", "colours", "--labels", "red,blue", "--templates", "a {}", "--if-match", found[1], "--json"
    )
    status = json.loads(changed.stdout)
    assert (0, 2, ["a {}"]) == (changed.returncode, status["label_count"], status["templates"])
    for arguments in (
        ["put", "colours", "--labels", "black", "--if-match", found[1]],
        ["put", "colours", "--labels", "black", "--new"],
        ["delete", "colours", "--if-match", found[1]],
    ):
        late = anyclass("label-sets", *arguments)
        assert (1, "", True) == (late.returncode, late.stdout, "version" in late.stderr)
    assert "red\nblue\n" == anyclass("label-sets", "show", "colours", "--labels").stdout

    deleted = anyclass("label-sets", "delete", "colours", "--if-match", f'"{status["version"]}"')
    assert (0, "colours is deleted.\n") == (deleted.returncode, deleted.stdout)
    gone = anyclass("label-sets", "show", "colours")
    assert (2, "", True) == (
        gone.returncode,
        gone.stdout,
        "list them: anyclass label-sets list" in gone.stderr,
    )


@pytest.mark.usefixtures("url")
def test_a_large_set_is_waited_for(tmp_path: Path) -> None:
    """A terminal shows a progress bar; a pipe only the end."""
    (tmp_path / "many.json").write_text(json.dumps([f"label {number}" for number in range(3_000)]))
    put = anyclass("label-sets", "put", "many", tmp_path / "many.json")
    assert (0, "") == (put.returncode, put.stderr)
    assert re.match(r"many is (being computed|ready): 3,000 labels, version \w+\.", put.stdout)
    waited = anyclass("label-sets", "wait", "many")
    assert (0, "") == (waited.returncode, waited.stderr)
    assert waited.stdout.startswith("many is ready: 3,000 labels")
    (tmp_path / "more.json").write_text(json.dumps({"labels": [f"other {number}" for number in range(3_000)]}))
    code, seen = on_a_terminal("label-sets", "put", "many", tmp_path / "more.json", "--wait")
    assert (0, True, True) == (code, "many is ready: 3,000 labels" in seen, "computing many" in seen)


@pytest.mark.usefixtures("url")
def test_what_cannot_be_a_set(tmp_path: Path) -> None:
    """Exit code 2, and one line with the reason."""
    (tmp_path / "broken.json").write_text("[")
    for arguments, words in (
        (["put", "x"], "no labels"),
        (["put", "x", tmp_path / "nowhere.txt"], "cannot read"),
        (["put", "x", tmp_path / "broken.json"], "is not JSON"),
        (["put", "x", "--labels", "a", "--new", "--if-match", "1"], "contradict"),
        (["put", "x", "--labels", "a,a"], "the same"),
        (["put", "A B", "--labels", "a"], "name: must have"),
        (["wait", "nothing"], "No label set has this name"),
    ):
        result = anyclass("label-sets", *arguments)
        assert (2, "", 1) == (result.returncode, result.stdout, len(result.stderr.splitlines()))
        assert words in result.stderr


def test_a_set_that_cannot_be_computed() -> None:
    """Exit code 1, and the reason for each model."""
    status = {
        "name": "x",
        "version": "1",
        "status": "failed",
        "progress": {"done": 0, "total": 1},
        "label_count": 1,
        "templates": "default",
        "written": "",
        "models": [{"model": "tiny", "status": "failed", "done": 0, "total": 1, "reason": "It is too long."}],
    }
    with scripted(lambda number: (200, {}, status)) as url:
        result = anyclass("label-sets", "wait", "x", "--url", url)
    assert (1, "Error: x cannot be computed for the model tiny: It is too long.\n") == (
        result.returncode,
        result.stderr,
    )


def test_a_wait_ends_after_its_timeout() -> None:
    """The exit code is 1."""
    status = {
        **dict.fromkeys(("version", "templates", "written"), ""),
        "name": "x",
        "status": "computing",
        "progress": {"done": 0, "total": 1},
        "label_count": 1,
        "models": [],
    }
    with scripted(lambda number: (200, {}, status)) as url:
        result = anyclass("label-sets", "wait", "x", "--url", url, "--timeout", 0.3)
    assert (1, True) == (result.returncode, "has not ended within 0.3 s" in result.stderr)


def test_retries_of_a_busy_service_are_announced() -> None:
    """One line gives the reason and the time: the terminal does not stay silent."""
    problem = {"type": "urn:anyclass:problem:state-unavailable", "detail": "The state store is away."}
    replies = {0: (503, {"retry-after": "3"}, problem), 1: (503, {"retry-after": "0"}, problem)}
    page: dict[str, Any] = {"label_sets": [], "next": None}
    with scripted(lambda number: replies.get(number, (200, {}, page))) as url:
        result = anyclass("label-sets", "list", "--json", "--url", url)
    assert (0, "The state store is away. Retrying for up to 60 s (--retry-for).\n") == (
        result.returncode,
        result.stderr,
    )


def test_another_kind_of_server() -> None:
    """An answer of another service is reported as such."""
    with scripted(lambda number: (200, {}, {"hello": "world"})) as url:
        result = anyclass("label-sets", "list", "--url", url)
    assert (1, True) == (result.returncode, "does not look like an anyclass service" in result.stderr)
