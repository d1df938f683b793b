"""Prometheus metrics of the service, with their buckets; `docs/monitoring.md` lists them.

No label value comes from a client: models are the loaded ones, keys are named by the operator, routes and protocols are
the application's, problems are those of one table, the rest are the literals in this file. So clients cannot make the
number of series grow. Series with labels known beforehand exist from the start, at 0, so that the first failure of a
process shows as a rise. Nothing is global: each `Metrics` has its own registry.

Each gauge states how the values of several processes (`--workers`) are merged, never into a series for each process.
Only the metrics of the operating system have one; see `service.monitoring.worker_metrics`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from service.monitoring.usage import add_time
from service.monitoring.worker_metrics import render

Kind: TypeAlias = Literal["image", "text"]
Stage: TypeAlias = Literal["decode", "queue", "text", "image", "score"]
Layer: TypeAlias = Literal["matrix", "memory", "redis"]
Lookup: TypeAlias = Literal["hit", "miss", "invalid"]
Operation: TypeAlias = Literal["read", "write"]
Failure: TypeAlias = Literal["timeout", "connection", "refused", "skipped"]
Dropped: TypeAlias = Literal["cancelled", "overdue"]
Fetch: TypeAlias = Literal["ok", "failed", "too large", "cancelled"]
StateEntry: TypeAlias = Literal["job", "file", "idempotency-key", "label-set"]
Broken: TypeAlias = Literal["non-finite", "out-of-memory", "device-lost", "worker", "error"]

_Merged: TypeAlias = Literal["livesum", "livemax", "livemin", "livemostrecent"]
"""Rule by which a gauge's values of several processes become one."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
NO_STATE: Final = -1
"""Value of `state_up`: no store is configured, and the fallback cannot be used."""

