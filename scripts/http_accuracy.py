"""Zero-shot accuracy of a running service, over HTTP, on labelled pictures in Parquet files.

    python scripts/http_accuracy.py --url http://127.0.0.1:8000 --held-out 25 data/cifar10-train.parquet

Each file's own class names are the labels. Pictures go to /v1/classify/batch as they are; nothing of the model is used
here. ``--held-out N`` takes the last of each N rows: those that a recipe with ``validation_every = N`` never trains on.
"""

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

import httpx
import pyarrow.parquet as pq

BATCH = 128


def main() -> int:
    """Measure each file and print a line for it, and its weakest classes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="Parquet files with the columns image and label")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service")
    parser.add_argument("--held-out", type=int, default=0, metavar="N", help="only the last of each N rows")
    parser.add_argument("--templates", default="default", help="a template set of the model")
    options = parser.parse_args()
    with httpx.Client(base_url=options.url, timeout=120) as client:
        for file in options.files:
            table = pq.read_table(file, columns=["image", "label"])
            rows = range(options.held_out - 1, len(table), options.held_out) if options.held_out else range(len(table))
            images = [table["image"][row].as_py() for row in rows]
            labels = [table["label"][row].as_py() for row in rows]
            started = time.monotonic()
            predictions = _classify(client, images, sorted(set(table["label"].to_pylist())), options.templates)
            seconds = time.monotonic() - started
            hits = defaultdict(list)
            for label, predicted in zip(labels, predictions, strict=True):
                hits[label].append(label == predicted)
            right = sum(map(sum, hits.values()))
            print(
                f"{file.name}: top-1 {right / len(labels):.2%} of {len(labels):,} pictures, {len(hits)} classes, "
                f"{len(labels) / seconds:.0f} pictures/s"
            )
            weakest = sorted(hits, key=lambda label: sum(hits[label]) / len(hits[label]))[:5]
            print("  weakest: " + ", ".join(f"{name} {sum(hits[name]) / len(hits[name]):.0%}" for name in weakest))
    return 0


def _classify(client: httpx.Client, images: list[bytes], labels: list[str], templates: str) -> list[str]:
    predicted = []
    for start in range(0, len(images), BATCH):
        parts = [("image", (f"{i}.jpg", data, "image/jpeg")) for i, data in enumerate(images[start : start + BATCH])]
        response = client.post(
            "/v1/classify/batch", files=parts, data={"labels": labels, "templates": templates, "top_k": "1"}
        )
        response.raise_for_status()
        predicted += [result["predictions"][0]["label"] for result in response.json()["results"]]
    return predicted


if __name__ == "__main__":
    sys.exit(main())
