"""Dashboard and alerts: every question in them is asked of a real Prometheus that scrapes the real service."""

import base64
import json
import math
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml

from service.metrics import Metrics
from tests.deploy.test_kubernetes import why_not_rendered
from tests.support.classifying import picture
from tests.support.http_server import HttpServer, http_server
from tests.support.prometheus import Prometheus, running_prometheus, why_no_prometheus
from tests.support.redis_server import RedisServer, running_redis
from tests.support.tiny_bundle import write_tiny_bundle

ROOT = Path(__file__).resolve().parents[2]
COMPONENT = ROOT / "k8s/components/monitoring"
DASHBOARD: dict[str, Any] = json.loads((COMPONENT / "dashboard.json").read_text("utf-8"))
PAGE = (ROOT / "docs/monitoring.md").read_text("utf-8")
UNIT_TESTS = ROOT / "tests/deploy/alerts.test.yaml"
ROWS = [
    "At a glance",
    "Traffic",
    "Latency",
    "Batching",
    "Text cache and Redis",
    "GPU and engine",
    "Jobs and label sets",
]

KEY, GREEDY = "a-key-of-twenty-chars", "another-key-of-twenty"
MARK = "xyzzy"
RED = base64.b64encode(picture("red")).decode()
PATIENCE_S = 30.0
FREE_LABELS = {"namespace", "pod", "job", "instance", "model", "version", "revision", "provider", "precision"}
"""Labels whose values are of a deployment; all other values in the unit tests must be ones that the service gives."""

needs_prometheus = pytest.mark.skipif(why_no_prometheus() is not None, reason=str(why_no_prometheus()))
needs_kubectl = pytest.mark.skipif(why_not_rendered() is not None, reason=str(why_not_rendered()))


