import ast
import re
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service import metrics as module
from service.metrics import Metrics


def test_every_metric_is_named_after_the_service() -> None:
    """A dashboard finds them by one prefix, and each says what it is."""
    families = list(text_string_to_metric_families(Metrics().render().decode()))
    assert len(families) > 10
    assert all(family.name.startswith("anyclass_") and family.documentation for family in families)


def test_nothing_is_global() -> None:
    """Two services in one process do not share a number."""
    one, two = Metrics(), Metrics(CollectorRegistry())
    one.looked_up("redis", "hit", 3)
    name, labels = "anyclass_text_cache_lookups_total", {"layer": "redis", "result": "hit"}
    assert one.registry.get_sample_value(name, labels) == 3
    assert two.registry.get_sample_value(name, labels) is None


def test_counting_nothing_makes_no_series() -> None:
    """A series appears with the first event."""
    metrics = Metrics()
    metrics.looked_up("redis", "invalid", 0)
    assert b"invalid" not in metrics.render()


def test_helpers_count_and_observe() -> None:
    """Failures by operation and reason, stages in seconds."""
    metrics = Metrics()
    metrics.cache_failed("read", "timeout")
    metrics.spent("decode", 0.004)
    failures = {"operation": "read", "reason": "timeout"}
    assert metrics.registry.get_sample_value("anyclass_text_cache_failures_total", failures) == 1
    assert metrics.registry.get_sample_value("anyclass_stage_seconds_sum", {"stage": "decode"}) == 0.004


def test_metrics_are_made_in_one_file_only() -> None:
    """Whoever looks for a metric looks there."""
    here = Path(module.__file__)
    for path in here.parent.rglob("*.py"):
        imported = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        if path != here and "prometheus_client" in imported:
            assert not re.search(r"\b(Counter|Gauge|Histogram|Summary)\(", path.read_text()), path
