"""Compare the results with their targets: ratios within one run, because absolute figures depend on the machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tests.bench.models import SIZES
from tests.bench.pictures import TWELVE_MEGAPIXELS
from tests.bench.summary import median, ratio

Suites: TypeAlias = dict[str, Any]

_GIB: Final = 2**30


@dataclass(frozen=True)
class Row:
    """One target: `measured` is None if its part was not run."""

    what: str
    wanted: str
    measured: float | None
    unit: str
    met: bool | None

    @property
    def shown(self) -> str:
        """Format the figure."""
        if self.measured is None:
            return "not measured"
        return f"{self.measured:.3g}{self.unit}"


def rows(results: dict[str, Any]) -> list[Row]:
    """Compare every target with the results of one run."""
    suites: Suites = results["suites"]
    first = results["subjects"][0]
    return [
        _at_least("requests/s at 32 clients, over infinity's", 5, "×", _over_infinity(suites, first)),
        _at_least("requests/s at 32 clients, of the bare loop's", 0.85, "", _over_bare(suites, first)),
        _at_most("one request at a time, over decode + engine", 1.25, "×", _single(suites, first)),
        _at_least(
            "image encoder at batch 32, of the matrix limit",
            0.5 if results["gpu"] else 0.65,
            "",
            _of_limit(suites, results),
        ),
        _at_least("1,000 new labels, over the padded fp32 way", 25, "×", _cold(suites)),
        _at_most("1,000 cached labels instead of 2, more a request", 1, " ms", _cached(suites)),
        _at_most("1,000 labels from Redis into a fresh process", 10, " ms", _redis(suites)),
        _at_most("processor time of a request but for decoding and encoding", 1.5, " ms", _overhead(suites)),
        _at_least("decoding 12 megapixels, the fast way over the reference", 3.5, "×", _decode(suites)),
        _at_most("start to ready, demo", 2, " s", _start(suites, "anyclass demo")),
        _at_most("start to ready, ViT-B/32", 6, " s", _start(suites, "anyclass vit-b-32")),
        _at_most("memory of ViT-B/32 under load", 1.5, " GiB", _memory(suites, "peak_bytes")),
        _at_most("its growth in the second half of that", 0.05, " GiB", _memory(suites, "late_growth_bytes")),
    ]


def rate(suites: Suites, name: str, clients: int = 32) -> float | None:
    """Return requests a second of a server, median of the rounds."""
    target = suites.get("serve", {}).get("targets", {}).get(name)
    return median(run["rate_rps"] for run in target["closed"].get(str(clients), [])) if target else None


def _at_least(what: str, bound: float, unit: str, value: float | None) -> Row:
    return Row(what, f"≥ {bound:g}{unit}", value, unit, None if value is None else value >= bound)


def _at_most(what: str, bound: float, unit: str, value: float | None) -> Row:
    return Row(what, f"≤ {bound:g}{unit}", value, unit, None if value is None else value <= bound)


def _over_infinity(suites: Suites, first: str) -> float | None:
    return ratio(rate(suites, first), rate(suites, "infinity"))


def _bare(suites: Suites, first: str, figure: Callable[[dict[str, Any]], float]) -> float | None:
    return median(map(figure, suites.get("serve", {}).get("bare", {}).get(first, [])))


def _over_bare(suites: Suites, first: str) -> float | None:
    return ratio(rate(suites, first), _bare(suites, first, lambda run: run["loop"]["rate_ips"]))


def _single(suites: Suites, first: str) -> float | None:
    target = suites.get("serve", {}).get("targets", {}).get(first)
    if target is None:
        return None
    one = median(run["latency_s"].get("p50") for run in target["closed"]["1"])
    return ratio(one, _bare(suites, first, lambda run: run["single"]["median_s"]))


def _of_limit(suites: Suites, results: dict[str, Any]) -> float | None:
    limit = suites.get("limit")
    model = results["models"][0]
    if limit is None or model not in SIZES:
        return None
    gflops = limit["encoders"][results["subjects"][0]]["encoder"]["rate_ips"]["32"] * SIZES[model].image_gflop
    # Without AMX a CPU multiplies faster in fp32: the limit is the faster of the two.
    return ratio(gflops, max(limit["matrix"]["float32"], limit["matrix"]["bfloat16"]))


def _cold(suites: Suites) -> float | None:
    cold = suites.get("labels", {}).get("cold")
    return ratio(cold["labels_ps"], cold["padded_fp32_tps"]) if cold else None


def _cached(suites: Suites) -> float | None:
    found = suites.get("labels", {}).get("cached")
    return 1_000 * next(iter(found.values()))["extra_s"] if found else None


def _redis(suites: Suites) -> float | None:
    found = suites.get("labels", {}).get("redis")
    return 1_000 * found["median_s"] if found else None


def _overhead(suites: Suites) -> float | None:
    found = suites.get("overhead")
    return 1_000 * max(run["median_s"] for run in found.values()) if found else None


def _decode(suites: Suites) -> float | None:
    found = suites.get("decode", {}).get("x".join(map(str, TWELVE_MEGAPIXELS)))
    return ratio(found["exact"], found["fast"]) if found else None


def _start(suites: Suites, prefix: str) -> float | None:
    return next((run["median_s"] for name, run in suites.get("start", {}).items() if name.startswith(prefix)), None)


def _memory(suites: Suites, figure: str) -> float | None:
    found = next((run for name, run in suites.get("memory", {}).items() if name.startswith("anyclass vit-b-32")), None)
    return found[figure] / _GIB if found else None
