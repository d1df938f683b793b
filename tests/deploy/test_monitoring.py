"""Dashboard and alerts: a real Prometheus that scrapes the real service evaluates every expression."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.http_server import HttpServer, http_server
from tests.support.monitoring import DASHBOARD, alert_rules, alerts, configuration, expressions
from tests.support.prometheus import Prometheus, running_prometheus, why_no_prometheus
from tests.support.redis_server import running_redis
from tests.support.tiny_bundle import write_tiny_bundle
from tests.support.traffic import GREEDY, KEY, PATIENCE_S, hostile, send_of_everything

UNIT_TESTS = Path(__file__).with_name("alerts.test.yaml")

MARK = "xyzzy"
FREE_LABELS = {"namespace", "pod", "job", "instance", "model", "version", "revision", "provider", "precision"}
"""Labels with values of a deployment; other values in the unit tests must come from the service."""

OF_KUBERNETES = {
    "kube_deployment_status_replicas_unavailable": {"namespace", "deployment"},
    "kube_statefulset_replicas": {"namespace", "statefulset"},
    "kube_statefulset_status_replicas_ready": {"namespace", "statefulset"},
    "kube_pod_container_status_restarts_total": {"namespace", "pod", "container", "uid"},
}
"""Metrics of kube-state-metrics with their documented labels; the tests have no cluster."""

needs_prometheus = pytest.mark.skipif(why_no_prometheus() is not None, reason=str(why_no_prometheus()))


# Expected values after two rounds of traffic.
NUMBERS = {
    'anyclass_http_requests_total{protocol="batch", route="/v1/classify/batch", method="POST", status="2xx"}': 2,
    'anyclass_http_requests_total{protocol="huggingface", status="2xx"}': 2,
    'anyclass_http_requests_total{protocol="openai", status="2xx"}': 2,
    'anyclass_http_requests_total{protocol="open-inference", status="2xx"}': 2,
    'anyclass_http_requests_total{protocol="jobs", method="POST", route="/v1/batches"}': 2,
    'anyclass_http_problems_total{protocol="own", problem="unauthorized"}': 2,
    'anyclass_http_problems_total{protocol="own", problem="payload-too-large"}': 2,
    'anyclass_http_problems_total{protocol="own", problem="unsupported-image-format"}': 2,
    'anyclass_http_problems_total{protocol="operations", problem="rate-limited"}': 2,
    'anyclass_http_problems_total{protocol="label-sets", problem="state-unavailable"}': 2,
    'anyclass_http_problems_total{protocol="other", problem="not-found"}': 2,
    'anyclass_access_refused_total{reason="rate"}': 2,
    'anyclass_image_fetches_total{outcome="failed"}': 2,
    'anyclass_job_lines_total{outcome="completed"}': 2,
    'anyclass_job_lines_total{outcome="failed"}': 2,
    'anyclass_jobs_ended_total{status="completed"}': 2,
    "anyclass_label_set_blocks_total": 2,
    'anyclass_label_set_lookups_total{result="hit"} > bool 1': 1,
    "anyclass_label_set_bytes > bool 0": 1,
    "anyclass_label_sets_computing": 0,
    # an image each of the own interface, Hugging Face, the Open Inference Protocol and the job, two with a label set,
    # three of the batch
    'anyclass_images_total{outcome="ok"}': 2 * 9,
    'anyclass_stage_seconds_count{stage="decode"}': 2 * 9,
    'anyclass_stage_seconds_count{stage="image"}': 2 * 9,
    'anyclass_batch_size_sum{kind="image"}': 2 * 9,
    'anyclass_batch_limit{kind="image"}': 32,
    'anyclass_batch_limit{kind="text"}': 64,
    'anyclass_text_cache_seconds_count{operation="write"} > bool 0': 1,
    'anyclass_text_cache_lookups_total{layer="matrix", result="hit"} > bool 0': 1,
    'anyclass_model_info{model="tiny", provider="cpu", precision="fp32"}': 1,
    "anyclass_ready": 1,
}


@dataclass(frozen=True)
class Scraped:
    """A service after traffic of every kind, the Prometheus that scraped it, and its answers then."""

    server: HttpServer
    prometheus: Prometheus
    numbers: Mapping[str, list[float]]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """Send two rounds of traffic, so that the counters rise."""
    folder = tmp_path_factory.mktemp("monitoring")
    with ExitStack() as stack:
        cache_folder, state_folder = folder / "cache", folder / "state"
        cache_folder.mkdir()
        state_folder.mkdir()
        state = stack.enter_context(running_redis(state_folder))
        env = {
            "ANYCLASS_REDIS_URL": stack.enter_context(running_redis(cache_folder)).url,
            "ANYCLASS_STATE_URL": state.url,
            "ANYCLASS_STATE_TIMEOUT_S": "1",
            "ANYCLASS_API_KEYS": f"web:{KEY},greedy:{GREEDY}",
            "ANYCLASS_RATE_LIMIT_PER_S": "2",
            "ANYCLASS_RATE_LIMIT_BURST": "150",
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
        # Queried now: other tests send more.
        numbers = {question: [each.value for each in prometheus.query(question)] for question in NUMBERS}
        yield Scraped(server, prometheus, numbers)


def counted(text: str) -> float:
    """Return the service's count of requests, without those of monitoring."""
    rows = [row for row in text.splitlines() if row.startswith("anyclass_http_requests_total{")]
    return sum(float(row.rpartition(" ")[2]) for row in rows if 'protocol="operations"' not in row)


