"""Train the same small model on a raw pool and on what curation keeps of it, at equal pairs seen, and compare.

Run by ``make it-pays``. Wanted are ten points more on held-out pictures; docs/curation.md has the result.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import pyarrow.dataset as ds
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from tests.bench.pays_pool import GROUP_ROWS, read_pictures, write_held_out, write_pool
from tests.support.places import ROOT

WANTED: Final = 10.0
"""Points."""
STAGES: Final = ("match", "filter", "dedup", "balance")
RAW, CURATED = "raw", "curated"
MUON: Final = 40 / 3
"""Muon's learning rate, as a multiple of AdamW's."""
OWN_LIST: Final = "curated, own list"
"""Arm whose queries are WordNet's and the pool's own words, not the classes."""

_SAME: Final = ("things", "others", "pool", "held_out", "most", "batch")
"""Options that a folder keeps."""
_CURATION: Final = {
    "match": '[match]\nqueries = "queries.tsv"\n',
    "filter": "[filter]\nimages = true\nshorter_side = 16\n",
    "dedup": "[dedup]\n",
    "balance": "[balance]\nmost = {most}\n",
}
_TRAINING: Final = """
name = "it-pays"
seed = {seed}
log_every = 50
checkpoint_every = 100000

[data]
files = ["pairs.parquet"]
validation_every = 0
shuffle_window = 1000
workers = 0

[augment]
crop_area = [1.0, 1.0]
shift = 0.125
flip = true

[captions]
templates = ["{{}}"]
class_name_share = 0

[model]
embed_dim = 64

[model.image]
kind = "residual_conv"
image_size = 32
stem = "strided"
stem_width = 24
widths = [48, 96]

[model.text]
vocab_size = 1024
context_length = 24
width = 64
layers = 1
heads = 2

[optim]
epochs = {epochs}
batch_size = {batch}
lr = {rate}
muon_lr = {muon_rate}
weight_decay = 0.1
warmup_steps = {warmup}
clip_grad_norm = 5.0
precision = "fp32"
"""


@dataclass(frozen=True)
class Budget:
    """Steps of a batch size, and how a set of pairs gives them: `rows` of it, each seen `epochs` times."""

    steps: int
    batch: int
    rows: int
    epochs: int


def budget(steps: int, pairs: int, batch: int) -> Budget:
    """Divide steps into whole epochs, as few as the pairs allow."""
    most = pairs // batch
    if not most:
        raise SystemExit(f"{pairs} pairs are left, fewer than a batch of {batch}; enlarge --pool")
    epochs = next(count for count in range(1, steps + 1) if steps % count == 0 and steps // count <= most)
    return Budget(steps, batch, steps // epochs * batch, epochs)


def anyclass_export(*arguments: object) -> None:
    """Run the command to its end, on one core."""
    done = subprocess.run(
        [sys.executable, "-m", "model_export", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(f"anyclass-export {' '.join(map(str, arguments))}\n{done.stderr}")


def curated(folder: Path, name: str, stages: tuple[str, ...], most: int, wordnet: Path | None = None) -> Path:
    """Curate the pool by these stages, with the classes or WordNet as queries; return the folder of the shards."""
    recipe = folder / f"{name}.toml"
    sections = [_CURATION[stage].format(most=most) for stage in stages]
    if wordnet:
        texts = [f"pool/{path.name}" for path in sorted((folder / "pool").glob("*.parquet"))]
        sections[0] = f'[queries]\ntext = {json.dumps(texts)}\nwordnet = "{wordnet.resolve()}"\n[match]\n'
    recipe.write_text('[data]\nfiles = ["pool"]\n' + "".join(sections), "utf-8")
    anyclass_export("curate", "run", recipe, "--out", folder / name)
    return folder / name


def trained(folder: Path, data: Path, arm: str, share: Budget, *, seed: int, rate: float) -> dict[str, Any]:
    """Train on the first rows of the data, and measure the bundle; a run that has its figures is not repeated."""
    run = folder / "runs" / f"{arm.replace(', ', '-').replace(' ', '-')}-{share.steps}-{seed}-{rate}"
    figures, recipe = run / "accuracy.json", run / "recipe.toml"
    if not figures.exists():
        run.mkdir(parents=True, exist_ok=True)
        table = ds.dataset(sorted(data.glob("*.parquet"))).to_table(columns=["id", "image", "text"])
        table = table.sort_by("id").slice(0, share.rows)
        pq.write_table(table, run / "pairs.parquet", row_group_size=GROUP_ROWS)
        warmup = max(1, share.steps // 10)
        optim = {"epochs": share.epochs, "batch": share.batch, "rate": rate, "muon_rate": round(rate * MUON, 6)}
        recipe.write_text(_TRAINING.format(seed=seed, warmup=warmup, **optim), "utf-8")
        anyclass_export("train", recipe, "--data", run, "--out", run / "run", "--threads", 1, "--device", "cpu")
        anyclass_export("export", run / "run", run / "bundle", "--force")
        anyclass_export(
            *("evaluate", run / "bundle", "--data", folder / "held-out.parquet", "--templates", "default"),
            *("--threads", 1, "--json", figures),
        )
        (run / "pairs.parquet").unlink()
    metrics = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    return {
        "arm": arm,
        "seed": seed,
        "rate": rate,
        "pairs_seen": share.steps * share.batch,
        "epochs": share.epochs,
        "top1": json.loads(figures.read_text("utf-8"))["template_sets"]["default"]["top1"],
        "training_seconds": max(line.get("seconds", 0) for line in metrics),
    }


def begun(folder: Path, options: dict[str, str]) -> bool:
    """Return whether the folder has a pool already; end if its options are others."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "options.json"
    if not stamp.exists():
        stamp.write_text(json.dumps(options), "utf-8")
    elif json.loads(stamp.read_text("utf-8")) != options:
        raise SystemExit(f"{folder}: holds a comparison with other options ({stamp}); name another folder")
    return (folder / "queries.tsv").exists()


