"""The Kubernetes manifests, rendered as `kubectl apply -k` renders them."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.api.request.archive import MAX_ARCHIVES_IN_WORK
from service.settings import Settings
from tests.deploy.test_dockerfile import environment, final
from tests.support.places import ROOT

OVERLAYS = ["cpu", "gpu", "cpu-with-bundle-volume", "gpu-with-bundle-volume"]
# The oldest Kubernetes with the native preStop sleep, and the newest that the validator knows.
VERSIONS = ["1.30.0", kubernetes_validate.latest_version()]
Document = dict[str, Any]


def why_not_rendered() -> str | None:
    """Return the reason why this machine cannot render, or None."""
    if shutil.which("kubectl") is None:
        return "kubectl is not installed"
    shown = subprocess.run(
        ["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True, check=False
    ).stdout
    version = re.match(r"v(\d+)", json.loads(shown or "{}").get("kustomizeVersion", ""))
    if version is None or int(version[1]) < 5:
        return "this kubectl has a kustomize older than 5"
    return None


pytestmark = pytest.mark.skipif(why_not_rendered() is not None, reason=str(why_not_rendered()))


@cache
def render(overlay: str) -> tuple[Document, ...]:
    """Return the documents of an overlay; `…-with-bundle-volume` adds the component as its comment says."""
    if not overlay.endswith("-with-bundle-volume"):
        return kustomize(ROOT / "k8s/overlays" / overlay)
    with TemporaryDirectory() as scratch:
        copy = shutil.copytree(ROOT / "k8s", Path(scratch) / "k8s")
        path = copy / "overlays" / overlay[:3] / "kustomization.yaml"
        text = path.read_text()
        assert "# components:\n#   - " in text
        path.write_text(text.replace("# components:\n#   - ", "components:\n  - "))
        return kustomize(path.parent)


def kustomize(folder: Path) -> tuple[Document, ...]:
    """Return the documents that `kubectl apply -k` would apply."""
    result = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return tuple(yaml.safe_load_all(result.stdout))


def one(overlay: str, kind: str, name: str) -> Document:
    """Return a document of an overlay; see `single`."""
    return single(render(overlay), kind, name)


def single(documents: Iterable[Document], kind: str, name: str) -> Document:
    """Return the only document of this kind and name; a generated name ends with a hash."""
    (found,) = [
        document
        for document in documents
        if document["kind"] == kind and re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", document["metadata"]["name"])
    ]
    return found


def pod(overlay: str, name: str) -> Document:
    """Return the pod specification of a Deployment."""
    spec: Document = one(overlay, "Deployment", name)["spec"]["template"]["spec"]
    return spec


def container(overlay: str, name: str) -> Document:
    """Return the only container of a Deployment's pods."""
    (found,) = pod(overlay, name)["containers"]
    result: Document = found
    return result


EVERY_OVERLAY = pytest.mark.parametrize("overlay", OVERLAYS)
EVERY_POD = pytest.mark.parametrize("name", ["anyclass", "anyclass-redis"])


@EVERY_OVERLAY
@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_valid(overlay: str, version: str) -> None:
    """Strict validation accepts only fields that Kubernetes knows."""
    for document in render(overlay):
        kubernetes_validate.validate(document, version, strict=True)


@EVERY_OVERLAY
def test_everything_is_in_one_restricted_namespace(overlay: str) -> None:
    """The namespace enforces the restricted profile, and contains everything else."""
    namespace = one(overlay, "Namespace", "anyclass")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [document for document in render(overlay) if document["kind"] != "Namespace"]
    assert {"anyclass"} == {document["metadata"]["namespace"] for document in others}


