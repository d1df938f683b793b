"""Measure the latency of single requests, with and without a running batch.

    python -m tests.bench.lanes --url http://127.0.0.1:8000 --image examples/cat.jpg

Sends single requests at an even rate without waiting for earlier ones, so a stall delays every request that meets
it: first alone, then while tars of the same picture are classified one after the other.
"""

import argparse
import asyncio
import io
import json
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

LABELS = ("cat", "dog", "cup", "car", "tree", "house", "boat", "bird", "chair", "flower")
_OK = 200
_PATIENCE_S = 120.0


@dataclass
class Batches:
    """Counts the answers of the batches; `answered` is set at every answer."""

    images: int = 0
    errors: int = 0
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self) -> None:
        """Wait for the next answer."""
        self.answered.clear()
        async with asyncio.timeout(_PATIENCE_S):
            await self.answered.wait()


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def archive_of(image: bytes, count: int) -> bytes:
    """Return a tar with `count` copies of the picture."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number in range(count):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
    return stream.getvalue()


async def singles(client: httpx.AsyncClient, image: bytes, rate: float, seconds: float) -> tuple[list[float], int]:
    """Return the latencies in seconds of answered requests, from their due times; and the number of refused ones."""
    latencies: list[float] = []
    refused = 0

    async def one(due: float) -> None:
        nonlocal refused
        answer = await client.post(
            "/v1/classify", content=image, params={"labels": LABELS}, headers={"content-type": "image/jpeg"}
        )
        if answer.status_code == _OK:
            latencies.append(time.perf_counter() - due)
        else:
            refused += 1

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(due))
    return latencies, refused


async def batches(client: httpx.AsyncClient, archive: bytes, done: Batches) -> None:
    """Classify the archive again and again, until cancelled."""
    headers = {"content-type": "application/x-tar", "accept": "application/x-ndjson"}
    request = {"content": archive, "params": {"labels": LABELS}, "headers": headers}
    while True:
        async with client.stream("POST", "/v1/classify/batch", **request) as answer:  # type: ignore[arg-type]
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                done.errors += "error" in json.loads(line)
                done.images += 1
                done.answered.set()


def shown(latencies: Sequence[float], refused: int) -> dict[str, float]:
    """Summarise latencies, in milliseconds."""
    return {
        "answered": len(latencies),
        "refused": refused,
        "p50_ms": round(percentile(latencies, 0.50) * 1000, 1),
        "p99_ms": round(percentile(latencies, 0.99) * 1000, 1),
        "max_ms": round(max(latencies) * 1000, 1),
    }


async def measure(
    url: str, image: bytes, *, rate: float, seconds: float, batch_images: int, at_once: int
) -> dict[str, dict[str, float]]:
    """Measure single requests `alone`, then `beside` batches; report the batches' images a second and errors."""
    archive = archive_of(image, batch_images)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE_S, limits=limits, trust_env=False) as client:
        await singles(client, image, rate, min(2.0, seconds))
        alone = shown(*await singles(client, image, rate, seconds))
        done = Batches()
        running = [asyncio.create_task(batches(client, archive, done)) for _ in range(at_once)]
        await asyncio.sleep(1)
        await done.next()
        images, began = done.images, time.perf_counter()
        beside = shown(*await singles(client, image, rate, seconds))
        if done.images == images:
            await done.next()  # a slow machine answers none in a short time; its rate is not 0
        per_s = (done.images - images) / (time.perf_counter() - began)
        for task in running:
            failed = task.done()
            task.cancel()
            if failed:
                task.result()
        await asyncio.gather(*running, return_exceptions=True)
    return {"alone": alone, "beside": {**beside, "batch_images_per_s": round(per_s, 1), "errors": done.errors}}


def main() -> None:
    """Run by the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--image", type=Path, default=Path("examples/cat.jpg"))
    parser.add_argument("--rate", type=float, default=10.0, help="single requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each condition")
    parser.add_argument("--batch-images", type=int, default=2_000, help="images in an archive")
    parser.add_argument("--batches", type=int, default=1, help="batch requests at the same time")
    options = parser.parse_args()
    image = options.image.read_bytes()
    found = asyncio.run(
        measure(
            options.url,
            image,
            rate=options.rate,
            seconds=options.seconds,
            batch_images=options.batch_images,
            at_once=options.batches,
        )
    )
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
