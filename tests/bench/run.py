"""Every benchmark in one run: results to build/bench/results.json, tables and plots to docs/benchmarks.md.

make bench                                      # everything, 20 to 30 minutes
make bench BENCH_ARGS="--only serve,labels"     # parts
make bench BENCH_ARGS="--quick"                 # everything once, briefly; the page stays as it is
make bench-gpu                                  # on a GPU: CUDA and TensorRT, ViT-B/32 and ViT-L/14 in fp16
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from tests.bench import busy, machine, models, plots, report
from tests.bench.environments import Unavailable
from tests.bench.labelling import labelling
from tests.bench.overhead import overhead
from tests.bench.peers import PEERS, Peer
from tests.bench.places import IMAGES, PAGE, RESULTS, WORK
from tests.bench.serving import Effort, beside_a_batch, memory, serving, starting
from tests.bench.subjects import GPU_ENVIRONMENT, Subject, chosen_peers, json_of
from tests.support.places import ROOT

PARTS: Final = ("limit", "serve", "lanes", "labels", "overhead", "decode", "start", "memory")
FULL: Final = Effort(rounds=3, seconds=6.0, minutes=1.5)
QUICK: Final = Effort(rounds=1, seconds=0.5, minutes=0.05)
_WIDTH: Final = 160
"""Columns of the tables without a terminal."""
_LIMIT_PROGRAM: Final = ROOT / "tests" / "bench" / "matrix_limit.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the requested parts; return 1 if a part of our own was skipped, 0 if only peers were."""
    options = _options(arguments)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    say = Console(stderr=True, highlight=False, markup=False).print
    try:
        subjects = _subjects(options)
        peers = chosen_peers(options.peers)
    except Unavailable as exc:
        say(f"error: {exc}")
        return 1
    WORK.mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        say(f"model: {subject.bundle}")
    results = measure(subjects, peers, options, say)
    options.out.write_text(json.dumps(results, indent=1))
    report.print_to(console, results)
    say(f"wrote {options.out}")
    if options.page:
        report.write_page(options.page, results, plots.draw(results, options.page.parent / IMAGES.name))
        say(f"wrote {options.page}")
    return 1 if set(results["skipped"]) - {peer.name for peer in peers} else 0


def measure(
    subjects: Sequence[Subject], peers: Sequence[Peer], options: argparse.Namespace, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run the chosen parts in order; record the reason of a part that cannot run under `skipped`."""
    effort: Effort = options.effort
    light = Subject(models.DEMO, "fp16-stored", subjects[0].provider, subjects[0].python)
    # A model in fp16 is for a GPU; the demo model starts in any case.
    everyone = [light, *(subject for subject in subjects if subject.name != light.name)]
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "limit": lambda: _limit(subjects, effort, gpu=options.gpu),
        "serve": lambda: serving(subjects, peers, effort, say),
        "lanes": lambda: {subject.name: beside_a_batch(subject, effort) for subject in subjects},
        "labels": lambda: labelling(subjects[0], light, effort),
        "overhead": lambda: overhead(effort),
        "decode": lambda: json_of([sys.executable, "-m", "tests.bench.decoding", str(effort.seconds)]),
        "start": lambda: {subject.name: starting(subject, effort) for subject in everyone},
        "memory": lambda: {subject.name: memory(subject, effort) for subject in subjects},
    }
    suites, skipped = {}, {}
    for part in PARTS:
        if part in options.only:
            say(f"--- {part}")
            try:
                suites[part] = runs[part]()
            except Unavailable as exc:
                skipped[part] = str(exc)
                say(f"skipped: {exc}")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine.describe() | {"gpu": busy.name()},
        "effort": asdict(effort),
        "gpu": options.gpu,
        "subjects": [subject.name for subject in subjects],
        "models": [subject.model for subject in subjects],
        "suites": suites,
        "skipped": skipped | suites.get("serve", {}).get("skipped", {}),
    }


def _limit(subjects: Sequence[Subject], effort: Effort, *, gpu: bool) -> dict[str, Any]:
    # On a GPU, a torch that was installed for it: that of the plain peer.
    [plain] = chosen_peers(["transformers"])
    python = plain.environment.make() if gpu else Path(sys.executable)
    device = "cuda" if gpu else "cpu"
    matrix = json_of([str(python), str(_LIMIT_PROGRAM), device, str(effort.seconds)])
    return {
        "matrix": matrix,
        "encoders": {subject.name: subject.bare(effort.seconds, "encoder") for subject in subjects},
    }


def _subjects(options: argparse.Namespace) -> list[Subject]:
    """Return every model in every precision on every provider; the page describes the first."""
    python = options.python or (GPU_ENVIRONMENT.make() if options.gpu else Path(sys.executable))
    return [
        Subject(model, precision, provider, python)
        for model in options.models
        for precision in (["fp16-stored"] if model == models.DEMO else options.precisions)
        for provider in options.providers
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every_peer = ",".join(peer.name for peer in PEERS)
    parser.add_argument("--only", type=_list, default=list(PARTS), help=f"parts of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="everything once and briefly; the page stays as it is")
    parser.add_argument("--rounds", type=int, help=f"of each measurement; {FULL.rounds} by default")
    parser.add_argument("--seconds", type=float, help=f"of one measurement; {FULL.seconds:g} by default")
    parser.add_argument("--minutes", type=float, help=f"of load for memory; {FULL.minutes:g} by default")
    parser.add_argument("--gpu", action="store_true", help="the defaults for a GPU, in an environment of its own")
    parser.add_argument("--providers", type=_list, help="auto by default; cuda,tensorrt with --gpu")
    parser.add_argument("--python", type=Path, help="whose environment the service runs in; this one by default")
    parser.add_argument("--models", type=_list, help=f"of {', '.join([models.DEMO, *models.SIZES])}")
    parser.add_argument("--precisions", type=_list, help="of the bundles; fp32 by default, fp16 with --gpu")
    parser.add_argument("--peers", type=_list, help=f"{every_peer} by default; with --gpu, or 'none', no peers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go, as JSON")
    parser.add_argument("--page", type=Path, help="page to write them to; docs/benchmarks.md by default")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.only) - set(PARTS)):
        parser.error(f"unknown part {', '.join(unknown)}")
    base = QUICK if options.quick else FULL
    options.effort = Effort(
        options.rounds or base.rounds, options.seconds or base.seconds, options.minutes or base.minutes
    )
    options.models = options.models or (["vit-b-32", "vit-l-14"] if options.gpu else ["vit-b-32"])
    options.providers = options.providers or (["cuda", "tensorrt"] if options.gpu else ["auto"])
    options.precisions = options.precisions or (["fp16"] if options.gpu else ["fp32"])
    peers = options.peers or (["none"] if options.gpu else every_peer.split(","))
    options.peers = [name for name in peers if name != "none"]
    if options.page is None and not options.quick and not options.gpu:
        options.page = PAGE
    try:
        if options.page:
            report.around_results(options.page)  # fails now rather than after an hour
    except ValueError as exc:
        parser.error(str(exc))
    return options


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


if __name__ == "__main__":
    sys.exit(main())
