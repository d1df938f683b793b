"""The Dockerfile, parsed as the build would; no container engine is needed."""

import ast
import json
import re
import shlex
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from tests.support.places import ROOT


@dataclass
class Stage:
    """A FROM and its instructions."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """Return the arguments of every instruction with this name."""
        return [arguments for instruction, arguments in self.instructions if instruction == name]


def read_stages() -> dict[str, Stage]:
    """Return the stages by name, without comments and with continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, Stage] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        instruction, arguments = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = arguments.split()
            stages[name] = stage = Stage(base)
        else:
            stage.instructions.append((instruction, arguments.strip()))
    return stages


STAGES = read_stages()


def lineage(name: str) -> list[Stage]:
    """Return a stage after the stages that it is built from."""
    stage = STAGES[name]
    return [*(lineage(stage.base) if stage.base in STAGES else []), stage]


def final(name: str, instruction: str) -> list[str]:
    """Return the arguments of an instruction in all stages of an image."""
    return [arguments for stage in lineage(name) for arguments in stage.all(instruction)]


def environment(name: str) -> dict[str, str]:
    """Return the variables that ENV sets in an image."""
    return dict(pair.split("=", 1) for line in final(name, "ENV") for pair in shlex.split(line))


SERVING = ["cpu", "gpu"]
EXTRAS = {"training": "cpu,train", "training-ray": "cpu,train", "curation-ray": "cpu,curate,scale"}
"""Extras of the offline half's images."""
TRAINING = ["training", "training-ray"]
IMAGES = pytest.mark.parametrize("image", SERVING)
ALL_IMAGES = pytest.mark.parametrize("image", [*SERVING, *EXTRAS])


def test_a_plain_build_is_the_cpu_image() -> None:
    """All targets exist; the one without a GPU is the default."""
    assert {*SERVING, *EXTRAS} <= STAGES.keys()
    assert list(STAGES)[-1] == "cpu"


@ALL_IMAGES
def test_base_is_pinned_and_slim(image: str) -> None:
    """The base is a slim Python of a named release, the same as the build stage's."""
    base = lineage(image)[0].base
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", base)
    assert base == lineage(f"build-{image}")[0].base


@ALL_IMAGES
def test_runs_as_a_numbered_user(image: str) -> None:
    """The last USER is not root, and a number: Kubernetes can check `runAsNonRoot`."""
    user, group = final(image, "USER")[-1].split(":")
    assert int(user) > 0
    assert int(group) > 0


@ALL_IMAGES
def test_final_image_is_built_by_copying_only(image: str) -> None:
    """The final stages have no RUN: no build tools, no package cache, and root wrote only the environment."""
    assert [] == final(image, "RUN")
    assert [f"--from=build-{image} /opt/venv /opt/venv"] == final(image, "COPY")
    assert [] == final(image, "ADD")


@IMAGES
def test_environment_holds_the_pinned_runtime_only(image: str) -> None:
    """It has the image's extra and the pins, but no torch, pip or cache."""
    runs = final(f"build-{image}", "RUN")
    assert "python -m venv --without-pip /opt/venv" in runs
    (dependencies,) = [run for run in runs if f'".[{image}]"' in run]
    assert "-c constraints.txt" in dependencies
    assert ("-c constraints-gpu.txt" in dependencies) == (image == "gpu")
    assert "PIP_NO_CACHE_DIR=1" in " ".join(final(f"build-{image}", "ENV"))
    assert not re.search(r"\[.*(train|convert|dev).*\]|apt-get", " ".join(runs))


