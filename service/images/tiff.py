"""Recognises camera raw files among TIFFs, and mends what Pillow reads wrong: samples in planes of their own.

Tags are those of TIFF 6.0, of DNG 1.7 and of Exif.
"""

import struct
from io import BytesIO
from typing import Final, NamedTuple

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from service.errors import InvalidImage
from service.images.formats import unsupported

_SUBFILE_TYPE, _BITS, _COMPRESSION, _PHOTOMETRIC, _MAKE = 254, 258, 259, 262, 271
_FILL_ORDER, _SAMPLES, _PLANES, _SUB_DIRECTORIES, _SAMPLE_FORMAT, _DNG_VERSION = 266, 277, 284, 330, 339, 50706
_UNCOMPRESSED, _SEPARATE, _REVERSED, _SIGNED = 1, 2, 2, 2
_CMYK, _LAB = 5, 8
_REDUCED: Final = 1
_OF_CAMERAS: Final = frozenset((32767, 32769, 32770, 34713, 65535))
"""Compressions of Sony's, Epson's, Samsung's, Nikon's and Pentax's raw files."""
_NUMBERS: Final = {3: "H", 4: "I"}
_MOST_TAGS: Final = 1000


class _Entry(NamedTuple):
    value: int
    at: int
    form: str


def check_no_raw_file(data: bytes) -> None:
    """Raise UnsupportedImageFormat for a camera's raw file, whose first picture is a thumbnail or undeveloped."""
    tags = _directory(data)
    if _DNG_VERSION in tags:
        raise unsupported("a camera's raw file (DNG)", "develop it first")
    found = {tag: tags[tag].value for tag in (_SUBFILE_TYPE, _COMPRESSION) if tag in tags}
    thumbnail = found.get(_SUBFILE_TYPE) == _REDUCED and _SUB_DIRECTORIES in tags
    if _MAKE in tags and (thumbnail or found.get(_COMPRESSION) in _OF_CAMERAS):
        raise unsupported("a camera's raw file", "develop it first")


def with_planes_mended(image: Image.Image, data: bytes) -> Image.Image:
    """Return the undecoded TIFF so that uncompressed planes are read in their depth; Pillow takes 8 bits for each.

    Raises InvalidImage if they are of a kind that would be read wrong.
    """
    if not isinstance(image, TiffImageFile):
        return image
    tags = image.tag_v2
    if tags.get(_PLANES) != _SEPARATE:
        return image
    colours, depths = tags.get(_PHOTOMETRIC), {int(depth) for depth in tags.get(_BITS, (1,))}
    if colours == _LAB:
        raise _bad_planes()
    if tags.get(_COMPRESSION, _UNCOMPRESSED) != _UNCOMPRESSED:
        return image
    if tags.get(_SAMPLES, 1) == 1:  # a single plane lies as one does without the tag
        entry = _directory(data)[_PLANES]
        one_plane = bytearray(data)
        struct.pack_into(entry.form, one_plane, entry.at, 1)
        return Image.open(BytesIO(bytes(one_plane)), formats=["TIFF"])
    deep = depths == {16}
    if tags.get(_FILL_ORDER, 1) == _REVERSED or not (depths == {8} or (deep and colours != _CMYK)):
        raise _bad_planes()
    if deep:
        order = "L" if data[:2] == b"II" else "B"
        image.tile = [
            tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
            for tile in image.tile
            if isinstance(tile.args, tuple)
        ]
    return image


def _bad_planes() -> InvalidImage:
    return InvalidImage("The TIFF image has planes of an unsupported kind; save it with its samples together.")


def depth_of(image: Image.Image) -> str:
    """Return the kind of a TIFF's samples that have no defined white: "signed samples of 16 bits"."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, (32,))[0]
    signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
    return f"{'signed ' if signed else ''}samples of {bits} bits"


def _directory(data: bytes) -> dict[int, _Entry]:
    """Read the tags of the first directory whose value is one number beside the tag; others have the value 0."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in {b"\x2b\0", b"\0\x2b"}
    at_form, count_form, entry_form, word = ("Q", "Q", "HHQ", 8) if big else ("I", "H", "HHI", 4)
    found: dict[int, _Entry] = {}
    try:
        (start,) = struct.unpack_from(order + at_form, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + count_form, data, start)
        first, entry = start + struct.calcsize(order + count_form), struct.Struct(order + entry_form)
        for number in range(min(count, _MOST_TAGS)):
            position = first + number * (entry.size + word)
            tag, kind, values = entry.unpack_from(data, position)
            at, form = position + entry.size, order + _NUMBERS.get(kind, "H")
            value = struct.unpack_from(form, data, at)[0] if values == 1 and kind in _NUMBERS else 0
            found[tag] = _Entry(value, at, form)
    except (struct.error, OverflowError):
        pass  # it breaks off; the decoder says so
    return found
