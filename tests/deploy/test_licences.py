"""The page of licences, beside the packages that are installed."""

import re
import runpy
from typing import Any

import pytest

from tests.support.places import ROOT

PAGE = (ROOT / "docs/licences.md").read_text("utf-8")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The script that writes the page."""
    return runpy.run_path(str(ROOT / "scripts/licences.py"))


def rows() -> dict[str, tuple[str, str]]:
    """Return version and licence of each package on the page."""
    found = re.findall(r"^\| ([a-z0-9-]+) \| (\d\S*) \| (.+) \|$", PAGE, re.MULTILINE)
    return {name: (version, licence) for name, version, licence in found}


def test_every_shipped_package_is_on_the_page(script: dict[str, Any]) -> None:
    """In the pinned version. If this fails: `make licences`."""
    shipped = script["shipped"]()
    assert len(shipped) > 30
    assert {"numpy", "onnxruntime", "openvino", "starlette", "pillow"} <= shipped.keys()
    assert set() == shipped.keys() - rows().keys()
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {name: pins[name] for name in rows()} == {name: version for name, (version, _) in rows().items()}


def test_every_package_states_its_licence() -> None:
    """None is of a kind that an image under Apache-2.0 may not bring along."""
    assert not [name for name, (_, licence) in rows().items() if re.search(r"see the package|\bA?GPL|SSPL", licence)]


def test_the_page_is_written_again_in_place(script: dict[str, Any]) -> None:
    """Only the table between the marks changes."""
    again = script["written"](PAGE)
    assert again == script["written"](again)
    assert PAGE.partition("<!-- results")[0] == again.partition("<!-- results")[0]
