"""Time a bundle's image encoder on several providers in turn, and show that threads may share a session.

    python -m tests.bench.engines BUNDLE cpu openvino openvino/bf16 --batches 1 8 32

A round runs every provider once, so that other work on the machine slows all of them alike; the figures are medians.
Instead of comparing the bundle's probes, prints the cosine of the vectors with those of the first provider.
"""

import argparse
import resource
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from service.errors import ConfigurationError, ProviderUnavailable
from service.model.engine.engine import OnnxEngine
from service.model.engine.providers import resolve
from service.model.loading import Bundle, load_bundle

_TOLERANCE = 1e-5


def main() -> int:
    """Print a table; return 1 if threads got different answers from one thread alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("providers", nargs="+", help="names, with /bf16 behind openvino where that is meant")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of one run")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of CPU time, for a machine that is busy")
    parser.add_argument("--stress", type=int, default=0, help="runs from four threads at once, in mixed batches")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    bundle = load_bundle(options.bundle)
    table = Table(box=None)
    for title in (
        "provider",
        "load",
        "first run",
        *(f"batch {batch}" for batch in options.batches),
        "cosine",
        "memory",
    ):
        table.add_column(title, justify="left" if title == "provider" else "right")
    engines, starts = {}, {}
    for name in options.providers:
        try:
            engines[name], starts[name] = _open(bundle, name, options.threads)
        except (ProviderUnavailable, ConfigurationError) as exc:
            print(f"left out: {name}: {exc.detail}", file=sys.stderr)  # noqa: T201
    if not engines:
        return 1
    pictures = {batch: _pictures(bundle, batch) for batch in options.batches}
    times: dict[tuple[str, int], list[float]] = {}
    for batch, inputs in pictures.items():
        for _ in range(options.rounds):
            for name, engine in engines.items():
                started = clock()
                engine.encode_images(inputs)
                times.setdefault((name, batch), []).append(clock() - started)
    sample = pictures[options.batches[0]]
    reference = next(iter(engines.values())).encode_images(sample)
    for name, engine in engines.items():
        rates = [f"{batch / statistics.median(times[name, batch]):.1f} /s" for batch in options.batches]
        cosine = float((engine.encode_images(sample) * reference).sum(axis=1).min())
        load, first, memory = starts[name]
        seconds = f"{load:.2f} s", f"{first:.2f} s"
        table.add_row(f"{name} ({engine.precision})", *seconds, *rates, f"{cosine:.6f}", f"{memory / 2**20:.0f} MiB")
    Console().print(table)
    wrong = sum([_wrong_answers(bundle, engine, options.stress) for engine in engines.values()])
    if options.stress:
        print(f"{options.stress} runs of each from four threads: {wrong} wrong answers")  # noqa: T201
    return 1 if wrong else 0


def _open(bundle: Bundle, name: str, threads: int | None) -> tuple[OnnxEngine, tuple[float, float, int]]:
    """Return an engine, the seconds of its load and of its first run, and the growth of the peak memory in bytes."""
    base, _, compute = name.partition("/")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    provider = resolve(base, compute="bf16" if compute == "bf16" else "fp32")
    engine = OnnxEngine.load(bundle, replace(provider, second=None), threads=threads, force_precision=True)
    loaded = time.perf_counter()
    engine.warm()
    first = time.perf_counter() - loaded
    return engine, (
        loaded - started,
        first,
        1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
    )


def _pictures(bundle: Bundle, batch: int) -> npt.NDArray[np.uint8]:
    image = bundle.manifest.image
    return np.random.default_rng(batch).integers(0, 256, (batch, image.height, image.width, 3), dtype=np.uint8)


def _wrong_answers(bundle: Bundle, engine: OnnxEngine, runs: int) -> int:
    """Count batches of pictures and texts that differ from the results of one thread alone."""
    text = bundle.manifest.text
    tokens = np.random.default_rng(0).integers(3, 200, (4, text.max_length))
    # Use the whole length if it is fixed; else cut the text, and end it there.
    lengths = (text.max_length,) if text.padding == "fixed" else (max(4, text.min_length), 9, 16)
    inputs: list[npt.NDArray[np.int64] | npt.NDArray[np.uint8]] = [_pictures(bundle, batch) for batch in (1, 2, 3)]
    for batch, length in enumerate(lengths, start=1):
        ids = tokens[:batch, :length].copy()
        ids[:, -1] = text.end_of_text_id
        inputs.append(ids)

    def encode(turn: int) -> npt.NDArray[np.float32]:
        batch = inputs[turn % len(inputs)]
        return engine.encode_images(batch) if batch.dtype == np.uint8 else engine.encode_texts(batch)  # type: ignore[arg-type]

    if not runs:
        return 0
    alone = [encode(turn) for turn in range(len(inputs))]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(encode, range(runs))
        return sum(
            not np.allclose(answer, alone[turn % len(inputs)], atol=_TOLERANCE) for turn, answer in enumerate(answers)
        )


if __name__ == "__main__":
    sys.exit(main())