def alert_rules() -> str:
    """What `make alert-rules` prints: a file for Prometheus' own `rule_files`."""
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL"}}
    done = subprocess.run(
        ["make", "-s", "alert-rules"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def alerts() -> list[dict[str, Any]]:
    """All rules."""
    return [rule for group in yaml.safe_load(alert_rules())["groups"] for rule in group["rules"]]


def configuration() -> dict[str, Any]:
    """The configuration of Prometheus that the page shows."""
    (block,) = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "scrape_configs" in text]
    found: dict[str, Any] = yaml.safe_load(block)
    return found


def panels() -> list[dict[str, Any]]:
    """All panels but the titles of rows."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str, str]]:
    """Panel, expression and legend of every question of the dashboard, with everything chosen."""
    chosen = {"$__rate_interval": "1m", '"$model"': '".*"', '"$pod"': '".*"'}
    found = []
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in chosen.items():
                expression = expression.replace(name, value)
            found.append((panel["title"], expression, target["legendFormat"]))
    return found


@dataclass(frozen=True)
class Scraped:
    """A service that has had traffic of every kind, and the Prometheus that has seen it."""

    server: HttpServer
    prometheus: Prometheus


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """Two rounds of traffic, so that what counts has risen."""
    folder = tmp_path_factory.mktemp("monitoring")
    with ExitStack() as stack:
        cache_folder, state_folder = folder / "cache", folder / "state"
        cache_folder.mkdir()
        state_folder.mkdir()
        state = stack.enter_context(running_redis(state_folder))
        env = {
            "ANYCLASS_REDIS_URL": stack.enter_context(running_redis(cache_folder)).url,
            "ANYCLASS_STATE_URL": state.url,
            "ANYCLASS_STATE_TIMEOUT_S": "0.3",
            "ANYCLASS_API_KEYS": f"web:{KEY},greedy:{GREEDY}",
            "ANYCLASS_RATE_LIMIT_PER_S": "40",
            "ANYCLASS_RATE_LIMIT_BURST": "100",
            "ANYCLASS_MAX_BODY_BYTES": "100000",
            "ANYCLASS_ALLOW_IMAGE_URLS": "true",
            "ANYCLASS_LABEL_SET_INLINE_PROMPTS": "0",
        }
        bundle = write_tiny_bundle(folder / "bundle")
        server = stack.enter_context(http_server(bundle, folder, env=env))
        (folder / "anyclass.rules.yaml").write_text(alert_rules())
        shown = configuration()
        shown["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
        shown["scrape_configs"][0]["static_configs"][0]["targets"] = [server.url.removeprefix("http://")]
        prometheus = stack.enter_context(running_prometheus(folder, shown))
        headers = {"authorization": f"Bearer {KEY}"}
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE_S, headers=headers))
        for number in range(2):
            send_of_everything(client, state, number)
            wait_until_seen(prometheus, client)
        yield Scraped(server, prometheus)


def send_of_everything(client: httpx.Client, state: RedisServer, number: int) -> None:
    """Each protocol, each refusal, a job and a label set."""
    file = {"image": ("red.png", picture("red"))}
    labels = json.dumps(["red", "green", f"something {number}"])
    good = [
        client.post("/v1/classify", files=file, data={"labels": labels}),
        client.post("/v1/classify/batch", files=[("image", file["image"])] * 3, data={"labels": labels}),
        client.post("/", json={"inputs": RED, "parameters": {"candidate_labels": ["red", "green"]}}),
        client.post("/v1/embeddings", json={"model": "tiny", "input": ["red", f"text {number}"]}),
        client.post("/v2/models/tiny/infer", json={"inputs": [tensor("image", RED), tensor("text", "red")]}),
        client.get("/v1/models"),
    ]
    assert [200] * len(good) == [answer.status_code for answer in good]
    a_label_set(client, f"set-{number}")
    a_job(client)
    url = {"image": "http://127.0.0.1:9/red.png", "labels": ["red", "green"]}
    bad = [
        client.post("/v1/classify", files=file, data={"labels": labels}, headers={"authorization": "Bearer nobody's"}),
        client.post("/v1/classify", content=b"x" * 100_001, headers={"content-type": "image/png"}),
        client.post("/v1/classify", files={"image": b"no picture"}, data={"labels": labels}),
        client.post("/v1/classify", json=url),
        client.get("/nowhere"),
    ]
    assert [401, 413, 415, 422, 404] == [answer.status_code for answer in bad]
    greedy = {"authorization": f"Bearer {GREEDY}"}
    assert 429 in (client.get("/v1/models", headers=greedy).status_code for _ in range(500))
    state.freeze()
    assert 503 == client.get("/v1/label-sets").status_code
    state.thaw()


def tensor(name: str, value: str) -> dict[str, Any]:
    """An input of the Open Inference Protocol."""
    return {"name": name, "datatype": "BYTES", "shape": [1], "data": [value]}


def a_label_set(client: httpx.Client, name: str) -> None:
    """Write a set, and use it once it is computed, and once more."""
    assert client.put(f"/v1/label-sets/{name}", json={"labels": ["red", "green", name]}).status_code in {201, 202}
    question = {"image": RED, "label_set": name}
    until(lambda: client.post("/v1/classify", json=question).status_code == 200)
    assert 200 == client.post("/v1/classify", json=question).status_code


def a_job(client: httpx.Client) -> None:
    """A job of a good line and one whose picture is none, to its end."""
    bodies = [{"image": image, "labels": ["red", "green"]} for image in (RED, base64.b64encode(b"no").decode())]
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/classify", "body": body}
        for number, body in enumerate(bodies)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    uploaded = client.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}).json()
    job = {"input_file_id": uploaded["id"], "endpoint": "/v1/classify", "completion_window": "24h"}
    path = f"/v1/batches/{client.post('/v1/batches', json=job).json()['id']}"
    until(lambda: client.get(path).json()["status"] == "completed")


def until(condition: Any) -> None:
    """Wait until something is so; without asking so often that the rate limit is met."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def counted(text: str) -> float:
    """All requests but those of monitoring itself, by the service's own account."""
    rows = [row for row in text.splitlines() if row.startswith("anyclass_http_requests_total{")]
    return sum(float(row.rpartition(" ")[2]) for row in rows if 'protocol="operations"' not in row)


def wait_until_seen(prometheus: Prometheus, client: httpx.Client) -> None:
    """Until Prometheus knows of all that the service has counted."""
    total = counted(client.get("/metrics").text)
    question = 'sum(anyclass_http_requests_total{protocol!="operations"})'
    prometheus.wait(lambda: [total] == [series.value for series in prometheus.query(question)])


@needs_prometheus
def test_every_panel_shows_something(scraped: Scraped) -> None:
    """Each expression gives series with numbers and with the labels of its legend; so do the choices above them."""
    for title, expression, legend in expressions():
        series = scraped.prometheus.query(expression)
        assert not all(math.isnan(each.value) for each in series), f"{title}: {expression} gives nothing"
        wanted = set(re.findall(r"\{\{(\w+)\}\}", legend))
        # Prometheus names buckets, Grafana's heatmap takes the name.
        assert all(wanted <= set(each.labels) for each in series), f"{title}: {legend} is not in {expression}"
    for variable in DASHBOARD["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        assert all(label in each.labels for each in scraped.prometheus.query(metric)), variable["name"]


@needs_prometheus
def test_every_alert_is_evaluated_and_asks_for_what_there_is(scraped: Scraped) -> None:
    """Prometheus evaluates each rule; each selector finds series of the service, each label is one that they have."""
    prometheus = scraped.prometheus

    def evaluated() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("/rules")["groups"] for rule in group["rules"]]

    prometheus.wait(lambda: all(rule["health"] != "unknown" for rule in evaluated()))
    assert {rule["alert"]: "ok" for rule in alerts()} == {rule["name"]: rule["health"] for rule in evaluated()}
    for rule in alerts():
        selectors = re.findall(r"((?:anyclass|process)_\w+(?:\{[^}]*\})?)", rule["expr"])
        found = {selector: prometheus.query(selector) for selector in selectors}
        assert all(found.values()), f"{rule['alert']}: {found}"
        labels = {label for series in found.values() for each in series for label in each.labels}
        asked = {name for names in re.findall(r"(?:by|on) \(([\w, ]+)\)", rule["expr"]) for name in names.split(", ")}
        shown = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert asked | shown <= labels, rule["alert"]


@needs_prometheus
def test_the_unit_tests_of_the_alerts_use_real_series(scraped: Scraped) -> None:
    """Each metric, label and value in them is one of a real scrape: they test no world of their own."""
    given = {
        each["series"] for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"] for each in test["input_series"]
    } - {'process_start_time_seconds{job="other", instance="c:1", namespace="prod", pod="c"}'}
    assert len(given) > 40
    for series in given:
        name, _, labels = series.partition("{")
        real = scraped.prometheus.query(name)
        for label, value in re.findall(r'(\w+)="([^"]*)"', labels):
            values = {each.labels.get(label) for each in real} - {None}
            assert values, f"{name} has no label {label}"
            assert label in FREE_LABELS or value in values, f"{name}: {label} is never {value}"


def hostile(client: httpx.Client, word: str) -> None:
    """Put a word wherever a client can put one."""
    file = {"image": (f"{word}.png", picture("red"), "image/png")}
    headers = {"x-request-id": word, "user-agent": word, "x-forwarded-for": word, "idempotency-key": word}
    client.post(f"/v1/classify?{word}={word}", files=file, data={"labels": ["red", word]}, headers=headers)
    client.post("/v1/classify", files=file, data={"labels": ["red", word], "model": word})
    client.post("/v1/classify", json={"image": f"http://{word}.invalid/{word}", "labels": [word, "red"]})
    client.post("/v1/classify", json={"image": RED, "label_set": word})
    client.post("/v1/classify", content=b"x", headers={"content-type": f"image/{word}"})
    client.put(f"/v1/label-sets/{word}", json={"labels": [word]})
    client.post(f"/models/{word}", json={"inputs": RED, "parameters": {"candidate_labels": [word, "red"]}})
    client.post(f"/v2/models/{word}/infer", json={"id": word, "inputs": [tensor(word, word)]})
    client.post("/v1/embeddings", json={"model": word, "input": word, "user": word})
    client.post("/v1/files", files={"file": (word, word.encode())}, data={"purpose": word})
    client.get(f"/v1/batches/{word}")
    client.get(f"/{word}")
    client.request(word.upper(), "/v1/classify")
    client.get("/v1/models", headers={"authorization": f"Bearer {word}", "host": word})


@needs_prometheus
def test_nothing_that_a_client_sends_becomes_a_label(scraped: Scraped) -> None:
    """A second client with other words makes not one more series, and no word is in any."""

    def names() -> set[str]:
        text = client.get("/metrics").text
        return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}

    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=scraped.server.url, timeout=PATIENCE_S, headers=headers) as client:
        hostile(client, f"{MARK}first")
        names()
        before = names()
        hostile(client, f"{MARK}second")
        assert before == names()
    assert [] == [name for name in before if MARK in name.lower()]


def promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run promtool on the rules, which lie beside their tests in `folder`."""
    (folder / "alerts.yaml").write_text(alert_rules())
    shutil.copy(UNIT_TESTS, folder)
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)


@needs_prometheus
def test_each_alert_fires_when_it_must_and_not_before(tmp_path: Path) -> None:
    """Promtool finds the rules sound and its unit tests passed; there is one in which each alert fires."""
    checked = promtool("check", "rules", "alerts.yaml", folder=tmp_path)
    assert 0 == checked.returncode, checked.stdout + checked.stderr
    tested = promtool("test", "rules", UNIT_TESTS.name, folder=tmp_path)
    assert 0 == tested.returncode, tested.stdout + tested.stderr
    fired = {
        name
        for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"]
        for each in test["promql_expr_test"]
        for sample in each["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert {rule["alert"] for rule in alerts()} == fired


def test_each_alert_has_its_runbook() -> None:
    """Summary, what to do, and a heading in the page whose text begins with the alert's severity."""
    headings = dict(re.findall(r"^### (Anyclass\w+)\n\n\*\*(\w+)\.\*\* ", PAGE, re.MULTILINE))
    assert headings == {rule["alert"]: rule["labels"]["severity"] for rule in alerts()}
    assert {"critical", "warning"} == set(headings.values())
    for rule in alerts():
        assert {"summary", "description", "runbook_url"} == rule["annotations"].keys()
        assert len(rule["annotations"]["description"]) > 60
        assert f"docs/monitoring.md#{rule['alert'].lower()}" == rule["annotations"]["runbook_url"]