def wait_until_seen(prometheus: Prometheus, client: httpx.Client) -> None:
    """Wait until Prometheus has scraped all that the service has counted."""
    question = 'sum(anyclass_http_requests_total{protocol!="operations"})'

    def all_seen() -> bool:
        # Read each time: a request may be counted after its answer.
        total = counted(client.get("/metrics").text)
        return [total] == [series.value for series in prometheus.query(question)]

    prometheus.wait(all_seen)


@needs_prometheus
def test_the_numbers_are_those_of_the_traffic(scraped: Scraped) -> None:
    """Each protocol, refusal, image, line and label set is counted once, in its metric."""
    assert {question: [number] for question, number in NUMBERS.items()} == scraped.numbers


@needs_prometheus
def test_every_panel_shows_something(scraped: Scraped) -> None:
    """Each expression gives numbers, with the labels of its legend; each variable has values."""
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
def test_every_alert_is_evaluated_on_existing_series(scraped: Scraped) -> None:
    """Prometheus evaluates each rule; each selector finds series, which have each label."""
    prometheus = scraped.prometheus

    def evaluated() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("/rules")["groups"] for rule in group["rules"]]

    prometheus.wait(lambda: all(rule["health"] != "unknown" for rule in evaluated()))
    assert {rule["alert"]: "ok" for rule in alerts()} == {rule["name"]: rule["health"] for rule in evaluated()}
    for rule in alerts():
        selectors = re.findall(r"((?:(?:anyclass|process)_\w+|\bup\b)(?:\{[^}]*\})?)", rule["expr"])
        of_kubernetes = re.findall(r"kube_\w+", rule["expr"])
        assert selectors or of_kubernetes, rule["alert"]
        found = {selector: prometheus.query(selector) for selector in selectors}
        assert all(found.values()), f"{rule['alert']}: {found}"
        labels = {label for series in found.values() for each in series for label in each.labels}
        labels |= {label for name in of_kubernetes for label in OF_KUBERNETES[name]}
        asked = {name for names in re.findall(r"(?:by|on) \(([\w, ]+)\)", rule["expr"]) for name in names.split(", ")}
        shown = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert asked | shown <= labels, rule["alert"]


@needs_prometheus
def test_the_unit_tests_of_the_alerts_use_real_series(scraped: Scraped) -> None:
    """Each metric, label and value in them occurs in a real scrape."""
    given = {
        each["series"] for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"] for each in test["input_series"]
    } - {'process_start_time_seconds{job="other", instance="c:1", namespace="prod", pod="c"}'}
    assert len(given) > 40
    for series in given:
        name, _, labels = series.partition("{")
        named = re.findall(r'(\w+)="([^"]*)"', labels)
        if name in OF_KUBERNETES:
            assert {label for label, _ in named} <= OF_KUBERNETES[name], series
            continue
        real = scraped.prometheus.query(name)
        for label, value in named:
            values = {each.labels.get(label) for each in real} - {None}
            assert values, f"{name} has no label {label}"
            assert label in FREE_LABELS or value in values, f"{name}: {label} is never {value}"


@needs_prometheus
def test_nothing_that_a_client_sends_becomes_a_label(scraped: Scraped) -> None:
    """A second client with other words adds no series, and no series has its words."""

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
    """Run promtool in `folder`, with the rules and their tests."""
    (folder / "alerts.yaml").write_text(alert_rules())
    shutil.copy(UNIT_TESTS, folder)
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)


@needs_prometheus
def test_each_alert_fires_when_it_must_and_not_before(tmp_path: Path) -> None:
    """Promtool accepts the rules and passes their unit tests, in which each alert fires."""
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
