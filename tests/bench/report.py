"""Write results as tables: on the terminal, and in Markdown between two marks of the page in docs/."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from rich.console import Console
from rich.table import Table

from tests.bench.models import SIZES
from tests.bench.summary import median, ratio
from tests.bench.wanted import rows as wanted_rows

BEGIN: Final = "<!-- results: begin (written by make bench) -->"
END: Final = "<!-- results: end -->"

_MIB: Final = 2**20
_MARK: Final = {True: "yes", False: "no", None: ""}


Cells: TypeAlias = tuple[str, Sequence[str], list[list[str]]]
"""A title, the heads of the columns, and the rows."""


def tables(results: dict[str, Any]) -> Iterator[Cells]:
    """Turn the results into tables; skip parts that were not run."""
    suites = results["suites"]
    if serve := suites.get("serve"):
        yield from _serve(serve)
    if limit := suites.get("limit"):
        yield _encoders(limit, results)
    if lanes := suites.get("lanes"):
        yield _lanes(lanes)
    if labels := suites.get("labels"):
        yield _labels(labels)
    if overhead := suites.get("overhead"):
        yield _overhead(overhead)
    if decode := suites.get("decode"):
        yield _decode(decode)
    if start := suites.get("start"):
        cells = [[name, _number(run["median_s"], ".2f"), str(len(run["ready_s"]))] for name, run in start.items()]
        yield "Start to ready", ("server", "seconds", "runs"), cells
    if memory := suites.get("memory"):
        yield _memory(memory)
    wanted = [[row.what, row.wanted, row.shown, _MARK[row.met]] for row in wanted_rows(results)]
    yield "The project's own targets", ("what", "wanted", "measured", "met"), wanted


def print_to(console: Console, results: dict[str, Any]) -> None:
    """Show the tables, and the skipped parts."""
    for title, heads, cells in tables(results):
        table = Table(title=title, title_justify="left", box=None)
        for number, head in enumerate(heads):
            table.add_column(head, justify="left" if number == 0 else "right", no_wrap=number == 0)
        for row in cells:
            table.add_row(*row)
        console.print(table)
        console.print()
    for name, where in computed_on(results).items():
        console.print(f"{name}: computed on {where}", highlight=False, markup=False)
    for name, why in results["skipped"].items():
        console.print(f"skipped {name}: {why}", highlight=False, markup=False)


def write_page(page: Path, results: dict[str, Any], plots: Sequence[Path]) -> None:
    """Put the results between the marks of the page. Raises ValueError if it has none."""
    before, after = around_results(page)
    page.write_text(f"{before}{BEGIN}\n\n{markdown(results, plots, page.parent)}\n{END}{after}", "utf-8")


def around_results(page: Path) -> tuple[str, str]:
    """Return the page before and after the results. Raises ValueError if it has no marks."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN) if page.exists() else ("", "", "")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for results: a line {BEGIN} and a line {END}")
    return before, after


def markdown(results: dict[str, Any], plots: Sequence[Path] = (), folder: Path = Path()) -> str:
    """Describe the machine and show every table; paths of plots are relative to `folder`."""
    lines = [f"Measured on {results['date']}: {machine(results)}.", ""]
    for title, heads, cells in tables(results):
        lines += [f"### {title}", "", _line(heads), _line(["---"] * len(heads)), *map(_line, cells), ""]
    for plot in plots:
        lines += [f"![{plot.stem.replace('-', ' ')}]({plot.relative_to(folder).as_posix()})", ""]
    lines += [f"- `{name}` computed on {where}." for name, where in computed_on(results).items()]
    if peers := results["suites"].get("serve", {}).get("peers"):
        for name, peer in peers.items():
            versions = ", ".join(f"{package} {version}" for package, version in peer["versions"].items())
            lines.append(f"- `{name}`: {peer['what']} ({versions}).")
    lines += [f"- Left out: {name}, because {why}" for name, why in results["skipped"].items()]
    return "\n".join(lines).rstrip() + "\n"


def computed_on(results: dict[str, Any]) -> dict[str, str]:
    """Report the actual provider and precision of each subject, which may differ from the request."""
    suites = results["suites"]
    runs = {name: found[0] for name, found in suites.get("serve", {}).get("bare", {}).items() if found}
    runs |= suites.get("limit", {}).get("encoders", {})
    return {name: f"{run['provider']}, {run['precision']}" for name, run in runs.items()}


def machine(results: dict[str, Any]) -> str:
    """Describe the machine in a sentence."""
    about = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    parts = [
        f"{about['cores_usable']} cores of {about['processor']}",
        f"with {', '.join(about['instruction_sets']) or 'no vector sets of note'}",
        f"{about['memory_gib']} GiB of memory",
        *([f"GPU {about['gpu']}"] if about.get("gpu") else []),
        f"{about['system']}, Python {about['python']}, {packages}",
    ]
    effort = results["effort"]
    return f"{'; '.join(parts)}. Medians of rounds, {effort['rounds']} of {effort['seconds']:g} s each"