def kinds(folder: Path) -> dict[str, int]:
    """Count the pairs of each kind."""
    return dict(Counter(ds.dataset(sorted(folder.glob("*.parquet"))).to_table(columns=["kind"])["kind"].to_pylist()))


def summary(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each arm and number of pairs seen the mean and the range of its seeds, in percent.

    Each has the learning rate that serves it best: a rate that suits one arm and not the other would decide, instead of
    the data.
    """
    found: dict[tuple[str, int], dict[float, list[float]]] = {}
    for run in results["runs"]:
        rates = found.setdefault((run["arm"], run["pairs_seen"]), {})
        rates.setdefault(run["rate"], []).append(100 * run["top1"])
    rows = []
    for (arm, seen), rates in found.items():
        rate, tops = max(rates.items(), key=lambda each: statistics.mean(each[1]))
        row = {"arm": arm, "pairs_seen": seen, "seeds": len(tops), "rate": rate, "mean": statistics.mean(tops)}
        rows.append({**row, "least": min(tops), "most": max(tops)})
    return rows


def gain(results: dict[str, Any]) -> float:
    """Return the points between the means of both arms at the most pairs seen."""
    rows = summary(results)
    last = max(row["pairs_seen"] for row in rows)
    mean = {row["arm"]: row["mean"] for row in rows if row["pairs_seen"] == last}
    return float(mean[CURATED] - mean[RAW])


def show(results: dict[str, Any], console: Console) -> None:
    """Print the make-up of the pool, and the accuracies."""
    pool, kept = results["pool"], results["kept"]
    made = Table("kind", "pool", "share", *kept)
    for kind, pairs in sorted(pool.items(), key=lambda item: -item[1]):
        left = [f"{counts.get(kind, 0):,}" for counts in kept.values()]
        made.add_row(kind, f"{pairs:,}", f"{pairs / sum(pool.values()):.1%}", *left)
    made.add_row("all", f"{sum(pool.values()):,}", "", *[f"{sum(counts.values()):,}" for counts in kept.values()])
    console.print(made)
    table = Table("trained on", "pairs seen", "seeds", "learning rate", "top-1", "range")
    for row in sorted(summary(results), key=lambda row: row["pairs_seen"]):
        start = row["arm"], f"{row['pairs_seen']:,}", str(row["seeds"]), str(row["rate"])
        table.add_row(*start, f"{row['mean']:.1f}%", f"{row['least']:.1f} to {row['most']:.1f}")
    console.print(table)
    console.print(f"curated is {gain(results):+.1f} points from raw (wanted: {WANTED:+.0f})")


def draw(results: dict[str, Any], path: Path) -> None:
    """Plot accuracy over pairs seen: the mean of each arm, and the range of its seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    rows = summary(results)
    colours = {RAW: "#8a8a8a", CURATED: "#1f5fa8"}
    others = iter(("#e08a3c", "#5aa469", "#b35d8c", "#d4b106"))
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["pairs_seen"])
        seen, mean, least, most = ([row[key] for row in mine] for key in ("pairs_seen", "mean", "least", "most"))
        colour = colours.get(arm) or next(others)
        axes.plot(seen, mean, marker="o" if arm in colours else "D", color=colour, label=arm)
        axes.fill_between(seen, least, most, color=colour, alpha=0.2, linewidth=0)
    chance = 100 / results["classes"]
    axes.axhline(chance, linestyle=":", color="black", linewidth=1, label="by chance")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("pairs seen in training")
    axes.set_ylabel(f"zero-shot top-1 of {results['held_out']:,} held-out pictures, %")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, format="png", metadata={"Software": None})


