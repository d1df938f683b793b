"""The files of the dashboard, the runbook and the Kubernetes component, without a running service."""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.monitoring.metrics import Metrics
from tests.deploy.test_kubernetes import why_not_rendered
from tests.support.monitoring import DASHBOARD, PAGE, alert_rules, alerts, expressions, panels
from tests.support.places import ROOT

ROWS = [
    "At a glance",
    "Traffic",
    "Latency",
    "Batching",
    "Text cache and Redis",
    "GPU and engine",
    "Jobs and label sets",
]

needs_kubectl = pytest.mark.skipif(why_not_rendered() is not None, reason=str(why_not_rendered()))


def test_each_alert_has_its_runbook() -> None:
    """Each has summary, description, and a section of the page that begins with the alert's severity."""
    headings = dict(re.findall(r"^### (Anyclass\w+)\n\n\*\*(\w+)\.\*\* ", PAGE, re.MULTILINE))
    assert headings == {rule["alert"]: rule["labels"]["severity"] for rule in alerts()}
    assert {"critical", "warning"} == set(headings.values())
    for rule in alerts():
        assert {"summary", "description", "runbook_url"} == rule["annotations"].keys()
        assert len(rule["annotations"]["description"]) > 60
        assert f"docs/monitoring.md#{rule['alert'].lower()}" == rule["annotations"]["runbook_url"]


def test_the_dashboard_is_well_formed() -> None:
    """Panels have what Grafana needs, in a grid of 24 columns without gaps or overlaps."""
    assert ROWS == [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert ["datasource", "model", "pod"] == [each["name"] for each in DASHBOARD["templating"]["list"]]
    assert ["datasource", "query", "query"] == [each["type"] for each in DASHBOARD["templating"]["list"]]
    assert [] == [item for item, times in Counter(panel["id"] for panel in DASHBOARD["panels"]).items() if times > 1]
    titles = Counter(panel["title"] for panel in DASHBOARD["panels"])
    assert [] == [title for title, times in titles.items() if times > 1]
    taken: Counter[tuple[int, int]] = Counter()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        taken.update(
            (column, line)
            for column in range(place["x"], place["x"] + place["w"])
            for line in range(place["y"], place["y"] + place["h"])
        )
    height = max(line for _, line in taken) + 1
    assert taken == dict.fromkeys(((column, line) for column in range(24) for line in range(height)), 1)
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert len(panel["description"]) > 10, panel["title"]
        assert all(source == each["datasource"] for each in (panel, *panel["targets"])), panel["title"]
        assert len(panel["targets"]) == len({target["refId"] for target in panel["targets"]})
        assert {"defaults", "overrides"} == panel["fieldConfig"].keys()
        assert "unit" in {**panel["fieldConfig"]["defaults"], **panel["options"].get("yAxis", {})}, panel["title"]


def test_the_dashboard_leaves_no_metric_out() -> None:
    """Every metric is shown, for the selected models and pods."""
    asked = " ".join(
        [expression for _, expression, _ in expressions()] + re.findall(r"label_values\(\w+", str(DASHBOARD))
    )
    measured = {metric.name for metric in Metrics().registry.collect()}
    assert set() == {name for name in measured if not re.search(rf"\b{name}(_total|_bucket|_sum|_count)?\b", asked)}
    for panel in panels():
        for target in panel["targets"]:
            selectors = re.findall(
                r"\b(?:anyclass|process)_\w+(\{[^}]*\})?", target["expr"].replace("anyclass_build_info", "")
            )
            assert all('pod=~"$pod"' in selector for selector in selectors), panel["title"]


@cache
def render() -> tuple[dict[str, Any], ...]:
    """Render the CPU overlay with the component, as `kubectl apply -k` does."""
    folder = ROOT / "build/k8s-test-monitoring"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "k8s", folder)
    overlay = folder / "overlays/monitored"
    overlay.mkdir()
    shown = {"resources": ["../cpu"], "components": ["../../components/monitoring"]}
    overlay.joinpath("kustomization.yaml").write_text(yaml.safe_dump(shown))
    done = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def one(kind: str, name: str) -> Mapping[str, Any]:
    """Return the document of this kind and name."""
    (found,) = [each for each in render() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@needs_kubectl
def test_the_component_adds_scraping_alerts_and_the_dashboard() -> None:
    """Everything is in one namespace, valid, and small enough for `kubectl apply`."""
    documents = render()
    assert {"anyclass"} == {each["metadata"]["namespace"] for each in documents if each["kind"] != "Namespace"}
    for document in documents:
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        # kubectl writes it into an annotation of at most 256 KiB.
        assert len(json.dumps(document)) < 250_000, document["metadata"]["name"]
    assert yaml.safe_load(alert_rules()) == one("PrometheusRule", "anyclass")["spec"]
    board = one("ConfigMap", "anyclass-dashboard")
    assert DASHBOARD == json.loads(board["data"]["dashboard.json"])
    assert "1" == board["metadata"]["labels"]["grafana_dashboard"]


@needs_kubectl
def test_every_pod_is_scraped_once_at_its_own_port() -> None:
    """The monitor selects the pods and names their port; no annotation makes anything else scrape them."""
    template = one("Deployment", "anyclass")["spec"]["template"]
    monitor = one("PodMonitor", "anyclass")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert "/metrics" == endpoint["path"]
    assert "prometheus.io/scrape" not in template["metadata"]["annotations"]


@needs_kubectl
def test_the_base_needs_no_operator() -> None:
    """No overlay has objects of the operator without the component; a comment in each names it."""
    for path in (ROOT / "k8s/overlays").iterdir():
        done = subprocess.run(["kubectl", "kustomize", path], capture_output=True, text=True, check=True)
        assert "monitoring.coreos.com" not in done.stdout
        (named,) = re.findall(r"^#   - (\S+monitoring)$", (path / "kustomization.yaml").read_text(), re.MULTILINE)
        assert (path / named / "kustomization.yaml").exists()


def test_the_page_has_a_provisioning_for_grafana() -> None:
    """Its block names a folder."""
    (block,) = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "providers" in text]
    (provider,) = yaml.safe_load(block)["providers"]
    assert {"name", "options"} == provider.keys()
    assert provider["options"]["path"].startswith("/")
