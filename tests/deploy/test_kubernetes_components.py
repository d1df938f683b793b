"""The optional components, and the parts of an overlay in docs/deploy.md, rendered together."""

import re
import shutil
import textwrap
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import Settings
from service.state.redis_store import RedisStateStore
from tests.deploy.test_kubernetes import VERSIONS, Document, kustomize, pod, single, why_not_rendered
from tests.support.places import ROOT
from tests.support.redis_server import running_redis

PAGE = (ROOT / "docs/deploy.md").read_text("utf-8")
COMPONENTS = ["bundle-volume", "image-urls", "monitoring", "state"]
VARIANTS = ["cpu", "gpu"]
# A setting of uvicorn, as the page says.
NOT_OURS = {"FORWARDED_ALLOW_IPS"}

pytestmark = pytest.mark.skipif(why_not_rendered() is not None, reason=str(why_not_rendered()))

EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)


def shown() -> tuple[dict[str, Any], list[Document]]:
    """Return the page's parts of an overlay, merged, and its other objects."""
    overlay: dict[str, Any] = {}
    objects = []
    for block in re.findall(r"^ *```yaml\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL):
        piece = yaml.safe_load(textwrap.dedent(block))
        if piece.get("kind", "Kustomization") != "Kustomization":
            objects.append(piece)
            continue
        for key, value in piece.items():
            if isinstance(value, list):
                overlay.setdefault(key, []).extend(value)
            else:
                overlay[key] = value
    # By the page, an alternative to the autoscaler's patch.
    del overlay["replicas"]
    return overlay, objects


@cache
def render(variant: str) -> tuple[Document, ...]:
    """Render an overlay on top of the variant's, with every component and all parts of the page."""
    overlay, objects = shown()
    overlay["resources"] = [f"../{variant}", *(f"{number}.yaml" for number in range(len(objects)))]
    overlay["components"] = [f"../../components/{name}" for name in COMPONENTS]
    merged = [literal for generator in overlay["configMapGenerator"] for literal in generator["literals"]]
    overlay["configMapGenerator"] = [{**overlay["configMapGenerator"][0], "literals": merged}]
    with TemporaryDirectory() as scratch:
        folder = shutil.copytree(ROOT / "k8s", Path(scratch) / "k8s") / "overlays/mine"
        folder.mkdir()
        for number, document in enumerate(objects):
            (folder / f"{number}.yaml").write_text(yaml.safe_dump(document))
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        return kustomize(folder)


def one(variant: str, kind: str, name: str) -> Document:
    """Return a document of a variant; see `single`."""
    return single(render(variant), kind, name)


def container(variant: str, kind: str, name: str) -> Document:
    """Return the only container of a Deployment's or StatefulSet's pods."""
    (found,) = one(variant, kind, name)["spec"]["template"]["spec"]["containers"]
    result: Document = found
    return result


@EVERY_VARIANT
@pytest.mark.parametrize("version", VERSIONS)
def test_everything_together_is_valid(variant: str, version: str) -> None:
    """Everything is in one namespace; the types of Kubernetes pass strict validation."""
    for document in render(variant):
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "anyclass"
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(document, version, strict=True)


def test_the_overlays_name_every_component() -> None:
    """Comments in each overlay list exactly the existing components."""
    assert COMPONENTS == sorted(path.name for path in (ROOT / "k8s/components").iterdir())
    for variant in VARIANTS:
        text = (ROOT / "k8s/overlays" / variant / "kustomization.yaml").read_text()
        assert set(COMPONENTS) == set(re.findall(r"^#   - \.\./\.\./components/(\S+)$", text, re.MULTILINE))


@EVERY_VARIANT
def test_every_variable_is_a_setting(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service would start with the settings of the components and the page."""
    values: dict[str, str] = one(variant, "ConfigMap", "anyclass-settings")["data"]
    main = container(variant, "Deployment", "anyclass")
    values = values | {entry["name"]: "x" for entry in main["env"]}
    known = {f"ANYCLASS_{name.upper()}" for name in Settings.model_fields}
    assert values.keys() - NOT_OURS <= known
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.allow_image_urls
    assert settings.state_url is not None
    assert "redis://anyclass-state:6379/0" == settings.state_url.get_secret_value()
    mounted = {mount["mountPath"] for mount in main["volumeMounts"]}
    assert {"/tmp", "/bundle", "/keys"} <= mounted  # noqa: S108
    assert str(settings.api_keys_file) == "/keys/keys"


@EVERY_VARIANT
def test_the_image_has_its_registry(variant: str) -> None:
    """The page's overlay prefixes the image with the registry."""
    assert container(variant, "Deployment", "anyclass")["image"].startswith("registry.example.com/anyclass:")


@EVERY_VARIANT
def test_network_policies_allow_what_the_pods_use(variant: str) -> None:
    """Name servers, both Redis, an address of the user's, and public addresses for image URLs: a rule for each."""
    first = one(variant, "NetworkPolicy", "anyclass")["spec"]["egress"]
    pods = [
        target["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
        for rule in first
        for target in rule.get("to", [])
        if "podSelector" in target
    ]
    assert ["anyclass-redis", "anyclass-state"] == sorted(pods)
    assert [{"ipBlock": {"cidr": "192.0.2.10/32"}}] in [rule.get("to") for rule in first]
    (web,) = one(variant, "NetworkPolicy", "anyclass-image-urls")["spec"]["egress"]
    assert {80, 443} == {port["port"] for port in web["ports"]}
    (old,) = [target["ipBlock"]["except"] for target in web["to"] if target["ipBlock"]["cidr"] == "0.0.0.0/0"]
    assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(old)
    labels = one(variant, "StatefulSet", "anyclass-state")["spec"]["template"]["metadata"]["labels"]
    assert one(variant, "NetworkPolicy", "anyclass-state")["spec"]["podSelector"]["matchLabels"] == labels
    assert one(variant, "Service", "anyclass-state")["spec"]["selector"] == labels


def test_the_state_is_as_restricted_as_the_cache() -> None:
    """Its pod has the same restrictions and password, and writes only to its claim and to /tmp."""
    spec = one("cpu", "StatefulSet", "anyclass-state")["spec"]["template"]["spec"]
    assert pod("cpu", "anyclass-redis")["securityContext"].items() <= spec["securityContext"].items()
    assert (False, False) == (spec["automountServiceAccountToken"], spec["enableServiceLinks"])
    main, cache_of_texts = (
        container("cpu", "StatefulSet", "anyclass-state"),
        pod("cpu", "anyclass-redis")["containers"][0],
    )
    for key in ("image", "securityContext", "env"):
        assert cache_of_texts[key] == main[key], key
    assert {"/data", "/tmp"} == {mount["mountPath"] for mount in main["volumeMounts"] if not mount.get("readOnly")}  # noqa: S108
    secrets = {
        entry["name"]: entry["valueFrom"]["secretKeyRef"]
        for entry in container("cpu", "Deployment", "anyclass")["env"] + main["env"]
    }
    assert (
        {"name": "anyclass-redis", "key": "password"} == secrets["ANYCLASS_STATE_PASSWORD"] == secrets["REDISCLI_AUTH"]
    )


async def test_the_state_redis_takes_its_configuration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A real Redis accepts it, the service has no objection, and files fill at most half of the memory."""
    config = one("cpu", "ConfigMap", "anyclass-state-config")["data"]["redis.conf"]
    directives = [line.split(maxsplit=1) for line in config.splitlines() if line and not line.startswith("#")]
    given = {name: value for name, value in directives if name not in {"port", "bind", "dir"}}
    assert {"appendonly": "yes", "maxmemory-policy": "noeviction"}.items() <= given.items()
    arguments = [word for name, value in given.items() for word in (f"--{name}", value.strip('"'))]
    with running_redis(tmp_path, password="secret", arguments=arguments) as redis:
        maximum = int(redis.command("CONFIG", "GET", "maxmemory").split(b"\r\n")[-2])
        store = RedisStateStore(redis.url)
        await store.check()
        await store.close()
    assert [] == caplog.records
    files = int(one("cpu", "ConfigMap", "anyclass-settings")["data"]["ANYCLASS_MAX_TOTAL_FILE_BYTES"])
    assert 2 * files < maximum
    limit = container("cpu", "StatefulSet", "anyclass-state")["resources"]["limits"]["memory"]
    assert maximum < int(limit.removesuffix("Gi")) * 2**30
