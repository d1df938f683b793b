"""The Makefile and its scripts."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.model.manifest import DEMO_BUNDLE
from tests.support.companions import companions
from tests.support.places import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()

# An in-tree build backend without requirements: pip installs the toy project without an index.
BACKEND = """
import zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("toy-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: toy\\nVersion: 1\\n"
                       "Provides-Extra: cpu\\n")
        wheel.writestr("toy-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: toy\\nRoot-Is-Purelib: true\\n"
                       "Tag: py3-none-any\\n")
        wheel.writestr("toy-1.dist-info/RECORD", "")
    return name
"""


def make(*arguments: str, **variables: str) -> str:
    """Return the output of make; with `-n` it prints the commands and runs none."""
    return made(*arguments, **variables).stdout


def made(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make, and require success."""
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "HOST", "PORT"}}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )


def stub(path: Path, commands: str) -> None:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)


def venv_script(project: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/venv.sh in a toy project, without any package index."""
    return subprocess.run(
        [project / "scripts/venv.sh", ".venv", "cpu"],
        env={"PATH": os.environ["PATH"], "PYTHON": python, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )


def converting_project(folder: Path) -> None:
    """Make a project that prints the bundle to serve, and converts by copying the demo bundle and logging that."""
    scripts = folder / "scripts"
    stub(scripts / "venv.sh", 'echo "$@" >>environments')
    shutil.copy(ROOT / "scripts/lib.sh", scripts)
    shutil.copy(ROOT / "scripts/model.sh", scripts)
    stub(folder / ".venv/bin/python", f'exec {shlex.quote(sys.executable)} "$@"')
    stub(folder / ".venv/bin/anyclass", 'echo "serving $ANYCLASS_MODEL"')
    stub(
        folder / ".venv-export/bin/anyclass-export",
        'echo "$@" >>conversions; echo exporting; mkdir -p "$(dirname "$3")"\n'
        f'cp -r {shlex.quote(str(DEMO_BUNDLE))} "$3"',
    )


def checkpoint(folder: Path) -> None:
    """Make a folder that is a Hugging Face checkpoint but for its weights."""
    folder.mkdir()
    for name, content in companions().items():
        (folder / name).write_bytes(content)
    (folder / "model.safetensors").write_bytes(folder.name.encode())


def mobile_clip(folder: Path) -> None:
    """Make a folder in open_clip's layout whose towers open_clip builds, but for its weights."""
    folder.mkdir()
    model = {
        "embed_dim": 32,
        "vision_cfg": {"timm_model_name": "fastvit_mci0", "image_size": 256},
        "text_cfg": {"vocab_size": 600, "no_causal_mask": True},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {"mean": 0.5}}))
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(companions()["bpe_simple_vocab_16e6.txt.gz"])
    (folder / "open_clip_model.safetensors").write_bytes(b"")


def graphs(folder: Path) -> None:
    """Make a folder that looks like published ONNX graphs without weights."""
    for name in ("config.json", "onnx/vision_model.onnx", "onnx/text_model.onnx"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"model_type": "clip"}')


LACKING = "exit 3"
"""Shell command: the exporter as if PyTorch were missing, and told that an installer runs it."""


@pytest.fixture
def toy_project(tmp_path: Path) -> Path:
    """Make a project without dependencies, with this project's scripts."""
    (tmp_path / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "constraints.txt").write_text("")
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in ("lib.sh", "venv.sh"):
        (scripts / name).write_text((ROOT / "scripts" / name).read_text())
    (scripts / "venv.sh").chmod(0o755)
    return tmp_path


def test_help_lists_every_public_target() -> None:
    """`make help` lists every target except those that only other targets need."""
    phony = set(" ".join(re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)).replace("\\", "").split())
    listed = {line.split()[0] for line in make("help").splitlines()}
    assert phony - {"browser", "clients", "prometheus", "redis"} == listed


def test_every_target_is_declared_phony() -> None:
    """A file of the same name never blocks a target."""
    phony = set(" ".join(re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)).replace("\\", "").split())
    targets = set(re.findall(r"^([a-z0-9-]+):(?! export)", MAKEFILE, re.MULTILINE))
    assert targets == phony


def test_run_uses_an_environment_with_the_runtime_only() -> None:
    """`make run` installs nothing for training or development."""
    commands = make("-n", "run")
    assert "scripts/venv.sh .venv cpu\n" in commands
    assert "venv-dev" not in commands
    # Off a terminal the output is JSON lines, which a welcome would break; on one it is shown without being asked for.
    assert "--welcome" not in commands