def _serve(serve: dict[str, Any]) -> Iterator[Cells]:
    shared = ("p50, ms", "p99, ms", "failed", "generator, % of a core")
    cells = []
    for name, target in serve["targets"].items():
        for clients, runs in target["closed"].items():
            busy = _number(median((run["gpu"] or {}).get("busy_percent") for run in runs), ".0f")
            cells.append([name, clients, _median(runs, "rate_rps"), *_shared(runs), busy])
    for name, bare in serve["bare"].items():
        rate = median(run["loop"]["rate_ips"] for run in bare)
        one = median(run["single"]["median_s"] for run in bare)
        cells.append([f"{name}, bare loop", "–", _number(rate, ".1f"), *["–"] * 5])
        cells.append([f"{name}, one bare decode + run", "–", _number(ratio(1.0, one), ".1f"), _ms(one), *["–"] * 4])
    yield "Capacity (closed loop)", ("server", "clients", "requests/s", *shared, "GPU, %"), cells
    cells = []
    for name, target in serve["targets"].items():
        for share, runs in target["open"].items():
            late = _ms(median(run["lateness_s"].get("p99") for run in runs))
            cells.append([name, f"{float(share):.0%}", _median(runs, "offered_rps"), *_shared(runs), late])
    if cells:
        heads = ("server", "of capacity", "offered/s", *shared, "lateness p99, ms")
        yield "Latency from the intended moment (open loop)", heads, cells


def _shared(runs: list[dict[str, Any]]) -> list[str]:
    failed = sum(run["unanswered"] + sum(run["failed"].values()) for run in runs)
    return [
        _ms(median(run["latency_s"].get("p50") for run in runs)),
        _ms(median(run["latency_s"].get("p99") for run in runs)),
        str(failed),
        _number(median(100 * run["cpu_share"] for run in runs), ".1f"),
    ]


def _median(runs: list[dict[str, Any]], figure: str) -> str:
    return _number(median(run[figure] for run in runs), ".1f")


def _encoders(limit: dict[str, Any], results: dict[str, Any]) -> Cells:
    matrix = limit["matrix"]
    types = [name for name in ("float32", "bfloat16", "float16") if name in matrix]
    heads = ("image encoder", "batch", "pictures/s", "GFLOP/s", *(f"of {name}" for name in types))
    cells = [[f"matrix product, {name}", "–", "–", f"{matrix[name]:,.0f}", *["–"] * len(types)] for name in types]
    for (name, found), model in zip(limit["encoders"].items(), results["models"], strict=True):
        for batch, rate in found["encoder"]["rate_ips"].items():
            gflops = rate * SIZES[model].image_gflop if model in SIZES else None
            shares = [_number(gflops / matrix[dtype] if gflops else None, ".2f") for dtype in types]
            cells.append([name, batch, f"{rate:,.1f}", _number(gflops, ",.0f"), *shares])
    return "Image encoder and the matrix limit", heads, cells


def _lanes(lanes: dict[str, Any]) -> Cells:
    cells = []
    for name, found in lanes.items():
        for way in ("alone", "beside"):
            runs = [run[way] for run in found["runs"]]
            p50, p99, images = (
                median(run.get(figure) for run in runs) for figure in ("p50_ms", "p99_ms", "batch_images_per_s")
            )
            shown = [_number(found["rate_rps"], ".1f"), *(_number(figure, ".1f") for figure in (p50, p99, images))]
            cells.append([f"{name}, {'no batch' if way == 'alone' else 'one batch'}", *shown])
    heads = ("single requests", "offered/s", "p50, ms", "p99, ms", "images of the batch/s")
    return "Single requests beside a batch request", heads, cells


def _labels(labels: dict[str, Any]) -> Cells:
    cells = []
    for name, run in labels["cached"].items():
        few, many = median(run["few_s"]), median(run["many_s"])
        cells.append([f"2 cached, {name}", _ms(few), ""])
        cells.append([f"1,000 cached, {name}", _ms(many), f"{1_000 * run['extra_s']:+.2f} ms"])
    cold = labels["cold"]
    padded = cold["padded_fp32_tps"]
    more = f"{cold['labels_ps'] / padded:.1f}× the padded fp32 way ({padded:,.0f}/s)" if padded else ""
    cells.append(["1,000 new", _ms(median(cold["text_s"])), f"{cold['labels_ps']:,.0f} labels/s; {more}".rstrip("; ")])
    if redis := labels["redis"]:
        cells.append(["1,000 from Redis, fresh process", _ms(redis["median_s"]), ""])
    return "Labels", ("labels", "ms", ""), cells


def _overhead(overhead: dict[str, Any]) -> Cells:
    cells = [
        [
            form,
            *(
                _number(1_000 * (median(run[part]) or 0.0), ".2f")
                for part in ("cpu_s", "decode_s", "encode_s", "rest_s")
            ),
        ]
        for form, run in overhead.items()
    ]
    heads = ("form", "processor time, ms", "decode, ms", "encode, ms", "the rest, ms")
    return "A request of 64×48 pixels to a model that computes next to nothing", heads, cells


def _decode(decode: dict[str, Any]) -> Cells:
    cells = [
        [size, _ms(run["exact"]), _ms(run["fast"]), f"{run['exact'] / run['fast']:.1f}×"]
        for size, run in decode.items()
    ]
    return "Decode and resize to 224, one thread", ("picture", "reference, ms", "fast, ms", "ratio"), cells


def _memory(memory: dict[str, Any]) -> Cells:
    cells = [
        [
            name,
            f"{run['peak_bytes'] / _MIB:,.0f}",
            f"{run['late_growth_bytes'] / _MIB:,.1f}",
            f"{run['requests']:,}",
            f"{run['seconds']:.0f}",
        ]
        for name, run in memory.items()
    ]
    heads = ("server", "peak, MiB", "growth in the second half, MiB", "requests", "seconds")
    return "Memory under the load of 32 clients", heads, cells


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ms(seconds: float | None) -> str:
    return _number(None if seconds is None else 1_000 * seconds, ",.1f")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
