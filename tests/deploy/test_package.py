"""The distribution: contents of the wheel, and pins of every dependency."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.places import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def pins(*names: str) -> dict[str, Version]:
    """Return the pinned versions of constraints files, by normalised name."""
    found: dict[str, Version] = {}
    for name in names:
        for line in (ROOT / name).read_text().splitlines():
            if not line.startswith("#"):
                package, version = line.split("==")
                assert package not in found
                found[canonicalize_name(package)] = Version(version)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("anyclass-*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_every_file_of_both_halves(wheel: zipfile.ZipFile) -> None:
    """Modules, templates, recipes, type markers and the demo bundle are all package data."""
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("service", "model_export")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert wanted == packed
    assert {"service/py.typed", "model_export/py.typed"} <= packed


def test_wheel_holds_the_demo_bundle(wheel: zipfile.ZipFile) -> None:
    """The service starts without a network, and the bundle is small enough to ship."""
    bundle = [info for info in wheel.infolist() if info.filename.startswith("service/bundles/demo/")]
    names = {Path(info.filename).name for info in bundle}
    assert {"manifest.json", "image_encoder.onnx", "text_encoder.onnx", "tokenizer.json", "templates.json"} <= names
    assert sum(info.file_size for info in bundle) <= 16_000_000


def test_wheel_installs_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Site-packages get no tests, scripts or docs."""
    roots = {name.split("/")[0] for name in wheel.namelist()}
    assert {"service", "model_export"} == {root for root in roots if not root.endswith(".dist-info")}


def test_serving_needs_no_torch() -> None:
    """Neither the base nor an extra for serving requires packages of the offline half."""
    heavy = {"torch", "onnx", "onnxscript", "pyarrow", "tensorboard", "safetensors", "onnxruntime"}
    assert not heavy & {Requirement(line).name for line in PROJECT["dependencies"]}
    assert {"onnxruntime", "openvino"} == {Requirement(line).name for line in EXTRAS["cpu"]}
    assert ["onnxruntime-gpu"] == [Requirement(line).name for line in EXTRAS["gpu"]]


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_constraints_pin_every_requirement(extra: str) -> None:
    """Every requirement has a pin that satisfies it."""
    versions = pins("constraints.txt", "constraints-gpu.txt") if extra == "gpu" else pins("constraints.txt")
    for line in EXTRAS[extra] if extra else PROJECT["dependencies"]:
        requirement = Requirement(line)
        assert canonicalize_name(requirement.name) in versions
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])


def test_constraints_name_no_index() -> None:
    """The pins hold with any mirror, and for CPU and CUDA builds of torch alike."""
    for name in ("constraints.txt", "constraints-gpu.txt"):
        text = (ROOT / name).read_text()
        assert not re.search(r"://|^-|\+", text, re.MULTILINE)
    assert not [name for name in pins("constraints.txt") if re.match(r"nvidia-|triton$", name)]


def test_version_is_the_same_everywhere() -> None:
    """The changelog and the image tags have the version of pyproject.toml."""
    version = PROJECT["version"]
    assert re.search(rf"^## \[?{re.escape(version)}", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    for overlay in ("cpu", "gpu"):
        text = (ROOT / f"k8s/overlays/{overlay}/kustomization.yaml").read_text()
        assert f"newTag: {version}-{overlay}\n" in text