@pytest.mark.parametrize("name", ["PORT", "MODEL", "REDIS_URL"])
@pytest.mark.parametrize("on_command_line", [True, False])
def test_run_passes_its_variables_on_unchanged(tmp_path: Path, name: str, *, on_command_line: bool) -> None:
    """PORT=, MODEL= and REDIS_URL= reach the service, dollar signs included, from command line or environment."""
    converting_project(tmp_path)
    stub(tmp_path / ".venv/bin/anyclass", f'test "$1" = serve && printenv ANYCLASS_{name}')
    value = "a$b (c) $$d"
    (tmp_path / value).mkdir()
    (tmp_path / value / "manifest.json").touch()
    makefile = ["-f", str(ROOT / "Makefile"), "-C", str(tmp_path), "run"]
    output = make(*makefile, f"{name}={value}") if on_command_line else make(*makefile, **{name: value})
    assert f"{value}\n" == output


def test_run_converts_a_model_once(tmp_path: Path) -> None:
    """A checkpoint is converted in its own environment, into the user's cache, and after that only served."""
    converting_project(tmp_path)
    checkpoint(tmp_path / "my run")
    arguments = ("-f", str(ROOT / "Makefile"), "-C", str(tmp_path), "run", "MODEL=my run")
    outputs = [make(*arguments, XDG_CACHE_HOME=str(tmp_path / "cache")) for _ in range(2)]
    [bundle] = (tmp_path / "cache/anyclass/bundles").iterdir()
    assert [f"serving {bundle}\n"] * 2 == outputs
    assert f"export {tmp_path / 'my run'} {bundle} --force\n" == (tmp_path / "conversions").read_text()
    environments = (tmp_path / "environments").read_text().splitlines()
    assert [".venv cpu", ".venv-export cpu,convert,train", ".venv cpu"] == environments


def test_weights_get_torch_at_once_and_graphs_never(tmp_path: Path) -> None:
    """The content decides before the first installation: one environment is made, not two."""
    converting_project(tmp_path)
    makefile = ["-f", str(ROOT / "Makefile"), "-C", str(tmp_path), "run"]
    graphs(tmp_path / "graphs")
    checkpoint(tmp_path / "weights")
    mobile_clip(tmp_path / "mobile")
    for model in ("graphs", "weights", "mobile"):
        made(*makefile, f"MODEL={model}", XDG_CACHE_HOME=str(tmp_path / "c"))
    environments = (tmp_path / "environments").read_text().splitlines()
    assert [
        ".venv-export cpu,convert",
        ".venv-export cpu,convert,train",
        ".venv-export cpu,convert,train,open-clip",
    ] == environments[1::2]


def test_open_clip_is_installed_only_where_a_conversion_needs_it(tmp_path: Path) -> None:
    """A file without a configuration to read beforehand: the exporter asks for PyTorch and for open_clip in turn."""
    converting_project(tmp_path)
    exporter = tmp_path / ".venv-export/bin/anyclass-export"
    exporter.rename(tmp_path / "with-open-clip")
    package = ".venv-export/lib/python3/site-packages/open_clip"
    stub(exporter, f'test -d {package} && exec {tmp_path}/with-open-clip "$@"\n{LACKING}')
    stub(
        tmp_path / "scripts/venv.sh",
        'echo "$@" >>environments; case $2 in *open-clip) mkdir -p "$1/lib/python3/site-packages/open_clip" ;; esac',
    )
    makefile = ["-f", str(ROOT / "Makefile"), "-C", str(tmp_path), "run"]
    for run in ("one", "two"):
        checkpoint(tmp_path / run)
        done = made(*makefile, f"MODEL={run}", XDG_CACHE_HOME=str(tmp_path / "c"))
        assert ("this model is built by open_clip: installing it" in done.stderr) == (run == "one")
    environments = (tmp_path / "environments").read_text().splitlines()
    whole = ".venv-export cpu,convert,train,open-clip"
    assert [".venv cpu", ".venv-export cpu,convert,train", whole, ".venv cpu", whole] == environments
    assert len((tmp_path / "conversions").read_text().splitlines()) == 2


