"""Every Prometheus metric of the service and every bucket, in one place.

No label value comes from a client as it is: models are those that were loaded, routes are the application's own, the
rest are the words in this file. So the number of series does not grow with what clients send. Nothing is global: each
`Metrics` has a registry of its own.
"""

from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Stage: TypeAlias = Literal["decode", "queue", "text", "image", "score"]
Layer: TypeAlias = Literal["matrix", "memory", "redis"]
Lookup: TypeAlias = Literal["hit", "miss", "invalid"]
Operation: TypeAlias = Literal["read", "write"]
Failure: TypeAlias = Literal["timeout", "connection", "refused", "skipped"]
Dropped: TypeAlias = Literal["cancelled", "overdue"]

_LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """All metrics, in one registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        own = self.registry

        # HTTP
        self.http_requests = Counter(
            "anyclass_http_requests",
            "Requests answered, by route template.",
            ["route", "method", "status"],
            registry=own,
        )
        self.http_seconds = Histogram(
            "anyclass_http_request_seconds", "Time to answer.", ["route"], buckets=_LATENCIES_S, registry=own
        )
        self.http_in_flight = Gauge("anyclass_http_requests_in_flight", "Requests being answered.", registry=own)

        # What a classification is made of
        self.images = Counter(
            "anyclass_images", "Images classified, or failed with an error class.", ["model", "outcome"], registry=own
        )
        self.stage_seconds = Histogram(
            "anyclass_stage_seconds", "Time in each stage of a request.", ["stage"], buckets=_LATENCIES_S, registry=own
        )

        # Device
        self.batch_size = Histogram(
            "anyclass_batch_size", "Images or texts in a batch.", ["model", "kind"], buckets=_BATCH_SIZES, registry=own
        )
        self.inference_seconds = Histogram(
            "anyclass_inference_seconds",
            "Device time of a batch.",
            ["model", "kind"],
            buckets=_LATENCIES_S,
            registry=own,
        )
        self.inference_failures = Counter(
            "anyclass_inference_failures", "Batches that failed.", ["model", "kind", "reason"], registry=own
        )
        self.waiting = Gauge(
            "anyclass_waiting", "Images or texts waiting for the device.", ["model", "kind"], registry=own
        )
        self.overloaded = Counter(
            "anyclass_overloaded", "Requests refused because too much was waiting.", ["model", "kind"], registry=own
        )
        self.dropped = Counter(
            "anyclass_dropped", "Entries dropped before they reached the device.", ["kind", "reason"], registry=own
        )

        # Who may ask, and what is fetched for them
        self.access_refused = Counter(
            "anyclass_access_refused", "Requests without a valid key or above the rate limit.", ["reason"], registry=own
        )
        self.rate_limit_fallbacks = Counter(
            "anyclass_rate_limit_fallbacks", "Requests counted by this process alone, for want of Redis.", registry=own
        )
        self.image_fetches = Counter("anyclass_image_fetches", "Image URLs, by outcome.", ["outcome"], registry=own)

        # Batch jobs
        self.jobs_active = Gauge(
            "anyclass_jobs_active", "Batch jobs in the state store that have not ended.", ["status"], registry=own
        )
        self.jobs_ended = Counter("anyclass_jobs_ended", "Batch jobs that ended here.", ["status"], registry=own)
        self.job_lines = Counter("anyclass_job_lines", "Lines of batch jobs answered here.", ["outcome"], registry=own)

        # Text cache
        self.cache_lookups = Counter(
            "anyclass_text_cache_lookups", "Labels looked up, by layer.", ["layer", "result"], registry=own
        )
        self.cache_failures = Counter(
            "anyclass_text_cache_failures", "Redis operations that failed.", ["operation", "reason"], registry=own
        )
        self.cache_up = Gauge(
            "anyclass_text_cache_up", "1 while Redis is in use, 0 while it is left alone.", registry=own
        )
        self.labels_computed = Counter(
            "anyclass_labels_computed", "Class vectors computed by the text encoder.", ["model"], registry=own
        )

        self.model_info = Gauge(
            "anyclass_model_info", "Always 1.", ["model", "revision", "provider", "precision"], registry=own
        )

    def looked_up(self, layer: Layer, result: Lookup, count: int) -> None:
        """Count labels looked up in a layer of the text cache."""
        if count:
            self.cache_lookups.labels(layer, result).inc(count)

    def cache_failed(self, operation: Operation, reason: Failure) -> None:
        """Count a Redis operation that failed, or that was left out while Redis is left alone (`skipped`)."""
        self.cache_failures.labels(operation, reason).inc()

    def spent(self, stage: Stage, seconds: float) -> None:
        """Record the time that one request spent in a stage."""
        self.stage_seconds.labels(stage).observe(seconds)

    def render(self) -> bytes:
        """Return everything in the Prometheus text format."""
        return generate_latest(self.registry)
