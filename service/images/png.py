"""Reduces a PNG to the chunks that decide its pixels, and finds its transparent colour in 16 bits.

An ancillary chunk that cannot be read does not spoil the picture: text of any size, wrong checksums, contents too short
(PNG, third edition, 13.2; libpng and browsers pass over them too). Text and profiles are dropped before the decoder
unpacks them, so a bomb in them costs nothing. The control chunks of an animation are dropped too, since the picture
before the animation is its first frame, or shown in its place.
"""

import struct
import zlib
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image, ImageFile

from service.images.colours import MOST_PROFILE_BYTES

_HEAD: Final = struct.Struct(">I4s")
_CHECKSUM: Final = struct.Struct(">I")
_SIGNATURE_BYTES: Final = 8
_FRAME_BYTES: Final = 12  # length, kind and checksum around a chunk's content
_ANCILLARY: Final = 0x20  # a small first letter

BIT_DEPTH_AT: Final = 24  # the header chunk is always first
_COLOUR_TYPE_AT: Final = 25
_GREY, _COLOUR, _PALETTE = 0, 2, 3
_KEY_BYTES: Final = {_GREY: 2, _COLOUR: 6}

_COLOUR_BYTES: Final = {b"gAMA": 4, b"sRGB": 1}

_RAW_EXIF: Final = b"Raw profile type exif\0"
"""Keyword of EXIF as hexadecimal text, which ImageMagick wrote before PNG had a chunk for it."""
_MOST_RAW_EXIF: Final = 2**18
_LINES_BEFORE_RAW_EXIF: Final = 3


def without_metadata(data: bytes, *, colours: bool = False) -> bytes:
    """Return the PNG without chunks that decide no pixel; `data` itself if it has none, without a copy.

    Its orientation stays, as an eXIf chunk, and with `colours` what `colours.to_srgb` uses. Damaged critical chunks
    stay as they are.
    """
    view, runs, run_start = memoryview(data), list[bytes | memoryview](), 0
    position, entries, seen = _SIGNATURE_BYTES, 0, set[bytes]()
    while position + _HEAD.size <= len(data):
        length, kind = _HEAD.unpack_from(data, position)
        end = position + length + _FRAME_BYTES
        if kind == b"IDAT":
            seen.add(kind)
        elif kind == b"IEND" or not kind.isalpha():
            break
        elif kind == b"PLTE":
            entries = length // 3
        elif kind[0] & _ANCILLARY:
            replaced = _instead(kind, data, position, end, entries=entries, seen=seen, colours=colours)
            if replaced is not None:
                runs += view[run_start:position], replaced
                run_start = end
        position = end
    return b"".join([*runs, view[run_start:]]) if runs else data


def _instead(
    kind: bytes, data: bytes, start: int, end: int, *, entries: int, seen: set[bytes], colours: bool
) -> bytes | None:
    """Return the bytes in place of an ancillary chunk, None if it stays. Adds tRNS and eXIf to those `seen`."""
    content = memoryview(data)[start + _HEAD.size : end - _CHECKSUM.size]
    if kind in {b"tEXt", b"zTXt"}:
        if b"eXIf" in seen or bytes(content[: len(_RAW_EXIF)]) != _RAW_EXIF:
            return b""
        seen.add(b"eXIf")
        return _exif_chunk(content, packed=kind == b"zTXt")
    if kind == b"tRNS":
        used = not seen & {b"IDAT", b"tRNS"} and _is_key(data, len(content), entries)
    else:
        used = kind == b"eXIf" or (colours and b"IDAT" not in seen and _is_colour(kind, content))
    if not (used and _is_intact(data, start, end)):
        return b""
    seen.add(kind)
    return None


def _is_intact(data: bytes, start: int, end: int) -> bool:
    if end > len(data):
        return False
    kind_and_content = memoryview(data)[start + _CHECKSUM.size : end - _CHECKSUM.size]
    found: int = _CHECKSUM.unpack_from(data, end - _CHECKSUM.size)[0]
    return zlib.crc32(kind_and_content) == found


def _is_key(data: bytes, length: int, entries: int) -> bool:
    colour_type = data[_COLOUR_TYPE_AT] if len(data) > _COLOUR_TYPE_AT else _GREY
    return 0 < length <= entries if colour_type == _PALETTE else length == _KEY_BYTES.get(colour_type)


def _is_colour(kind: bytes, content: memoryview) -> bool:
    if kind != b"iCCP":
        return len(content) == _COLOUR_BYTES.get(kind)
    name, _, packed = bytes(content).partition(b"\0")
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed[1:], MOST_PROFILE_BYTES)
    except zlib.error:
        return False
    return bool(name and profile) and packed[:1] == b"\0" and not unpacker.unconsumed_tail


def _exif_chunk(content: memoryview, *, packed: bool) -> bytes:
    """Return EXIF in hexadecimal text as an eXIf chunk, nothing if it is damaged or too long."""
    text = bytes(content[len(_RAW_EXIF) : len(_RAW_EXIF) + _MOST_RAW_EXIF])
    try:
        if packed:  # after the byte of the compression method
            text = zlib.decompressobj().decompress(text[1:], _MOST_RAW_EXIF)
        exif = bytes.fromhex(b"".join(text.split(b"\n")[_LINES_BEFORE_RAW_EXIF:]).decode("ascii"))
    except (zlib.error, ValueError):
        return b""
    chunk = b"eXIf" + exif
    return _CHECKSUM.pack(len(exif)) + chunk + _CHECKSUM.pack(zlib.crc32(chunk))


def whiten_deep_key(image: Image.Image, data: bytes, key: tuple[int, ...]) -> None:
    """Make the pixels of a 16-bit colour white in place. Pillow keeps the high bytes, and the key is meant in all bits.

    Args:
        image: the decoded PNG of 16-bit colour, mode RGB.
        data: the PNG.
        key: the transparent colour, three samples of 16 bits.
    """
    found = _equal(image, [value >> 8 for value in key])
    if not found.any():
        return
    low: ImageFile.ImageFile = Image.open(BytesIO(data), formats=["PNG"])
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]  # takes the second byte of each sample
    low.load()
    found &= _equal(low, [value & 0xFF for value in key])
    image.paste((255, 255, 255), mask=Image.fromarray(found))


def _equal(image: Image.Image, colour: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return where the picture has the colour: bool `[height, width]`."""
    found = np.ones((image.height, image.width), np.bool_)
    for channel, value in enumerate(colour):
        found &= np.asarray(image.getchannel(channel)) == value
    return found