def test_torch_is_installed_only_where_a_conversion_needs_it(tmp_path: Path) -> None:
    """A conversion that lacks a package is repeated with PyTorch, without an error; with PyTorch it runs once."""
    converting_project(tmp_path)
    exporter = tmp_path / ".venv-export/bin/anyclass-export"
    exporter.rename(tmp_path / "with-torch")
    torch = ".venv-export/lib/python3/site-packages/torch"
    stub(exporter, f'test -d {torch} && exec {tmp_path}/with-torch "$@"\n{LACKING}')
    stub(
        tmp_path / "scripts/venv.sh",
        'echo "$@" >>environments; case $2 in *train) mkdir -p "$1/lib/python3/site-packages/torch" ;; esac',
    )
    makefile = ["-f", str(ROOT / "Makefile"), "-C", str(tmp_path), "run"]
    said = []
    for run in ("one", "two"):
        graphs(tmp_path / run)
        done = made(*makefile, f"MODEL={run}", XDG_CACHE_HOME=str(tmp_path / "c"))
        said.append([line.partition(" to ")[0] for line in done.stderr.splitlines()])
    assert [
        [
            "anyclass: one is not a bundle yet: converting it",
            "anyclass: these are weights, not ONNX graphs: installing PyTorch, for this conversion only",
            "exporting",
        ],
        ["anyclass: two is not a bundle yet: converting it", "exporting"],
    ] == said
    environments = (tmp_path / "environments").read_text().splitlines()
    first = [".venv cpu", ".venv-export cpu,convert", ".venv-export cpu,convert,train"]
    assert [*first, ".venv cpu", ".venv-export cpu,convert,train"] == environments
    assert len((tmp_path / "conversions").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("./nowhere", "./nowhere: is neither a bundle, a checkpoint's file or folder, a training run, nor a hub id"),
        ("photos", "photos: is in no layout that is read here"),
        (
            "of-another-kind",
            "config.json: model_type is chinese_clip; clip, siglip, metaclip_2 and siglip2 can be exported",
        ),
        ("broken", "broken was not converted (see above)"),
    ],
)
def test_run_serves_nothing_where_the_model_fails(tmp_path: Path, model: str, said: str) -> None:
    """A missing model or a failed conversion ends make with a message; no other model is served instead."""
    converting_project(tmp_path)
    checkpoint(tmp_path / "broken")
    checkpoint(tmp_path / "of-another-kind")
    (tmp_path / "of-another-kind/config.json").write_text('{"model_type": "chinese_clip"}')
    (tmp_path / "photos").mkdir()
    stub(tmp_path / ".venv-export/bin/anyclass-export", "echo 'error: broken: lacks a tensor' >&2; exit 2")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        make("-f", str(ROOT / "Makefile"), "-C", str(tmp_path), "run", f"MODEL={model}", XDG_CACHE_HOME=str(tmp_path))
    assert said in caught.value.stderr
    assert "" == caught.value.stdout
    assert not (tmp_path / "anyclass").exists()
    environments = (tmp_path / "environments").read_text().splitlines()
    assert [".venv cpu", *([".venv-export cpu,convert,train"] if model == "broken" else [])] == environments


def test_run_keeps_a_shell_s_own_host_out(tmp_path: Path) -> None:
    """Some shells export HOST, the machine's name, so only make's command line sets the address."""
    stub(tmp_path / "scripts/venv.sh", "exit 0")
    stub(tmp_path / ".venv/bin/anyclass", 'echo "host=$ANYCLASS_HOST"')
    makefile = ["-f", str(ROOT / "Makefile"), "-C", str(tmp_path), "run"]
    assert "host=\n" == make(*makefile, HOST="laptop")
    assert "host=0.0.0.0\n" == make(*makefile, "HOST=0.0.0.0")


@pytest.mark.timeout(600)  # creates environments, which is slow on a busy machine
def test_setup_runs_once_and_then_needs_nothing(toy_project: Path) -> None:
    """A second set-up with the same dependencies does nothing; a changed pin is noticed."""
    first = venv_script(toy_project, sys.executable)
    assert first.returncode == 0, first.stderr
    assert ".venv is ready" in first.stderr
    second = venv_script(toy_project, sys.executable)
    assert (0, "", "") == (second.returncode, second.stdout, second.stderr)
    (toy_project / "constraints.txt").write_text("other==1\n")
    third = venv_script(toy_project, sys.executable)
    assert third.returncode == 0, third.stderr
    assert ".venv is ready" in third.stderr


@pytest.mark.timeout(600)  # creates environments, which is slow on a busy machine
def test_a_failed_setup_is_not_taken_for_a_finished_one(toy_project: Path) -> None:
    """The error of pip is shown, and the next run tries again."""
    assert venv_script(toy_project, sys.executable).returncode == 0
    good = (toy_project / "pyproject.toml").read_text()
    (toy_project / "pyproject.toml").write_text(good.replace("requires = []", "requires = ['not-there-at-all']"))
    for _ in range(2):
        failed = venv_script(toy_project, sys.executable)
        assert failed.returncode == 1
        assert "not-there-at-all" in failed.stderr
        assert "pip could not install" in failed.stderr
    (toy_project / "pyproject.toml").write_text(good)
    assert venv_script(toy_project, sys.executable).returncode == 0


def test_an_unusable_python_is_reported(toy_project: Path) -> None:
    """A wrong or old PYTHON= ends with a message, and creates nothing."""
    result = venv_script(toy_project, "/bin/false")
    assert result.returncode == 1
    assert "PYTHON=/bin/false is not a working Python 3.11 or newer" in result.stderr
    assert not (toy_project / ".venv").exists()


def test_redis_secret_is_new_each_time() -> None:
    """`make k8s-secret` prints a Secret with the name in the manifests and a new password."""
    first, second = make("k8s-secret"), make("k8s-secret")
    assert re.search(r"^  name: anyclass-redis\n  namespace: anyclass$", first, re.MULTILINE)
    passwords = [re.findall(r"^  password: ([0-9a-f]{64})$", text, re.MULTILINE) for text in (first, second)]
    assert [1, 1] == [len(found) for found in passwords]
    assert passwords[0] != passwords[1]
