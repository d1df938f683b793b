"""Decode many damaged images: expect only the service's own errors, and no growth of memory.

    python -m tests.bench.damaged_images --images 100000

Prints the number of refused images, the slowest, and the resident memory after each tenth. Exits with 1 after another
exception, or if memory grew by more than 32 MiB after the first tenth.
"""

import argparse
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Final, get_args

from service.errors import InvalidImage, UnsupportedImageFormat
from service.images.decoding import ImageLimits, decode
from service.images.formats import FORMATS
from service.model.choices import Preprocessing
from service.model.manifest import ImageSection
from tests.support.damaged import damaged

_MOST_GROWTH_MIB: Final = 32
_LIMITS: Final = ImageLimits(max_pixels=1_000_000)
_SECTION: Final = ImageSection(
    height=32, width=32, resize="shortest", crop="center", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
)


def main() -> int:
    """Decode the requested number of images; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sources = itertools.cycle([damaged(name, options.seed) for name in FORMATS])
    ways = itertools.cycle(get_args(Preprocessing))
    refused, foreign, slowest_s, memory = 0, 0, 0.0, []
    for number, source in zip(range(options.images), sources, strict=False):
        data, started = next(source), time.perf_counter()
        try:
            decode(data, _SECTION, _LIMITS, next(ways))
        except (InvalidImage, UnsupportedImageFormat):
            refused += 1
        except Exception as exc:  # noqa: BLE001 - what comes here is what is looked for
            foreign += 1
            path = Path(f"damaged-{options.seed}-{number}")
            path.write_bytes(data)
            print(f"{exc!r}: see {path}")  # noqa: T201
        slowest_s = max(slowest_s, time.perf_counter() - started)
        if (number + 1) % max(1, options.images // 10) == 0:
            memory.append(_resident_mib())
    growth = memory[-1] - memory[0]
    print(f"{options.images} images, {refused} refused, {foreign} foreign exceptions, slowest {slowest_s:.2f} s")  # noqa: T201
    print(f"resident MiB {', '.join(f'{value:.0f}' for value in memory)}; growth {growth:.1f}")  # noqa: T201
    return int(foreign > 0 or growth > _MOST_GROWTH_MIB)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