@EVERY_OVERLAY
@EVERY_POD
def test_pods_are_restricted(overlay: str, name: str) -> None:
    """The "restricted" profile holds, and more: read-only root, no token, no variables of other Services."""
    spec, main = pod(overlay, name), container(overlay, name)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "initContainers" not in spec
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert main["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    engines = {"/engines"} if (overlay[:3], name) == ("gpu", "anyclass") else set()
    assert {"/tmp", *engines} == {m["mountPath"] for m in main["volumeMounts"] if not m.get("readOnly")}  # noqa: S108
    # Writable volumes belong to the pod and are limited.
    writable = {m["name"] for m in main["volumeMounts"] if not m.get("readOnly")}
    assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"] if volume["name"] in writable)


@EVERY_OVERLAY
@EVERY_POD
def test_pods_are_bounded_and_watched(overlay: str, name: str) -> None:
    """They have requests, a memory limit, all three probes, and an image of a named version."""
    main = container(overlay, name)
    assert {"cpu", "memory"} <= main["resources"]["requests"].keys()
    assert "memory" in main["resources"]["limits"]
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= main.keys()
    tag = main["image"].rpartition(":")[2]
    assert re.search(r"\d", tag)
    assert "latest" not in tag


@EVERY_OVERLAY
def test_threads_match_the_requested_cpus(overlay: str) -> None:
    """The requested CPUs are for inference on CPUs, for decoding beside a GPU."""
    works = "ANYCLASS_THREADS" if overlay.startswith("cpu") else "ANYCLASS_DECODE_THREADS"
    assert container(overlay, "anyclass")["resources"]["requests"]["cpu"] == settings_map(overlay)[works]


@EVERY_OVERLAY
def test_probes_use_the_right_paths(overlay: str) -> None:
    """Liveness never depends on readiness; the start waits for a warm model."""
    main = container(overlay, "anyclass")
    paths = {probe: main[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {"startupProbe": "/readyz", "livenessProbe": "/livez", "readinessProbe": "/readyz"} == paths


@pytest.mark.parametrize(
    ("overlay", "seconds"),
    [("cpu", 60), ("cpu-with-bundle-volume", 300), ("gpu", 900), ("gpu-with-bundle-volume", 900)],
)
def test_a_start_has_the_time_that_it_may_need(overlay: str, seconds: int) -> None:
    """A large bundle or engine builds get more time; a rollout has at least as much."""
    probe = container(overlay, "anyclass")["startupProbe"]
    assert seconds == probe["failureThreshold"] * probe["periodSeconds"]
    # Kubernetes' default is 600 s.
    assert one(overlay, "Deployment", "anyclass")["spec"].get("progressDeadlineSeconds", 600) > seconds


@pytest.mark.parametrize("overlay", ["gpu", "gpu-with-bundle-volume"])
def test_engines_are_kept_on_a_volume(overlay: str) -> None:
    """The root is read-only: without a volume TensorRT could not keep its engines."""
    folder = settings_map(overlay)["ANYCLASS_ENGINE_CACHE"]
    assert folder in {mount["mountPath"] for mount in container(overlay, "anyclass")["volumeMounts"]}


@EVERY_OVERLAY
def test_the_grace_period_covers_the_drain(overlay: str) -> None:
    """The pod is killed only after the delay before SIGTERM and the service's drain timeout."""
    delay = container(overlay, "anyclass")["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(settings_map(overlay)["ANYCLASS_DRAIN_TIMEOUT_S"])
    assert delay >= 5
    assert pod(overlay, "anyclass")["terminationGracePeriodSeconds"] >= delay + drain + 5


@EVERY_OVERLAY
def test_archives_fit_into_the_temporary_files(overlay: str) -> None:
    """As many archives as there may be at once, with room to spare: a pod that takes more is evicted."""
    (limit,) = [
        volume["emptyDir"]["sizeLimit"] for volume in pod(overlay, "anyclass")["volumes"] if volume["name"] == "tmp"
    ]
    mebibytes = int(limit.removesuffix("Mi"))
    assert mebibytes * 2**20 > MAX_ARCHIVES_IN_WORK * int(settings_map(overlay)["ANYCLASS_MAX_ARCHIVE_BYTES"])


def settings_map(overlay: str) -> dict[str, str]:
    """Return the data of the ConfigMap for the container's environment."""
    main = container(overlay, "anyclass")
    (source,) = main["envFrom"]
    config = one(overlay, "ConfigMap", "anyclass-settings")
    assert config["metadata"]["name"] == source["configMapRef"]["name"]
    data: dict[str, str] = config["data"]
    return data


@EVERY_OVERLAY
def test_every_variable_is_a_setting(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service starts with these variables: each names a setting and has a valid value."""
    values = settings_map(overlay) | {entry["name"]: "x" for entry in container(overlay, "anyclass")["env"]}
    known = {f"ANYCLASS_{name.upper()}" for name in Settings.model_fields}
    assert values.keys() <= known
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.host == "0.0.0.0"
    assert settings.provider == ("cpu" if overlay.startswith("cpu") else "cuda")
    assert str(settings.model) == ("/bundle" if overlay.endswith("volume") else "None")


@EVERY_OVERLAY
def test_ports_meet(overlay: str) -> None:
    """Setting, container port, Service, image and Redis address use the same ports."""
    values = settings_map(overlay)
    for name, port in (("anyclass", int(values["ANYCLASS_PORT"])), ("anyclass-redis", 6379)):
        (exposed,) = container(overlay, name)["ports"]
        (served,) = one(overlay, "Service", name)["spec"]["ports"]
        assert port == exposed["containerPort"]
        assert served["targetPort"] == exposed["name"]
        assert one(overlay, "Service", name)["spec"]["selector"].items() <= (
            one(overlay, "Deployment", name)["spec"]["template"]["metadata"]["labels"].items()
        )
    assert values["ANYCLASS_REDIS_URL"].startswith("redis://anyclass-redis:6379")
    assert [values["ANYCLASS_PORT"]] == final(overlay[:3], "EXPOSE")


@EVERY_OVERLAY
def test_redis_forgets_and_asks_for_a_password(overlay: str) -> None:
    """It is a cache: below its memory limit, evicting, without persistence; the password is in the Secret."""
    config = one(overlay, "ConfigMap", "anyclass-redis-config")["data"]["redis.conf"]
    for line in ("maxmemory 256mb", "maxmemory-policy allkeys-lru", 'save ""', "appendonly no"):
        assert f"{line}\n" in config
    assert container(overlay, "anyclass-redis")["resources"]["limits"]["memory"] == "384Mi"
    main = container(overlay, "anyclass-redis")
    assert "requirepass" in main["args"][0]
    for user in (main, container(overlay, "anyclass")):
        (reference,) = [entry["valueFrom"]["secretKeyRef"] for entry in user["env"]]
        assert reference == {"name": "anyclass-redis", "key": "password"}


@EVERY_OVERLAY
def test_no_secret_is_committed(overlay: str) -> None:
    """Secrets are created in the cluster, never rendered from the repository."""
    assert "Secret" not in {document["kind"] for document in render(overlay)}


@EVERY_OVERLAY
def test_image_and_pod_agree(overlay: str) -> None:
    """The pod's user is the image's, and the image is the overlay's target."""
    target = overlay[:3]
    user, group = final(target, "USER")[-1].split(":")
    context = pod(overlay, "anyclass")["securityContext"]
    assert (int(user), int(group)) == (context["runAsUser"], context["runAsGroup"])
    assert container(overlay, "anyclass")["image"].endswith(f"-{target}")
    if target == "gpu":
        assert environment(target)["ANYCLASS_PROVIDER"] == settings_map(overlay)["ANYCLASS_PROVIDER"]


@pytest.mark.parametrize("overlay", [overlay for overlay in OVERLAYS if overlay.startswith("gpu")])
def test_gpu_pods_get_one_gpu(overlay: str) -> None:
    """Each pod gets one GPU, tolerates the taint of GPU nodes, and a rollout needs no spare GPU."""
    spec = pod(overlay, "anyclass")
    assert container(overlay, "anyclass")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" in {toleration["key"] for toleration in spec["tolerations"]}
    assert one(overlay, "Deployment", "anyclass")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0


def test_bundle_volume_is_read_only() -> None:
    """A bundle from a volume can be served and not changed."""
    overlay = "gpu-with-bundle-volume"
    (mount,) = [m for m in container(overlay, "anyclass")["volumeMounts"] if m["name"] == "bundle"]
    assert mount == {"name": "bundle", "mountPath": "/bundle", "readOnly": True}
