"""Make JPEGs of given sizes from the example photos: their real texture makes decoding as costly as for photos."""

from io import BytesIO
from typing import Final

from PIL import Image, ImageOps

from tests.bench.places import EXAMPLES

USUAL: Final = (640, 480)
TWELVE_MEGAPIXELS: Final = (4_032, 3_024)
_QUALITY: Final = 90
_TINY: Final = (32, 24)


def jpegs(count: int, size: tuple[int, int] = USUAL) -> list[bytes]:
    """Return `count` different JPEGs of `size` (width, height), the same ones each time."""
    found = []
    sources = sorted(EXAMPLES.glob("*.jpg"))
    for number in range(count):
        with Image.open(sources[number % len(sources)]) as opened:
            picture = opened.convert("RGB")
        # Each further picture of a source uses another part of the photo, or its mirror image.
        turn = number // len(sources)
        if turn % 2:
            picture = ImageOps.mirror(picture)
        inset = 4 * (turn // 2)
        box = (inset, inset, picture.width - inset, picture.height - inset)
        out = BytesIO()
        ImageOps.fit(picture.crop(box), size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=_QUALITY)
        found.append(out.getvalue())
    return found


def tiny() -> bytes:
    """Return a picture that costs almost nothing, for figures that do not concern pictures."""
    return jpegs(1, _TINY)[0]
