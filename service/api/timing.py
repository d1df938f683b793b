"""The `Server-Timing` header of an answer."""

import time

from service.classification.types import Timings


def server_timing(started: float, timings: Timings | None) -> str:
    """Return the header: milliseconds in each stage and in total. `started` is a `time.perf_counter` value."""
    stages = {}
    if timings is not None:
        stages = {
            "decode": timings.decode_s,
            "queue": timings.queue_s,
            "text": timings.text_s,
            "image": timings.image_s,
            "score": timings.score_s,
        }
    stages["total"] = time.perf_counter() - started
    return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages.items())
