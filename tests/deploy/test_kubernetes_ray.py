"""The manifests of a training as a RayJob, and the program that it runs; neither a cluster nor Ray is needed."""

import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import jsonschema_rs
import kubernetes_validate
import pytest
import typer
from torch.distributed.run import get_args_parser

from model_export.cli import app
from model_export.training.ranks import Ranks
from model_export.training.recipe import read_recipe
from tests.deploy import test_kubernetes_training
from tests.deploy.test_dockerfile import STAGES
from tests.deploy.test_kubernetes import VERSIONS, Document, kustomize, single, why_not_rendered
from tests.support.places import ROOT

NAME = "anyclass-training"
START = ROOT / "k8s/training-ray/start.py"

rendered = pytest.mark.skipif(why_not_rendered() is not None, reason=str(why_not_rendered()))


@cache
def render() -> tuple[Document, ...]:
    """Render the manifests."""
    return kustomize(ROOT / "k8s/training-ray")


def ray_job() -> Document:
    """Return the specification of the RayJob."""
    spec: Document = single(render(), "RayJob", NAME)["spec"]
    return spec


def group(name: str) -> Document:
    """Return the head, or the only group of workers."""
    cluster = ray_job()["rayClusterSpec"]
    found: Document = cluster["headGroupSpec"]
    if name == "workers":
        (found,) = cluster["workerGroupSpecs"]
    return found


def pod(name: str) -> Document:
    """Return the specification of a group's pods."""
    spec: Document = group(name)["template"]["spec"]
    return spec


def container(name: str) -> Document:
    """Return the only container of a group's pods."""
    (found,) = pod(name)["containers"]
    result: Document = found
    return result


@rendered
@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_valid(version: str) -> None:
    """Strictly: by Kubernetes' schemas, those of pods included, and by KubeRay's for the RayJob's own fields."""
    kinds = set()
    for document in render():
        kinds.add(document["kind"])
        if document["kind"] != "RayJob":
            kubernetes_validate.validate(document, version, strict=True)
    assert {"Namespace", "ConfigMap", "PersistentVolumeClaim", "NetworkPolicy", "RayJob"} == kinds
    for name in ("head", "workers"):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": group(name)["template"]}
        kubernetes_validate.validate(template, version, strict=True)
    assert "ray.io/v1" == single(render(), "RayJob", NAME)["apiVersion"]
    schema = json.loads((ROOT / "tests/deploy/ray_job_spec.json").read_text("utf-8"))
    validator = jsonschema_rs.validator_for(schema)
    assert [] == [str(error) for error in validator.iter_errors(ray_job())]
    assert not validator.is_valid({**ray_job(), "shutDownAfterJobFinishes": True})


@rendered
@pytest.mark.parametrize("name", ["head", "workers"])
def test_pods_are_restricted(name: str) -> None:
    """As those of the Job, in its namespace; the containers that KubeRay adds copy the context of ours."""
    job = test_kubernetes_training
    assert NAME == single(render(), "RayJob", NAME)["metadata"]["namespace"]
    assert job.container()["securityContext"] == container(name)["securityContext"]
    assert pod(name)["securityContext"].items() <= job.pod()["securityContext"].items()
    assert pod(name)["automountServiceAccountToken"] is False
    policy = single(render(), "NetworkPolicy", NAME)["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= group(name)["template"]["metadata"]["labels"].items()


@rendered
def test_workers_are_the_pods_of_the_job() -> None:
    """The same resources, volumes and places, on as many machines."""
    job = test_kubernetes_training
    for key in ("resources", "volumeMounts", "env", "imagePullPolicy"):
        assert job.container()[key] == container("workers")[key]
    assert job.pod()["volumes"] == pod("workers")["volumes"]
    assert job.pod()["tolerations"] == pod("workers")["tolerations"]
    workers = group("workers")
    assert job.job()["completions"] == workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]


@rendered
def test_the_operator_reaches_the_dashboard() -> None:
    """It submits the job there, and asks for its state."""
    assert "HTTPMode" == ray_job()["submissionMode"]
    own, operator = single(render(), "NetworkPolicy", NAME)["spec"]["ingress"]
    assert test_kubernetes_training.NAME in str(own)
    assert {"namespaceSelector", "podSelector"} == operator["from"][0].keys()
    ports = {port["name"]: port["containerPort"] for port in container("head")["ports"]}
    assert [{"port": ports["dashboard"], "protocol": "TCP"}] == operator["ports"]


@rendered
def test_programs_and_recipe_are_mounted() -> None:
    """By the names of their ConfigMaps, which end with a hash."""
    for name, volume, key in (("head", "start", "start.py"), ("workers", "recipe", "recipe.toml")):
        (found,) = [each for each in pod(name)["volumes"] if each["name"] == volume]
        content = single(render(), "ConfigMap", f"{NAME}-{volume}")
        assert content["metadata"]["name"] == found["configMap"]["name"] != f"{NAME}-{volume}"
        assert [key] == list(content["data"])
        assert f"/{volume}" in [mount["mountPath"] for mount in container(name)["volumeMounts"]]


