"""The manifests of a curation, and of vectors, as RayJobs; neither a cluster nor Ray is needed."""

import json
import shlex
import tomllib
from functools import cache

import jsonschema_rs
import kubernetes_validate
import pytest
import typer

from model_export.cli import app
from model_export.curation.recipe import Recipe
from tests.deploy import test_kubernetes_training
from tests.deploy.test_dockerfile import STAGES
from tests.deploy.test_kubernetes import VERSIONS, Document, kustomize, single, why_not_rendered
from tests.support.places import ROOT

JOBS = {"curation-ray": "anyclass-curation", "embedding-ray": "anyclass-embedding"}
LABEL = {"app.kubernetes.io/name": "anyclass-curation"}

pytestmark = pytest.mark.skipif(why_not_rendered() is not None, reason=str(why_not_rendered()))
FOLDERS = pytest.mark.parametrize("folder", JOBS)


@cache
def render(folder: str) -> tuple[Document, ...]:
    """Render the manifests of a folder."""
    return kustomize(ROOT / "k8s" / folder)


def ray_job(folder: str) -> Document:
    """Return the specification of a folder's RayJob."""
    spec: Document = single(render(folder), "RayJob", JOBS[folder])["spec"]
    return spec


def groups(folder: str) -> tuple[Document, Document]:
    """Return the head, and the only group of workers."""
    cluster = ray_job(folder)["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    return cluster["headGroupSpec"], workers


def container(group: Document) -> Document:
    """Return the only container of a group's pods."""
    (found,) = group["template"]["spec"]["containers"]
    result: Document = found
    return result


@FOLDERS
@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_valid(folder: str, version: str) -> None:
    """Strictly: by Kubernetes' schemas, those of pods included, and by KubeRay's for the RayJob's own fields."""
    kinds = set()
    for document in render(folder):
        kinds.add(document["kind"])
        if document["kind"] != "RayJob":
            kubernetes_validate.validate(document, version, strict=True)
    assert {"Namespace", "ConfigMap", "PersistentVolumeClaim", "NetworkPolicy", "RayJob"} == kinds
    for group in groups(folder):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": group["template"]}
        kubernetes_validate.validate(template, version, strict=True)
    schema = json.loads((ROOT / "tests/deploy/ray_job_spec.json").read_text("utf-8"))
    validator = jsonschema_rs.validator_for(schema)
    assert [] == [str(error) for error in validator.iter_errors(ray_job(folder))]
    assert not validator.is_valid({**ray_job(folder), "shutDownAfterJobFinishes": True})


@FOLDERS
def test_pods_are_restricted(folder: str) -> None:
    """As those of the training; only the head, beside which the autoscaler runs, has an account."""
    training = test_kubernetes_training
    head, workers = groups(folder)
    for group in (head, workers):
        spec = group["template"]["spec"]
        assert training.container()["securityContext"] == container(group)["securityContext"]
        assert training.pod()["securityContext"].items() <= spec["securityContext"].items()
        assert LABEL.items() <= group["template"]["metadata"]["labels"].items()
    assert workers["template"]["spec"]["automountServiceAccountToken"] is False
    autoscaler = ray_job(folder)["rayClusterSpec"]["autoscalerOptions"]["securityContext"]
    assert training.container()["securityContext"] == autoscaler
    for name in ("anyclass-curation", "anyclass-curation-head"):
        policy = single(render(folder), "NetworkPolicy", name)["spec"]
        chosen = policy["podSelector"]["matchLabels"]
        assert chosen.items() <= head["template"]["metadata"]["labels"].items()
        assert (chosen.items() <= workers["template"]["metadata"]["labels"].items()) == (name == "anyclass-curation")


@FOLDERS
def test_the_autoscaler_can_reach_the_commands_workers(folder: str) -> None:
    """As many as the CPUs of the largest cluster; the head runs no task."""
    head, workers = groups(folder)
    cpus = int(workers["rayStartParams"]["num-cpus"])
    assert cpus == int(container(workers)["resources"]["requests"]["cpu"])
    assert f"--workers={workers['maxReplicas'] * cpus}" in ray_job(folder)["entrypoint"].split()
    assert workers["minReplicas"] == workers["replicas"] < workers["maxReplicas"]
    assert "0" == head["rayStartParams"]["num-cpus"]
    assert ray_job(folder)["rayClusterSpec"]["enableInTreeAutoscaling"] is True


@FOLDERS
def test_every_pod_sees_the_volume(folder: str) -> None:
    """Under the same path, which the command's folders begin with; it allows writers on several nodes."""
    claim = single(render(folder), "PersistentVolumeClaim", "anyclass-curation")
    assert ["ReadWriteMany"] == claim["spec"]["accessModes"]
    for group in groups(folder):
        (volume,) = [each for each in group["template"]["spec"]["volumes"] if each["name"] == "volume"]
        assert "anyclass-curation" == volume["persistentVolumeClaim"]["claimName"]
        assert {"name": "volume", "mountPath": "/volume"} in container(group)["volumeMounts"]
    assert "--out=/volume/" in ray_job(folder)["entrypoint"]


@FOLDERS
def test_the_version_of_ray_is_the_images(folder: str) -> None:
    """KubeRay chooses its probes by it."""
    (install,) = [run for run in STAGES["build-curation-ray"].all("RUN") if "ray[default]==" in run]
    assert f'"ray[default]=={ray_job(folder)["rayClusterSpec"]["rayVersion"]}"' in install
    for group in groups(folder):
        assert "anyclass-curation-ray:0.1.0" == container(group)["image"]


def test_the_command_is_one_of_ours() -> None:
    """Its options are known, and its recipe is the mounted one, which is right."""
    program, curate, run, *arguments = shlex.split(ray_job("curation-ray")["entrypoint"])
    assert ["anyclass-export", "curate", "run"] == [program, curate, run]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = commands[curate].commands[run].make_context(run, arguments).params
    assert ("ray", 256, "/recipe/recipe.toml") == (found["driver"], found["workers"], str(found["recipe"]))
    head, _ = groups("curation-ray")
    (volume,) = [each for each in head["template"]["spec"]["volumes"] if each["name"] == "recipe"]
    content = single(render("curation-ray"), "ConfigMap", "anyclass-curation-recipe")
    assert content["metadata"]["name"] == volume["configMap"]["name"] != "anyclass-curation-recipe"
    Recipe.model_validate(tomllib.loads(content["data"]["recipe.toml"]))


def test_vectors_take_the_curated_pairs() -> None:
    """From the folder that the curation writes."""
    assert shlex.split(ray_job("embedding-ray")["entrypoint"])[:3] == ["anyclass-export", "embed", "/volume/curated"]
    assert "--out=/volume/curated" in ray_job("curation-ray")["entrypoint"]
