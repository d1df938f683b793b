"""The manifests of a training on several machines."""

import tomllib
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest
import typer
from torch.distributed.run import get_args_parser

from model_export.cli import app
from model_export.training.ranks import Ranks
from model_export.training.recipe import read_recipe
from tests.deploy.test_kubernetes import VERSIONS, Document, kustomize, single, why_not_rendered
from tests.support.places import ROOT

NAME = "anyclass-training"

pytestmark = pytest.mark.skipif(why_not_rendered() is not None, reason=str(why_not_rendered()))


@cache
def render() -> tuple[Document, ...]:
    """Render the manifests."""
    return kustomize(ROOT / "k8s/training")


def job() -> Document:
    """Return the job's specification."""
    spec: Document = single(render(), "Job", NAME)["spec"]
    return spec


def pod() -> Document:
    """Return the specification of its pods."""
    spec: Document = job()["template"]["spec"]
    return spec


def container() -> Document:
    """Return their only container."""
    (found,) = pod()["containers"]
    result: Document = found
    return result


@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_valid(version: str) -> None:
    """Strict validation accepts only fields that Kubernetes knows."""
    for document in render():
        kubernetes_validate.validate(document, version, strict=True)


def test_pods_are_restricted() -> None:
    """As those of the service are; all objects are in a namespace that enforces it."""
    labels = single(render(), "Namespace", NAME)["metadata"]["labels"]
    assert "restricted" == labels["pod-security.kubernetes.io/enforce"]
    others = [document for document in render() if document["kind"] != "Namespace"]
    assert {NAME} == {document["metadata"]["namespace"] for document in others}
    assert pod()["automountServiceAccountToken"] is False
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert {"type": "RuntimeDefault"} == pod()["securityContext"]["seccompProfile"]
    context = container()["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert {"drop": ["ALL"]} == context["capabilities"]


def test_torchrun_starts_one_process_for_each_gpu_of_each_pod() -> None:
    """The numbers of pods, machines and GPUs agree, and the recipe's batch can be divided."""
    assert ["torchrun"] == container()["command"]
    options = get_args_parser().parse_args(container()["args"])
    assert "Indexed" == job()["completionMode"]
    assert int(options.nnodes) == job()["completions"] == job()["parallelism"]
    assert int(options.nproc_per_node) == container()["resources"]["limits"]["nvidia.com/gpu"]
    recipe = read_recipe(ROOT / "k8s/training/recipe.toml")
    Ranks(0, int(options.nnodes) * int(options.nproc_per_node)).part(recipe.optim.batch_size)


def test_the_first_pod_is_found_by_its_name() -> None:
    """A headless Service gives the pods of the job their names, ready or not."""
    options = get_args_parser().parse_args(container()["args"])
    service = single(render(), "Service", NAME)
    assert "None" == service["spec"]["clusterIP"]
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= job()["template"]["metadata"]["labels"].items()
    assert pod()["subdomain"] == service["metadata"]["name"]
    assert f"{NAME}-0.{NAME}:29400" == options.rdzv_endpoint


def test_the_command_is_one_of_ours() -> None:
    """Its options are known, its recipe is mounted, and a pod that is started again resumes."""
    options = get_args_parser().parse_args(container()["args"])
    assert options.module
    assert "model_export" == options.training_script
    name, *arguments = options.training_script_args
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    values = command.make_context(name, arguments).params
    mounts = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    assert Path("/recipe/recipe.toml") == values["recipe"]
    assert values["auto_resume"] is True
    assert "volume" == mounts[str(values["out"].parents[1])] == mounts[str(values["data"].parent)]
    (volume,) = [volume for volume in pod()["volumes"] if volume["name"] == mounts["/recipe"]]
    (content,) = single(render(), "ConfigMap", f"{NAME}-recipe")["data"].items()
    assert volume["configMap"]["name"] == single(render(), "ConfigMap", f"{NAME}-recipe")["metadata"]["name"]
    assert "recipe.toml" == content[0]
    assert tomllib.loads(content[1])["name"]
