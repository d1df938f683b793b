"""Pictures for tests: encoded in every format, and headers that declare far too large images."""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, features

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
}
LOSSY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
FORMATS = LOSSLESS | LOSSY


def quadrants(width: int = 48, height: int = 32) -> Image.Image:
    """Return red, green, blue and yellow quarters, which no rotation or reflection preserves."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = (255, 255, 0)
    return Image.fromarray(pixels)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return random pixels, which reveal every detail of a resize."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, name: str, **options: Any) -> bytes:
    """Encode with Pillow, at the format's best quality."""
    stream = BytesIO()
    image.save(stream, name, **(FORMATS.get(name, {}) | options))
    return stream.getvalue()


def exif_of(*, orientation: int) -> bytes:
    """Return EXIF that holds an orientation, as a TIFF directory without a prefix."""
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def png_chunk(kind: bytes, content: bytes, *, intact: bool = True) -> bytes:
    """Write a chunk of a PNG, with a wrong checksum if it is not intact."""
    checksum = zlib.crc32(kind + content) ^ (not intact)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(
    width: int,
    height: int,
    rows: bytes,
    *,
    bit_depth: int = 8,
    colour_type: int = 2,
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Write any PNG, valid or not; `rows` are uncompressed filter bytes and samples."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    body = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, content) for kind, content in body)


def png_rows(samples: npt.NDArray[Any]) -> bytes:
    """Return samples `[height, …]` of 8 or 16 bits as unfiltered PNG rows."""
    big_endian = samples.astype(samples.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in big_endian)


def grey_tiff(width: int, height: int, strip: bytes, *, bits: int, photometric: int) -> bytes:
    """Write a little-endian, uncompressed grey TIFF; `photometric` 0 means that white is zero."""
    tags = {256: [width], 257: [height], 258: [bits], 259: [1], 262: [photometric], 277: [1], 278: [height]}
    return tiff([strip], tags)


def tiff(strips: Sequence[bytes], tags: dict[int, list[int]], *, order: str = "<", tiled: bool = False) -> bytes:
    """Write a TIFF of any tags; those of its strips, or tiles, are added. `order` is of the bytes, `<` or `>`."""
    places, body = list[int](), b""
    for strip in strips:
        places.append(8 + len(body))
        body += strip
    offsets, counts = (324, 325) if tiled else (273, 279)
    directory = b""
    for tag, values in sorted((tags | {offsets: places, counts: [len(strip) for strip in strips]}).items()):
        beside = len(values) == 1
        directory += struct.pack(f"{order}HHII", tag, 4, len(values), values[0] if beside else 8 + len(body))
        body += b"" if beside else struct.pack(f"{order}{len(values)}I", *values)
    count = struct.pack(f"{order}H", len(directory) // 12)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return head + body + count + directory + bytes(4)


def bmp_with_alpha(rgba: npt.NDArray[np.uint8]) -> bytes:
    """Write a BMP of 32 bits with a V5 header and a mask for alpha, from uint8 `[height, width, 4]`."""
    height, width, _ = rgba.shape
    pixels = rgba[::-1, :, [2, 1, 0, 3]].tobytes()
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    start = 14 + 124
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header.ljust(124, b"\0") + pixels


def animated_webp(size: tuple[int, int], frames: Sequence[tuple[int, int, Image.Image]]) -> bytes:
    """Write an animation without alpha; each frame has an even left and top, and a picture."""
    width, height = (side - 1 for side in size)
    body = b"WEBPVP8X" + struct.pack("<II", 10, 2) + width.to_bytes(3, "little") + height.to_bytes(3, "little")
    body += b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    for left, top, image in frames:
        numbers = (left // 2, top // 2, image.width - 1, image.height - 1, 100)
        frame = b"".join(number.to_bytes(3, "little") for number in numbers) + b"\0" + encode(image, "WEBP")[12:]
        body += b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bombs(side: int = 60_000) -> dict[str, bytes]:
    """Return for each format a few bytes whose header declares `side` · `side` pixels."""
    jpeg = bytearray(encode(quadrants(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = struct.pack(">HH", side, side)
    bmp = bytearray(encode(quadrants(), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    gif = bytearray(encode(quadrants(), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    frame_gif = bytearray(encode(quadrants(), "GIF"))
    frame = frame_gif.index(b",\0\0\0\0") + 5
    frame_gif[frame : frame + 4] = struct.pack("<HH", side, side)
    canvas = (side - 1).to_bytes(3, "little") * 2
    webp = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + canvas
    found = {
        "PNG": png(side, side, b""),
        "JPEG": bytes(jpeg),
        "BMP": bytes(bmp),
        "GIF": bytes(gif),
        "GIF by its frame": bytes(frame_gif),
        "WEBP": webp,
        "TIFF": grey_tiff(side, side, b"", bits=8, photometric=1),
    }
    if features.check("avif"):
        avif = bytearray(encode(quadrants(), "AVIF"))
        extent = avif.index(b"ispe") + 8
        avif[extent : extent + 8] = struct.pack(">II", side, side)
        found["AVIF"] = bytes(avif)
    return found
