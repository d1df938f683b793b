"""How near `fast` preprocessing comes to `exact`, and how much faster it is.

    python scripts/decode_agreement.py agree PHOTOS --bundle service/bundles/demo --margins 1 1.5 2 3
    python scripts/decode_agreement.py speed PHOTOS

PHOTOS is a folder of pictures; each is enlarged or reduced to three sizes and encoded as JPEG several ways. `agree`
prints the cosine of the vectors of both ways, by size and by margin (the least ratio of the decoded side to the final
one), and the difference of the pixels. `speed` prints medians of one thread's CPU time, beside those of CLIP's own
way. Pictures named `tiled` repeat the photo at its own scale, mirrored at the seams: large pictures with detail in
every pixel, which enlarged ones lack.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.table import Table

from service.images.decoding import DEFAULT_LIMITS, Undecoded, decode, open_rgb
from service.model.arrays import Pixels
from service.model.engine.engine import OnnxEngine
from service.model.loading import load_bundle
from service.model.manifest import DEMO_BUNDLE, ImageSection
from service.model.resizing import covering_size

SIZES = ((640, 480), (1920, 1080), (4032, 3024))
ENCODINGS = ((60, "4:2:0"), (80, "4:2:0"), (95, "4:4:4"))  # quality and subsampling

Judge: TypeAlias = tuple[str, ImageSection, Callable[[Pixels], npt.NDArray[np.float32]]]
"""A name, its preprocessing, and a function from pixels `[batch, height, width, 3]` to vectors `[batch, dim]`."""


def main() -> None:
    """Run the requested measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("measure", choices=("agree", "speed"))
    parser.add_argument("photos", type=Path)
    parser.add_argument("--bundle", type=Path, nargs="+", default=[DEMO_BUNDLE])
    parser.add_argument("--margins", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--side", type=int, default=224, help="side of the encoder's input, for speed")
    options = parser.parse_args()
    photos = sorted(path for path in options.photos.iterdir() if path.suffix in {".jpg", ".png"})
    if options.measure == "speed":
        speed(photos, options.side)
        return
    judges: list[Judge] = []
    for path in options.bundle:
        bundle = load_bundle(path)
        encode = OnnxEngine.load(bundle, "cpu").encode_images
        judges.append((f"{bundle.manifest.name}, {bundle.manifest.image.height} pixels", bundle.manifest.image, encode))
    agree(photos, judges, options.margins)


def agree(photos: Sequence[Path], judges: Sequence[Judge], margins: Sequence[float]) -> None:
    """Print the distance of the vectors and pixels of `fast` from those of `exact`."""
    found: dict[tuple[str, str, float], list[tuple[float, float, str]]] = {}
    for name, kind, data in variants(photos):
        ways: dict[ImageSection, list[Pixels]] = {}
        for judge, section, encode in judges:
            if section not in ways:
                ways[section] = _every_way(data, section, margins)
            different, which = np.unique(np.stack(ways[section]), axis=0, return_inverse=True)
            vectors = encode(different)[which]
            exact = ways[section][0].astype(np.int16)
            for margin, pixels, vector in zip(margins, ways[section][1:], vectors[1:], strict=True):
                levels = float(np.abs(pixels - exact).mean())
                found.setdefault((judge, kind, margin), []).append((float(vector @ vectors[0]), levels, name))
    table = Table(box=None)
    titles = ("encoder", "pictures", "margin", "number", "minimum", "1 %", "median", "mean levels", "most", "worst")
    for title in titles:
        table.add_column(title, justify="left" if title in {"encoder", "pictures", "worst"} else "right")
    for (judge, kind, margin), rows in sorted(found.items()):
        least, low, middle = np.percentile([cosine for cosine, _, _ in rows], (0, 1, 50))
        cosines = (f"{least:.5f}", f"{low:.5f}", f"{middle:.5f}")
        differences = [levels for _, levels, _ in rows]
        last = (f"{statistics.mean(differences):.2f}", f"{max(differences):.2f}", min(rows)[2])
        table.add_row(judge, kind, f"{margin:g}", str(len(rows)), *cosines, *last)
    Console(width=150).print(table)


def _every_way(data: bytes, section: ImageSection, margins: Sequence[float]) -> list[Pixels]:
    """Decode `exact`, then `fast` with each margin; margins with the same scale share one decode."""
    fast: dict[int, Pixels] = {}
    answer = [decode(data, section)]
    for margin in margins:
        image = Undecoded(data, section, DEFAULT_LIMITS, "fast", margin=margin)
        if image.pixels not in fast:
            fast[image.pixels] = image.decode()
        answer.append(fast[image.pixels])
    return answer


def speed(photos: Sequence[Path], side: int) -> None:
    """Print the medians of the CPU time of each way, in milliseconds."""
    section = square(side)
    ways: dict[str, Callable[[bytes], Pixels]] = {
        "reference": lambda data: reference(data, side),
        "exact": lambda data: decode(data, section),
        "fast": lambda data: decode(data, section, preprocessing="fast"),
    }
    spent: dict[tuple[str, str], list[float]] = {}
    for name, kind, data in variants(photos):
        for way, work in ways.items():
            started = time.thread_time()
            work(data)
            spent.setdefault((f"{kind} {name.split()[-1]}", way), []).append(1e3 * (time.thread_time() - started))
    table = Table(box=None)
    for title in ("pictures", "number", *(f"{way}, ms" for way in ways), "reference / fast"):
        table.add_column(title, justify="left" if title == "pictures" else "right")
    for kind in sorted({kind for kind, _ in spent}):
        medians = [statistics.median(spent[kind, way]) for way in ways]
        ratio = f"{medians[0] / medians[-1]:.1f}"
        table.add_row(kind, str(len(spent[kind, "fast"])), *(f"{median:.1f}" for median in medians), ratio)
    Console(width=150).print(table)


def reference(data: bytes, side: int) -> Pixels:
    """Resize and crop like torchvision's Resize and CenterCrop in CLIP's own code."""
    image = Image.open(BytesIO(data)).convert("RGB")
    size = covering_size(image.size, (side, side))
    left, top = (round((scaled - side) / 2) for scaled in size)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    return np.array(resized.crop((left, top, left + side, top + side)))


def variants(photos: Sequence[Path]) -> Iterator[tuple[str, str, bytes]]:
    """Yield (description, kind, JPEG bytes) of each photo in each size and encoding."""
    for path in photos:
        photo = open_rgb(path.read_bytes())
        for width, height in SIZES:
            shown = {f"{width}x{height}": _filling(photo, width, height)}
            if min(photo.size) < height:
                shown[f"{width}x{height} tiled"] = _tiled(photo, width, height)
            for kind, picture in shown.items():
                for quality, subsampling in ENCODINGS:
                    stream = BytesIO()
                    picture.save(stream, "JPEG", quality=quality, subsampling=subsampling)
                    yield f"{path.stem} {quality} {subsampling}", kind, stream.getvalue()


def square(side: int) -> ImageSection:
    """Return CLIP's preprocessing for a square input."""
    half = (0.5, 0.5, 0.5)
    return ImageSection(
        height=side, width=side, resize="shortest", crop="center", interpolation="bicubic", mean=half, std=half
    )


def _filling(photo: Image.Image, width: int, height: int) -> Image.Image:
    """Return the photo's centre in this shape, reduced, or enlarged with a camera's noise."""
    scale = min(photo.width / width, photo.height / height)
    left, top = (photo.width - scale * width) / 2, (photo.height - scale * height) / 2
    box = (max(0.0, left), max(0.0, top), photo.width - max(0.0, left), photo.height - max(0.0, top))
    resized = photo.resize((width, height), Image.Resampling.LANCZOS, box=box)
    if scale >= 1:
        return resized
    noise = np.random.default_rng(0).normal(0, 2, (height, width, 1)).astype(np.float32)
    return Image.fromarray((np.asarray(resized) + noise).clip(0, 255).astype(np.uint8))


def _tiled(photo: Image.Image, width: int, height: int) -> Image.Image:
    pixels = np.asarray(photo)[:height, :width]
    missing = (height - pixels.shape[0], width - pixels.shape[1])
    return Image.fromarray(np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), "reflect"))


if __name__ == "__main__":
    main()