_NAMESPACE: Final = "anyclass"
_LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_REDIS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# Omits a second series with the creation time of each counter and histogram. A switch for the whole process.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All metrics, in one registry; with `shared`, `render` covers every process that counts in that folder."""

    def __init__(self, registry: CollectorRegistry | None = None, *, shared: Path | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._shared = shared
        self._process: ProcessCollector | None = None
        counter = partial(Counter, namespace=_NAMESPACE, registry=self.registry)
        histogram = partial(Histogram, namespace=_NAMESPACE, registry=self.registry)

        def gauge(name: str, documentation: str, merged: _Merged, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(
                name, documentation, labels, namespace=_NAMESPACE, registry=self.registry, multiprocess_mode=merged
            )

        # Models and readiness
        self.build_info = gauge("build_info", "Always 1.", "livemax", ["version"])
        self.model_info = gauge(
            "model_info",
            "Always 1; provider and precision are those in use, threads the CPU threads of one run.",
            "livemax",
            ["model", "revision", "provider", "precision", "chosen_by", "threads"],
        )
        self.ready = gauge("ready", "1 while /readyz reports ready.", "livemax")

        # HTTP
        self.http_requests = counter("http_requests", "Requests answered.", ["protocol", "route", "method", "status"])
        self.http_seconds = histogram(
            "http_request_seconds", "Time to answer.", ["protocol", "route"], buckets=_LATENCIES_S
        )
        self.http_problems = counter(
            "http_problems", "Requests answered with an error, or not answered, by problem.", ["protocol", "problem"]
        )
        self.http_in_flight = gauge("http_requests_in_flight", "Requests being answered.", "livesum")
        self.body_bytes = gauge("body_bytes", "Bytes of request bodies in memory.", "livesum")
        self.bodies_refused = counter("bodies_refused", "Bodies refused because other bodies filled the memory limit.")
        self.unsent_bytes = gauge("unsent_bytes", "Bytes of unread answers in memory.", "livesum")
        self.answers_unread = counter(
            "answers_unread", "Connections closed because the client did not read its answer."
        )
        self.out_of_descriptors = counter("out_of_descriptors", "Seconds without a free descriptor for a connection.")

        # Stages of a classification
        self.images = counter("images", "Images classified, embedded or failed.", ["model", "outcome"])
        self.stage_seconds = histogram("stage_seconds", "Time in a stage.", ["model", "stage"], buckets=_LATENCIES_S)
        self.decode_waiting = gauge("decode_waiting", "Images in or before decoding.", "livesum")

        # Device
        self.batch_size = histogram(
            "batch_size", "Images or texts in a batch.", ["model", "kind"], buckets=_BATCH_SIZES
        )
        self.batch_limit = gauge(
            "batch_limit", "Maximum number of images or texts in a batch.", "livemax", ["model", "kind"]
        )
        self.inference_seconds = histogram(
            "inference_seconds", "Device time of a batch.", ["model", "kind"], buckets=_LATENCIES_S
        )
        self.inference_failures = counter("inference_failures", "Batches that failed.", ["model", "kind", "reason"])
        self.waiting = gauge("waiting", "Images or texts waiting for the device.", "livesum", ["model", "kind"])
        self.overloaded = counter("overloaded", "Requests refused because too much was waiting.", ["model", "kind"])
        self.dropped = counter("dropped", "Entries dropped before they reached the device.", ["kind", "reason"])

        # Access, and images fetched from URLs
        self.access_refused = counter(
            "access_refused", "Requests without a valid key or above the rate limit.", ["reason"]
        )
        self.key_requests = counter("key_requests", "Requests with an API key, by its name.", ["key", "status"])
        self.key_images = counter("key_images", "Images of these requests.", ["key"])
        self.key_labels = counter("key_labels", "Labels and texts of these requests.", ["key"])
        self.rate_limit_fallbacks = counter("rate_limit_fallbacks", "Requests counted here alone because Redis failed.")
        self.image_fetches = counter("image_fetches", "Image URLs, by outcome.", ["outcome"])

        # Durable state: batch jobs and label sets
        self.state_up = gauge(
            "state_up",
            "0 while the state store takes no reads or writes of the job runner, -1 without a store, else 1.",
            "livemin",
        )
        self.state_damaged = counter("state_damaged", "Damaged entries of the state store that were skipped.", ["kind"])
        self.jobs_active = gauge(
            "jobs_active", "Batch jobs in the state store that have not ended.", "livemostrecent", ["status"]
        )
        self.jobs_ended = counter("jobs_ended", "Batch jobs that ended here.", ["status"])
        self.job_lines = counter("job_lines", "Lines of batch jobs answered here.", ["outcome"])
        self.label_set_lookups = counter(
            "label_set_lookups", "Requests for an existing label set, by whether it was in memory.", ["result"]
        )
        self.label_set_bytes = gauge("label_set_bytes", "Memory of label sets in use.", "livesum")
        self.label_sets_computing = gauge(
            "label_sets_computing", "Label sets being computed here, including queued ones.", "livesum"
        )
        self.label_set_blocks = counter("label_set_blocks", "Blocks of label sets computed in the background.")
        self.label_set_failures = counter("label_set_failures", "Label sets whose computation failed.")

        self._create_caches(counter, histogram, gauge)
        self._create_series()

    def _create_caches(
        self, counter: Callable[..., Counter], histogram: Callable[..., Histogram], gauge: Callable[..., Gauge]
    ) -> None:
        """Create the metrics of the caches."""
        # Text cache
        self.cache_lookups = counter("text_cache_lookups", "Labels looked up, by layer.", ["layer", "result"])
        self.cache_failures = counter("text_cache_failures", "Redis operations that failed.", ["operation", "reason"])
        self.cache_seconds = histogram(
            "text_cache_seconds", "Time of one Redis operation, failed ones included.", ["operation"], buckets=_REDIS_S
        )
        self.cache_up = gauge("text_cache_up", "0 while Redis is not used because it fails, else 1.", "livemin")
        self.labels_computed = counter("labels_computed", "Class vectors computed by the text encoder.", ["model"])

        # Image cache
        self.image_lookups = counter("image_cache_lookups", "Images looked up, by layer.", ["layer", "result"])
        self.image_saved_seconds = counter(
            "image_cache_saved_seconds", "Mean time of an image, for each that was in the cache.", ["model"]
        )

    def _create_series(self) -> None:
        """Create the series that do not depend on the models."""
        self.cache_up.set(1)
        self.state_up.set(1)
        for kind, dropped in product(KINDS, get_args(Dropped)):
            self.dropped.labels(kind, dropped)
        for refused in ("key", "rate"):
            self.access_refused.labels(refused)
        for fetched in get_args(Fetch):
            self.image_fetches.labels(fetched)
        for entry in get_args(StateEntry):
            self.state_damaged.labels(entry)
        for outcome in ("completed", "failed"):
            self.job_lines.labels(outcome)
        for result in ("hit", "miss"):
            self.label_set_lookups.labels(result)
        for layer, looked in product(get_args(Layer), get_args(Lookup)):
            self.cache_lookups.labels(layer, looked)
            if layer != "matrix":
                self.image_lookups.labels(layer, looked)
        for operation, failure in product(get_args(Operation), get_args(Failure)):
            self.cache_failures.labels(operation, failure)
            self.cache_seconds.labels(operation)

    def model_loaded(
        self,
        model: str,
        *,
        revision: str,
        provider: str,
        precision: str,
        chosen_by: str,
        threads: int,
        batch_limits: Mapping[Kind, int],
    ) -> None:
        """Record how a model runs, and create its series."""
        self.model_info.labels(model, revision, provider, precision, chosen_by, str(threads)).set(1)
        self.labels_computed.labels(model)
        self.image_saved_seconds.labels(model)
        self.images.labels(model, "ok")
        for stage in get_args(Stage):
            self.stage_seconds.labels(model, stage)
        for kind in KINDS:
            self.batch_limit.labels(model, kind).set(batch_limits[kind])
            self.batch_size.labels(model, kind)
            self.inference_seconds.labels(model, kind)
            self.waiting.labels(model, kind)
            self.overloaded.labels(model, kind)
            for broken in get_args(Broken):
                self.inference_failures.labels(model, kind, broken)

    def watch_process(self) -> None:
        """Add the `process_…` metrics of every Prometheus client: memory, CPU time, open files. Reads files.

        Does nothing for processes that share a folder: `render` gathers theirs.
        """
        if self._process is None and self._shared is None:
            self._process = ProcessCollector(registry=self.registry)

    def looked_up(self, layer: Layer, result: Lookup, count: int, *, kind: Kind = "text") -> None:
        """Count labels, or images, looked up in a layer of their cache."""
        if count:
            lookups = self.cache_lookups if kind == "text" else self.image_lookups
            lookups.labels(layer, result).inc(count)

    def cache_failed(self, operation: Operation, reason: Failure) -> None:
        """Count a Redis operation that failed, or was skipped because Redis keeps failing (`skipped`)."""
        self.cache_failures.labels(operation, reason).inc()

    def spent(self, model: str, stage: Stage, seconds: float) -> None:
        """Record the time that one request spent in a stage."""
        self.stage_seconds.labels(model, stage).observe(seconds)
        add_time(stage, seconds)

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format. Reads files after `watch_process`."""
        return generate_latest(self.registry) if self._shared is None else render(self._shared)
