"""`anyclass tune`, and `auto` in the service: what is measured is kept, told and taken."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.cli.commands import app
from service.cli.serve import supervisor
from service.errors import ConfigurationError
from service.settings import Settings
from tests.support.commands import anyclass
from tests.support.http_server import http_server
from tests.support.openvino import OPENVINO_RUNS
from tests.support.probes import write_tiny_bundle_with_probes
from tests.support.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.usefixtures("restored_logging")
PROVIDERS = {"cpu", "openvino"} if OPENVINO_RUNS else {"cpu"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with probes."""
    return write_tiny_bundle_with_probes(tmp_path_factory.mktemp("tune") / "tiny")


def test_the_figures_are_shown_and_kept(bundle: Path, tmp_path: Path) -> None:
    """A row for each candidate, one chosen; with --json the same for machines. The file is where it says."""
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    done = anyclass("tune", bundle, COLUMNS="120", **cache)
    assert 0 == done.returncode, done.stderr
    heading, *rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert ["provider", "precision", "threads", "pictures/s", "at", "1"] == heading[:6]
    assert PROVIDERS == {row[0] for row in rows}
    assert 1 == sum("✓" in row for row in rows)
    answer = json.loads(anyclass("tune", bundle, "--json", **cache).stdout)
    assert "tiny" == answer["model"]
    (chosen,) = [each for each in answer["candidates"] if each["chosen"]]
    assert all(rate > 0 for rate in chosen["pictures_per_s"].values())
    assert {"1", "8"} == set(chosen["pictures_per_s"])
    assert min(each["agreement"] for each in answer["candidates"]) > 0.99
    kept = json.loads(Path(answer["kept_in"]).read_text())
    assert [Path(answer["kept_in"])] == list(tmp_path.rglob("*.json"))
    assert (chosen["provider"], chosen["threads"]) == (kept["choice"]["provider"], kept["choice"]["threads"])
    assert f"Kept in {answer['kept_in']}" in done.stderr


def test_the_service_measures_once_and_says_so(bundle: Path, tmp_path: Path) -> None:
    """In the log, in /v1/models and in the metric; the second start knows."""
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "ANYCLASS_THREADS": "1", "ANYCLASS_TUNE": "true"}
    reported = []
    for _ in range(2):
        with http_server(bundle, tmp_path, env=env, provider="auto") as server:
            reported.append(_reported(server.url, server.logs()))
    first, second = reported
    chosen_by = "measurement" if OPENVINO_RUNS else "rule"
    assert (chosen_by, chosen_by) == (first["chosen_by"], second["chosen_by"])
    assert (OPENVINO_RUNS, False) == (first["timed"], second["timed"])
    assert (first["provider"], first["precision"]) == (second["provider"], second["precision"])
    known = " (known from an earlier start)" if OPENVINO_RUNS else ""
    assert first["because"] + known == second["because"]


def _reported(url: str, logs: list[dict[str, Any]]) -> dict[str, Any]:
    (model,) = httpx.get(f"{url}/v1/models").json()["models"]
    (line,) = [line for line in logs if line["event"] == "model loaded"]
    assert (model["because"], model["provider"]) == (line["because"], line["provider"])
    (labels,) = re.findall(r"^anyclass_model_info\{(.*)\} 1", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    metric = dict(re.findall(r'(\w+)="([^"]*)"', labels))
    assert (model["provider"], model["precision"], "1") == (metric["provider"], metric["precision"], metric["threads"])
    timed = any("providers are timed" in line["event"] for line in logs)
    return {**model, "chosen_by": metric["chosen_by"], "timed": timed}


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (("no-such-folder",), {}, "is not a bundle"),
        ((), {"ANYCLASS_PROVIDER": "cpu"}, "ANYCLASS_PROVIDER=cpu names the provider, so nothing is chosen"),
        ((), {"ANYCLASS_COMPUTE": "fp64"}, "ANYCLASS_COMPUTE"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: tuple[str, ...], env: dict[str, str], message: str) -> None:
    """In one line, before any work."""
    done = anyclass("tune", *arguments, **env)
    assert (2, "") == (done.returncode, done.stdout)
    assert message in done.stderr
    assert 1 == len(done.stderr.splitlines())


def test_fp16_is_refused(tmp_path: Path) -> None:
    """No CPU computes it."""
    done = anyclass("tune", write_tiny_bundle(tmp_path / "half", precision="fp16"))
    assert (2, "Error: model tiny is fp16, which only GPUs compute\n") == (done.returncode, done.stderr)


def test_a_choice_that_cannot_be_kept_is_an_error(bundle: Path, tmp_path: Path) -> None:
    """The figures are shown all the same."""
    (tmp_path / "anyclass").touch()
    done = anyclass("tune", bundle, XDG_CACHE_HOME=str(tmp_path))
    assert 1 == done.returncode
    assert "✓" in done.stdout
    assert "Error: the choice could not be kept in " in done.stderr


@pytest.mark.parametrize(("options", "tune"), [([], True), (["--no-tune"], False), (["--tune"], True)])
def test_serve_has_an_option_for_it(monkeypatch: pytest.MonkeyPatch, options: list[str], tune: bool) -> None:
    """It goes before the variable."""
    monkeypatch.setenv("ANYCLASS_TUNE", "false" if options == ["--tune"] else "true")
    seen = []

    def stop(settings: Settings) -> None:
        seen.append(settings.tune)
        raise ConfigurationError("enough")

    monkeypatch.setattr(supervisor, "check_workers", stop)
    assert 2 == CliRunner().invoke(app, ["serve", *options]).exit_code
    assert [tune] == seen