def test_the_dashboard_is_well_formed() -> None:
    """What Grafana needs of each panel, in a grid of 24 columns without gaps or overlaps."""
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
    """What the service measures can be seen, of the models and pods that were chosen."""
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
    """The CPU overlay with the component, as `kubectl apply -k` renders it."""
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
    """The document of that kind and name."""
    (found,) = [each for each in render() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@needs_kubectl
def test_the_component_adds_scraping_alerts_and_the_dashboard() -> None:
    """Everything in the one namespace; what is of Kubernetes itself is valid, and small enough for `kubectl apply`."""
    documents = render()
    assert {"anyclass"} == {each["metadata"]["namespace"] for each in documents if each["kind"] != "Namespace"}
    for document in documents:
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        # What kubectl writes into an annotation, which holds 256 KiB.
        assert len(json.dumps(document)) < 250_000, document["metadata"]["name"]
    assert yaml.safe_load(alert_rules()) == one("PrometheusRule", "anyclass")["spec"]
    board = one("ConfigMap", "anyclass-dashboard")
    assert DASHBOARD == json.loads(board["data"]["dashboard.json"])
    assert "1" == board["metadata"]["labels"]["grafana_dashboard"]


@needs_kubectl
def test_every_pod_is_scraped_once_at_its_own_port() -> None:
    """The monitor selects the pods and names their port; nothing else is told to scrape them."""
    template = one("Deployment", "anyclass")["spec"]["template"]
    monitor = one("PodMonitor", "anyclass")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert "/metrics" == endpoint["path"]
    assert "prometheus.io/scrape" not in template["metadata"]["annotations"]


@needs_kubectl
def test_the_base_needs_no_operator() -> None:
    """No overlay has an object of the operator unless the component was added; each says how it is."""
    for path in (ROOT / "k8s/overlays").iterdir():
        done = subprocess.run(["kubectl", "kustomize", path], capture_output=True, text=True, check=True)
        assert "monitoring.coreos.com" not in done.stdout
        (named,) = re.findall(r"^#   - (\S+monitoring)$", (path / "kustomization.yaml").read_text(), re.MULTILINE)
        assert (path / named / "kustomization.yaml").exists()


def test_the_shown_provisioning_is_grafanas() -> None:
    """The page's block for Grafana names a folder."""
    (block,) = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "providers" in text]
    (provider,) = yaml.safe_load(block)["providers"]
    assert {"name", "options"} == provider.keys()
    assert provider["options"]["path"].startswith("/")
