import ast
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from service.api.protocols import Protocol, protocol_of
from service.app import create_app
from service.monitoring import metrics as module
from service.monitoring.metrics import KINDS, Metrics
from service.settings import Settings
from tests.support.places import ROOT

PAGE = ROOT / "docs/monitoring.md"


def values(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Return every sample by name and labels as written."""
    lines = metrics.render().decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {(name.partition("{")[0], name.partition("{")[2].rstrip("}")): float(value) for name, _, value in pairs}


def loaded(metrics: Metrics) -> Metrics:
    """Add a model."""
    limits = dict.fromkeys(KINDS, 8)
    metrics.model_loaded(
        "tiny", revision="abc", provider="cpu", precision="fp32", chosen_by="rule", threads=2, batch_limits=limits
    )
    return metrics


def test_every_metric_is_named_after_the_service() -> None:
    """All but the metrics of the client library have one prefix, for dashboards; each has a description."""
    metrics = Metrics()
    metrics.watch_process()
    families = list(text_string_to_metric_families(metrics.render().decode()))
    assert len(families) > 30
    assert all(family.name.startswith(("anyclass_", "process_")) and family.documentation for family in families)
    times = [family for family in families if family.type == "histogram" and not family.name.endswith("_size")]
    assert all(family.name.endswith("_seconds") for family in times)


def test_every_metric_is_documented() -> None:
    """The page has type and labels: no metric without a row, no row without a metric."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| .{20,}\|$", PAGE.read_text("utf-8"), re.MULTILINE)
    documented = {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in rows}
    measured = {
        metric._name + ("_total" if metric._type == "counter" else ""): (metric._type, list(metric._labelnames))
        for metric in vars(Metrics()).values()
        if isinstance(metric, MetricWrapperBase)
    }
    assert len(measured) > 30
    assert measured == documented


def test_nothing_is_global() -> None:
    """Two services in one process do not share a number."""
    one, two = Metrics(), Metrics(CollectorRegistry())
    one.looked_up("redis", "hit", 3)
    name, labels = "anyclass_text_cache_lookups_total", {"layer": "redis", "result": "hit"}
    assert 3 == one.registry.get_sample_value(name, labels)
    assert 0 == two.registry.get_sample_value(name, labels)


def test_the_first_failure_is_a_rise() -> None:
    """Prometheus sees a rise only in an existing series, so each starts at 0."""
    counters = {
        ("anyclass_inference_failures_total", f'kind="{kind}",model="tiny",reason="{reason}"')
        for kind, reason in product(KINDS, get_args(module.Broken))
    }
    counters |= {("anyclass_overloaded_total", f'kind="{kind}",model="tiny"') for kind in KINDS}
    counters |= {("anyclass_image_fetches_total", f'outcome="{outcome}"') for outcome in get_args(module.Fetch)}
    counters |= {("anyclass_access_refused_total", f'reason="{reason}"') for reason in ("key", "rate")}
    counters |= {
        ("anyclass_text_cache_failures_total", f'operation="{operation}",reason="{reason}"')
        for operation, reason in product(get_args(module.Operation), get_args(module.Failure))
    }
    found = values(loaded(Metrics()))
    assert dict.fromkeys(counters, 0.0) == {key: found.get(key) for key in counters}


def test_every_series_is_documented() -> None:
    """The library's series of creation times are switched off: they would double the number of series."""
    metrics = loaded(Metrics())
    assert [] == [name for name, _ in values(metrics) if name.endswith("_created")]


def test_without_redis_and_jobs_nothing_is_down() -> None:
    """An alert must not fire for a store that is not configured."""
    found = values(Metrics())
    assert 1 == found["anyclass_text_cache_up", ""] == found["anyclass_state_up", ""]


def test_a_model_has_its_provider_and_its_batch_limits() -> None:
    """Provider and precision are labels; the batch limit is a gauge."""
    found = values(loaded(Metrics()))
    assert (
        1
        == found[
            "anyclass_model_info",
            'chosen_by="rule",model="tiny",precision="fp32",provider="cpu",revision="abc",threads="2"',
        ]
    )
    assert 8 == found["anyclass_batch_limit", 'kind="text",model="tiny"']


def test_helpers_count_and_observe() -> None:
    """Failures by operation and reason, stages by model in seconds; counting nothing changes nothing."""
    metrics = Metrics()
    metrics.cache_failed("read", "timeout")
    metrics.spent("tiny", "decode", 0.004)
    before = values(metrics)
    metrics.looked_up("redis", "invalid", 0)
    assert before == values(metrics)
    assert 1 == before["anyclass_text_cache_failures_total", 'operation="read",reason="timeout"']
    assert 0.004 == before["anyclass_stage_seconds_sum", 'model="tiny",stage="decode"']


def test_the_process_is_watched_once() -> None:
    """Its memory has the name that every Prometheus client uses."""
    metrics = Metrics()
    metrics.watch_process()
    metrics.watch_process()
    assert values(metrics)["process_resident_memory_bytes", ""] > 2**20


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """The whole application, not started."""
    return create_app(Settings())


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of every documented route."""
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            yield method.upper(), path


def test_every_route_belongs_to_a_protocol(app: FastAPI) -> None:
    """No answered request counts as `other`, and every protocol has a route."""
    found = {route: protocol_of(*route) for route in routes(app)}
    assert len(found) > 20
    assert [] == [route for route, protocol in found.items() if protocol == "other"]
    assert {*found.values(), "other"} == set(get_args(Protocol))
    assert not [route for route in app.routes if isinstance(route, APIRoute) and not route.include_in_schema]


@pytest.mark.parametrize(
    ("method", "path", "protocol"),
    [
        ("POST", "/v1/classify", "own"),
        ("POST", "/v1/classify/batch", "batch"),
        ("POST", "/v1/classify-everything", "other"),
        ("POST", "/", "huggingface"),
        ("GET", "/", "operations"),
        ("POST", "/models/openai/clip", "huggingface"),
        ("GET", "/v2/health/ready", "operations"),
        ("POST", "/v2/models/demo/infer", "open-inference"),
        ("POST", "/v1/files", "jobs"),
        ("DELETE", "/v1/label-sets/animals", "label-sets"),
        ("GET", "/v1/modelsx", "other"),
        ("GET", "", "other"),
    ],
)
def test_the_protocol_of_a_path(method: str, path: str, protocol: Protocol) -> None:
    """Whole segments are compared, the most specific first."""
    assert protocol == protocol_of(method, path)


def test_metrics_are_made_in_one_file_only() -> None:
    """That is the place to look for a metric."""
    here = Path(module.__file__)
    for path in here.parent.rglob("*.py"):
        imported = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        if path != here and "prometheus_client" in imported:
            assert not re.search(r"\b(Counter|Gauge|Histogram|Summary)\(", path.read_text()), path
