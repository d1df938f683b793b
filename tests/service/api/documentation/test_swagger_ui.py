"""The forms of /docs, filled in and sent by the code of Swagger UI itself."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.api.documentation.docs_page import assets
from service.app import create_app
from service.settings import Settings
from tests.support.places import ROOT

ROUTES = ("/v1/classify", "/v1/classify/batch")
SCRIPT = ROOT / "tests" / "support" / "swagger_ui.js"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Return the document of a service."""
    return create_app(Settings()).openapi()


def form(document: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the form of a route, which is the first of its bodies: Swagger UI shows that one."""
    kind, described = next(iter(document["paths"][path]["post"]["requestBody"]["content"].items()))
    assert "multipart/form-data" == kind
    assert isinstance(described, dict)
    return described


@pytest.mark.parametrize("path", ROUTES)
def test_lists_in_forms_are_repeated(document: dict[str, Any], path: str) -> None:
    """OpenAPI's default for a list in a form is one part with commas, which would be a single label."""
    repeated = {"style": "form", "explode": True}
    assert {"labels": repeated, "templates": repeated} == form(document, path)["encoding"]


@pytest.mark.parametrize("path", ROUTES)
def test_swagger_ui_sends_two_labels_as_two(document: dict[str, Any], path: str) -> None:
    """A row of the page is a part of the form, and nothing that the user did not write is filled in."""
    if shutil.which("node") is None:
        pytest.skip("node runs the code of Swagger UI")
    filled_in = {"labels": ["cat", "dog, asleep"], "templates": ["a {}.", "the {}, seen from afar"], "top_k": "1"}
    described = {"spec": document, "path": path, "requestBody": filled_in, "files": ["image"]}
    command: list[str | Path] = ["node", SCRIPT, assets() / "swagger-ui-bundle.js"]
    done = subprocess.run(command, input=json.dumps(described).encode(), capture_output=True, check=True, timeout=60)
    sent = json.loads(done.stdout)
    assert [
        ["labels", "cat"],
        ["labels", "dog, asleep"],
        ["templates", "a {}."],
        ["templates", "the {}, seen from afar"],
        ["top_k", "1"],
        ["image", "a file"],
    ] == sent["parts"]
    samples = {name: value for name, value in sent["samples"].items() if name not in ("image", "archive")}
    assert {"labels": ["cat", "dog"], "templates": []} == {
        name: value for name, value in samples.items() if value != ""
    }
