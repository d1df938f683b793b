"""Plot the results for the page in docs/."""

from pathlib import Path
from typing import Any, Final

from tests.bench.summary import median

_DPI: Final = 110
_OWN, _OTHERS = "#1f5fa8", ("#e08a3c", "#8a8a8a", "#5aa469", "#b35d8c")


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw a plot for each part with figures; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    suites = results["suites"]
    found = []
    if suites.get("serve", {}).get("targets"):
        found += [_capacity(suites["serve"], folder), _latency(suites["serve"], folder)]
    if suites.get("memory"):
        found.append(_memory(suites["memory"], folder))
    return found


def _capacity(serve: dict[str, Any], folder: Path) -> Path:
    figure, axes = _empty(4)
    for name, target in serve["targets"].items():
        clients = list(map(int, target["closed"]))
        rates = [median(run["rate_rps"] for run in runs) or 0.0 for runs in target["closed"].values()]
        axes.plot(clients, rates, marker="o", label=name, color=_colour(serve, name))
    for name, runs in serve["bare"].items():
        loop = median(run["loop"]["rate_ips"] for run in runs) or 0.0
        axes.axhline(loop, linestyle=":", color=_colour(serve, name), label=f"bare loop of {name}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(clients, map(str, clients))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients, each with one request under way")
    axes.set_ylabel("requests/s")
    _legend(figure)
    return _saved(figure, folder / "bench-capacity.png")


def _latency(serve: dict[str, Any], folder: Path) -> Path:
    figure, axes = _empty(4)
    quantiles = ("p50", "p90", "p95", "p99")
    for name, target in serve["targets"].items():
        for (share, runs), style in zip(target["open"].items(), ("-", "--", ":"), strict=False):
            points = [median(run["latency_s"].get(quantile) for run in runs) for quantile in quantiles]
            if all(point is not None for point in points):
                label = f"{name}, {float(share):.0%} of its capacity"
                milliseconds = [1_000 * (point or 0) for point in points]
                axes.plot(quantiles, milliseconds, style, marker="o", label=label, color=_colour(serve, name))
    axes.set_yscale("log")
    axes.set_ylabel("latency from the intended moment, ms")
    _legend(figure)
    return _saved(figure, folder / "bench-latency.png")


def _memory(memory: dict[str, Any], folder: Path) -> Path:
    figure, axes = _empty(2.4)
    for number, (name, run) in enumerate(memory.items()):
        seconds, used = zip(*run["samples"], strict=True)
        colour = (_OWN, *_OTHERS)[number % 5]
        axes.plot(seconds, [value / 2**30 for value in used], label=name, color=colour)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds under the load of 32 clients")
    axes.set_ylabel("resident, GiB")
    _legend(figure)
    return _saved(figure, folder / "bench-memory.png")


def _empty(height: float) -> tuple[Any, Any]:
    """Return a figure and its axes; `height` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _colour(serve: dict[str, Any], name: str) -> str:
    own = [target for target in serve["targets"] if target in serve["bare"]]
    if own[:1] == [name]:
        return _OWN
    others = [target for target in serve["targets"] if target != (own or [None])[0]]
    return _OTHERS[others.index(name) % len(_OTHERS)]


def _legend(figure: Any) -> None:
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, format="png", metadata={"Software": None})
    return path
