"""Time decoding and resizing of one picture on one thread, CLIP's reference way and the fast one.

    python -m tests.bench.decoding SECONDS

Prints the median seconds by picture size as JSON. For the agreement of both ways' vectors, see
scripts/decode_agreement.py.
"""

import json
import statistics
import sys
import time
from typing import Final

from service.images.decoding import decode
from service.model.choices import Preprocessing
from service.model.manifest import ImageSection
from tests.bench import pictures

SIZES: Final = (pictures.USUAL, (1_920, 1_080), pictures.TWELVE_MEGAPIXELS)
WAYS: Final[tuple[Preprocessing, ...]] = ("exact", "fast")
_PICTURES: Final = 3
_SECTION: Final = ImageSection(
    height=224,
    width=224,
    resize="shortest",
    interpolation="bicubic",
    crop="center",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)


def measure(seconds: float) -> dict[str, dict[str, float]]:
    """Measure each size for about `seconds`, the ways in turns."""
    found: dict[str, dict[str, float]] = {}
    for size in SIZES:
        sources = pictures.jpegs(_PICTURES, size)
        runs: dict[Preprocessing, list[float]] = {way: [] for way in WAYS}
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(runs[WAYS[-1]]) < _PICTURES:
            source = sources[len(runs[WAYS[-1]]) % _PICTURES]
            for way in WAYS:
                started = time.perf_counter()
                decode(source, _SECTION, preprocessing=way)
                runs[way].append(time.perf_counter() - started)
        found["x".join(map(str, size))] = {way: statistics.median(times) for way, times in runs.items()}
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(float(sys.argv[1]))) + "\n")