@rendered
def test_the_version_of_ray_is_the_images() -> None:
    """KubeRay chooses its probes by it."""
    (install,) = [run for run in STAGES["build-training-ray"].all("RUN") if "ray[default]==" in run]
    version = ray_job()["rayClusterSpec"]["rayVersion"]
    assert f'"ray[default]=={version}"' in install
    for name in ("head", "workers"):
        assert "anyclass-training-ray:0.1.0" == container(name)["image"]


FAKE = '''
"""As much of Ray as the program uses; tasks run one after the other, in this process."""
import sys

class Place:
    def __init__(self, pods, index): self.index = index

class Remote:
    def __init__(self, function): self.function = function
    def options(self, **options): return Bound(self.function, options)

class Bound:
    def __init__(self, function, options): self.function, self.all = function, options
    def remote(self, *arguments):
        place = self.all["scheduling_strategy"].index
        print("task", self.function.__name__, place, self.all.get("num_gpus"), flush=True)
        return self.function(*arguments)

class Group:
    def __init__(self, bundles, strategy): print("pods", bundles, strategy, flush=True)
    def ready(self): return None

def init(): print("init", flush=True)
def remote(function): return Remote(function)
def get(result): return result
def wait(results): return results[:1], results[1:]
'''
MODULES = {
    "ray/__init__.py": FAKE,
    "ray/util/__init__.py": "def get_node_ip_address(): return '10.0.0.7'\n",
    "torch/__init__.py": "",
    "torch/distributed/__init__.py": "",
    "ray/util/placement_group.py": "from ray import Group as placement_group\n",
    "ray/util/scheduling_strategies.py": "from ray import Place as PlacementGroupSchedulingStrategy\n",
}


def start(folder: Path, arguments: list[str], *, code: int = 0) -> tuple[int, list[str]]:
    """Run the program with a Ray of our own, and with a torchrun that ends with `code`; return its code and lines."""
    for name, text in MODULES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    (folder / "torch/distributed/run.py").write_text(
        f"import sys\nprint('torchrun', *sys.argv[1:], flush=True)\nsys.exit({code})\n", "utf-8"
    )
    done = subprocess.run(
        [sys.executable, START, *arguments],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "" == done.stderr
    return done.returncode, done.stdout.splitlines()


def entry_point() -> list[str]:
    """Return the arguments of the program in the RayJob."""
    python, program, *arguments = shlex.split(ray_job()["entrypoint"])
    assert ["python", "/start/start.py"] == [python, program]
    return arguments


@rendered
def test_torchrun_starts_once_on_each_machine(tmp_path: Path) -> None:
    """Each has all GPUs of its pod and the address of the first; the recipe's batch can be divided."""
    code, lines = start(tmp_path, entry_point())

    assert 0 == code
    gpus = container("workers")["resources"]["limits"]["nvidia.com/gpu"]
    machines = group("workers")["replicas"]
    assert f"pods {[{'CPU': 1, 'GPU': gpus}] * machines} STRICT_SPREAD" in lines
    assert [f"task torchrun {machine} {gpus}" for machine in range(machines)] == [
        line for line in lines if line.startswith("task torchrun")
    ]
    first, *others = [line for line in lines if line.startswith("torchrun ")]
    assert [first] * (machines - 1) == others
    options = get_args_parser().parse_args(shlex.split(first)[1:])
    assert (str(machines), str(gpus)) == (options.nnodes, options.nproc_per_node)
    assert ("c10d", "10.0.0.7:29400") == (options.rdzv_backend, options.rdzv_endpoint)
    recipe = read_recipe(ROOT / "k8s/training/recipe.toml")
    Ranks(0, machines * gpus).part(recipe.optim.batch_size)


@rendered
def test_the_command_is_that_of_the_job(tmp_path: Path) -> None:
    """Torchrun gets the options of the Job, and a further try goes on from the newest checkpoint."""
    _, lines = start(tmp_path, entry_point())
    (line, *_) = [line for line in lines if line.startswith("torchrun ")]
    options = vars(get_args_parser().parse_args(shlex.split(line)[1:]))
    of_job = vars(get_args_parser().parse_args(test_kubernetes_training.container()["args"]))
    assert {"rdzv_endpoint"} == {name for name, value in options.items() if value != of_job[name]}
    name, *arguments = options["training_script_args"]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert command.make_context(name, arguments).params["auto_resume"] is True


def test_the_first_failure_ends_the_job(tmp_path: Path) -> None:
    """With the exit code of torchrun; without options of its own the program says which it needs."""
    code, _ = start(tmp_path, ["--machines=2", "--gpus=1", "-m", "model_export"], code=3)
    assert 3 == code
    done = subprocess.run(
        [sys.executable, START],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(r"required: --machines, --gpus", done.stderr)
