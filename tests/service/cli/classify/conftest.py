"""Fixtures of the tests of `anyclass classify`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.cli.classify.photos import KEY, write_photos
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a bundle and photos."""
    folder = tmp_path_factory.mktemp("cli-classify")
    write_tiny_bundle(folder / "bundle")
    write_photos(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[HttpServer]:
    """Run a service that needs a key, with a limit of eight requests a second and bursts of three."""
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
    """Return options to classify in the command's process, or by the service."""
    if request.param == "here":
        return ["--model", folder / "bundle", "--provider", "cpu"]
    return ["--url", request.getfixturevalue("server").url, "--api-key", KEY]