def main() -> None:
    """Make the pool, curate it, train on both, and write it-pays.json and it-pays.png."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", type=Path, help="folder of Parquet files with the columns image and label")
    parser.add_argument("out", type=Path, help="folder to write; finished runs in it are not repeated")
    parser.add_argument("--things", default="cifar10-train.parquet", help="file of the classes")
    parser.add_argument("--others", default="cifar100-train.parquet", help="file of other pictures")
    parser.add_argument("--pool", type=int, default=80_000, help="pairs of the pool, besides copies")
    parser.add_argument("--held-out", type=int, default=200, help="pictures of each class")
    parser.add_argument("--most", type=int, default=800, help="pairs of a query after the balance")
    parser.add_argument("--steps", type=int, nargs="+", default=[160, 320, 640])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 1e-3], help="each arm shows its best one")
    parser.add_argument("--stages", action="store_true", help="train after each stage too, one seed, most steps")
    parser.add_argument("--wordnet", type=Path, help=f"folder of WordNet: train on '{OWN_LIST}' too, likewise")
    options = parser.parse_args()
    folder: Path = options.out
    console = Console()
    began = time.monotonic()
    if not begun(folder, {key: str(value) for key, value in vars(options).items() if key in _SAME}):
        pictures = read_pictures(options.data / options.things, options.data / options.others, options.held_out)
        write_pool(folder / "pool", pictures, options.pool, seed=0)
        write_held_out(folder / "held-out.parquet", pictures)
        queries = "".join(f"{name}\n" for name in pictures.things)
        (folder / "queries.tsv").write_text(queries, "utf-8")  # last: says that the pool is whole
    arms = {RAW: folder / "pool"}
    for count in range(1, 4) if options.stages else ():
        name = ", ".join(STAGES[:count])
        arms[name] = curated(folder, "-".join(STAGES[:count]), STAGES[:count], options.most)
    arms[CURATED] = curated(folder, CURATED, STAGES, options.most)
    if options.wordnet:
        arms[OWN_LIST] = curated(folder, "own-list", STAGES, options.most, options.wordnet)
    classes = len((folder / "queries.tsv").read_text("utf-8").splitlines())
    results: dict[str, Any] = {
        "pool": kinds(arms[RAW]),
        "kept": {arm: kinds(data) for arm, data in arms.items() if arm != RAW},
        "classes": classes,
        "held_out": classes * options.held_out,
        "curation_seconds": round(time.monotonic() - began),
        "runs": [],
    }
    both = {RAW, CURATED}
    every = product(range(options.seeds), sorted(options.steps), options.rates, arms)
    for seed, steps, rate, arm in sorted(every, key=lambda each: each[3] not in both):
        if arm not in both and (seed or steps != max(options.steps)):
            continue
        rows = sum(pq.read_metadata(path).num_rows for path in arms[arm].glob("*.parquet"))
        share = budget(steps, rows, options.batch)
        run = trained(folder, arms[arm], arm, share, seed=seed, rate=rate)
        results["runs"].append(run)
        console.print(
            f"{arm}, {run['pairs_seen']:,} pairs seen, seed {seed}, rate {rate}: {run['top1']:.1%}", highlight=False
        )
        (folder / "it-pays.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    draw(results, folder / "it-pays.png")
    show(results, console)


if __name__ == "__main__":
    main()