@pytest.mark.parametrize("image", EXTRAS)
def test_an_offline_image_has_the_pinned_extras(image: str) -> None:
    """And the CPU's runtime for bundles; those on Ray have its dashboard too."""
    runs = final(f"build-{image}", "RUN")
    assert "python -m venv --without-pip /opt/venv" in runs
    (dependencies,) = [run for run in runs if f'".[{EXTRAS[image]}]"' in run]
    assert "-c constraints.txt" in dependencies
    assert image.endswith("-ray") == any(
        re.search(r'-c constraints.txt .*"ray\[default\]==[\d.]+"$', run) for run in runs
    )
    assert re.search(
        r"^torch==" if image in TRAINING else r"^ray==", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    assert not re.search(r"apt-get|\[.*dev.*\]", " ".join(runs))


@pytest.mark.parametrize("image", EXTRAS)
def test_an_offline_image_is_a_command(image: str) -> None:
    """Started alone it shows the help; only /tmp is written to."""
    (entrypoint,) = final(image, "ENTRYPOINT")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert ["anyclass-export"] == json.loads(entrypoint)
    assert "anyclass-export" in scripts
    assert ["--help"] == json.loads(final(image, "CMD")[-1])
    assert [environment(image)["HOME"]] == final(image, "WORKDIR")
    assert environment(image)["HOME"] in [
        mount["mountPath"]
        for each in yaml.safe_load_all((ROOT / "k8s/training/job.yaml").read_text())
        for mount in each["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    ]


@ALL_IMAGES
def test_the_build_backend_is_pinned_too(image: str) -> None:
    """Constraints on the command line do not reach build isolation; these variables do, in old and new pip."""
    variables = " ".join(final(f"build-{image}", "ENV"))
    for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"):
        assert f" {name}=/src/constraints.txt" in variables
    assert re.search(r"^hatchling==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ["/src"] == final(f"build-{image}", "WORKDIR")


@ALL_IMAGES
def test_a_change_of_a_text_installs_no_dependency_again(image: str) -> None:
    """Only what decides the dependencies is copied before they are installed."""
    extra = EXTRAS.get(image, image)
    instructions = [each for stage in lineage(f"build-{image}") for each in stage.instructions]
    install = next(
        at for at, (name, arguments) in enumerate(instructions) if name == "RUN" and f'".[{extra}]"' in arguments
    )
    before = [arguments.split()[:-1] for name, arguments in instructions[:install] if name == "COPY"]
    assert [["pyproject.toml", "constraints.txt", "constraints-gpu.txt"]] == before
    after = [arguments for name, arguments in instructions[install:] if name == "COPY"]
    assert ["README.md LICENSE ./", "service service", "model_export model_export"] == after


@IMAGES
def test_listens_for_the_world_outside_the_container(image: str) -> None:
    """The address is not loopback, and the port is the exposed one."""
    values = environment(image)
    assert values["ANYCLASS_HOST"] == "0.0.0.0"
    assert [values["ANYCLASS_PORT"]] == final(image, "EXPOSE")
    assert ["SIGTERM"] == final(image, "STOPSIGNAL")


@IMAGES
def test_start_is_a_console_script(image: str) -> None:
    """The entry point is a script of pyproject.toml, started without a shell, so it receives the signals."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (entrypoint,) = final(image, "ENTRYPOINT")
    assert json.loads(entrypoint) == ["anyclass"]
    assert "anyclass" in scripts
    assert ["serve"] == json.loads(final(image, "CMD")[-1])


def test_everything_copied_is_let_through() -> None:
    """.dockerignore excludes everything except the sources of COPY."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:].rstrip("/") for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = {
        source
        for stage in STAGES.values()
        for arguments in stage.all("COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


class Health(BaseHTTPRequestHandler):
    """Answers /readyz with a fixed status."""

    status = 200

    def do_GET(self) -> None:
        """Answer /readyz with the status, anything else with 404."""
        self.send_response(type(self).status if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[int]:
    """Yield the port of a server that answers /readyz."""
    http = HTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http.server_port
    http.shutdown()
    thread.join()
    http.server_close()


def check_health(port: int) -> int:
    """Return the exit status of the image's health check command."""
    (arguments,) = STAGES["runtime"].all("HEALTHCHECK")
    command = ast.literal_eval(arguments.split("CMD ", 1)[1])
    assert command[0] == "python"
    # The command must ignore a proxy in the environment.
    variables = {"ANYCLASS_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, *command[1:]], env=variables, check=False, capture_output=True).returncode


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_health_check_follows_readiness(
    server: int, status: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command exits with 0 if the service is ready, else with 1."""
    monkeypatch.setattr(Health, "status", status)
    assert expected == check_health(server)


def test_health_check_fails_where_nothing_listens() -> None:
    """A dead service is unhealthy."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert check_health(unused.getsockname()[1]) == 1
