"""Damaged images: valid ones of every format, with bytes flipped, removed, inserted or moved."""

import random
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.support.pictures import encode, noise, quadrants


def seeds(name: str) -> list[bytes]:
    """Return small valid images of a format, one for each case of its decoder."""
    picture, flat = noise(24, 16), quadrants(48, 40)
    rgba = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 24, 4), dtype=np.uint8))
    deep = Image.fromarray(np.random.default_rng(2).integers(0, 65_536, (16, 24), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = [encode(picture, name), encode(flat, name)]
    match name:
        case "JPEG":
            found += [encode(picture, name, progressive=True), encode(flat.convert("CMYK"), name)]
            found += [encode(flat.convert("L"), name), encode(quadrants(200, 150), name, subsampling=2, exif=exif)]
        case "PNG":
            found += [encode(image, name) for image in (rgba, deep, flat.convert("P"), flat.convert("1"))]
            found += [encode(flat, name, exif=exif), encode(picture, name, save_all=True, append_images=[picture])]
        case "WEBP":
            found += [encode(picture, name, lossless=False), encode(rgba, name, lossless=False)]
            found += [encode(picture, name, save_all=True, append_images=[picture.rotate(180)], exif=exif)]
        case "GIF":
            found += [encode(flat, name, transparency=0), encode(flat, name, save_all=True, append_images=[picture])]
        case "BMP":
            found += [encode(image, name) for image in (flat.convert("P"), flat.convert("1"), rgba)]
        case "TIFF":
            ways = ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
            found += [encode(picture, name, compression=way) for way in ways]
            found += [encode(flat.convert("1"), name, compression="group4"), encode(deep, name), encode(rgba, name)]
        case "AVIF":
            found += [encode(rgba, name), encode(flat, name, exif=exif)]
    return found


def damaged(name: str, seed: int = 0) -> Iterator[bytes]:
    """Yield endless damaged images of a format, the same ones for the same seed."""
    chance = random.Random(f"{name} {seed}")
    good = seeds(name)
    while True:
        yield mutated(chance.choice(good), chance)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Change at least one byte."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        # Half of the damage is near the beginning, in the headers.
        at = chance.randrange(min(len(content), chance.choice((200, len(content)))))
        match chance.randrange(6):
            case 0:
                content[at] = chance.randrange(256)
            case 1:
                content[at : at + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", chance.randbytes(4)])
            case 2:
                del content[at : at + chance.randint(1, 20)]
            case 3:
                content[at:at] = chance.randbytes(chance.randint(1, 20))
            case 4:
                content[at:at] = content[at : at + chance.randint(1, 200)]
            case _:
                content[at] ^= 1 << chance.randrange(8)
        if not content:
            return b"\0"
    return bytes(content)
