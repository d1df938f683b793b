"""JPEGs that lack their end, or a part of their data, or hold metadata that cannot be read."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidImage
from service.images import jpeg
from service.images.decoding import ImageLimits, decode, open_rgb
from service.model.manifest import ImageSection
from tests.support.pictures import encode, exif_of, noise, quadrants

END = b"\xff\xd9"
PICTURE = noise(96, 64)
WAYS: dict[str, dict[str, Any]] = {
    "4:4:4": {},
    "4:2:0": {"subsampling": 2},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 5},
}
SECTION = ImageSection(
    height=8, width=8, resize="shortest", crop="center", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
)


def _encoded(way: str, mode: str = "RGB") -> bytes:
    data = encode(PICTURE.convert(mode), "JPEG", **WAYS[way])
    assert data.endswith(END)
    return data


# --- the end ---


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("way", WAYS)
def test_a_whole_picture_needs_no_end_marker(way: str, mode: str) -> None:
    """Without it, with half of it, and with zeros in its place."""
    data = _encoded(way, mode)
    expected = open_rgb(data).tobytes()
    for tail in (b"", b"\xff", bytes(500), b"\xff" + bytes(500)):
        assert expected == open_rgb(data[:-2] + tail).tobytes()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tail", [b"", bytes(5000)], ids=["breaks off", "zeros follow"])
def test_a_picture_without_its_last_data_is_refused(way: str, tail: bytes) -> None:
    """Without an end marker, however little is missing of the last scan's averages, or a whole scan."""
    data = _encoded(way)
    for length in range(len(data) // 10, len(data) - 60, len(data) // 10):
        with pytest.raises(InvalidImage):
            open_rgb(data[:length] + tail)


@pytest.mark.parametrize("preprocessing", ["exact", "fast"])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "progressive"])
def test_a_broken_picture_with_an_end_marker_is_refused(way: str, preprocessing: Any) -> None:
    """Its lower part would be grey."""
    data = _encoded(way)
    for percent in (30, 60, 90):
        with pytest.raises(InvalidImage, match="its data end before the picture does"):
            decode(data[: len(data) * percent // 100] + END, SECTION, preprocessing=preprocessing)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_grey_picture_is_whole(way: str, mode: str) -> None:
    """Only its last pixel looks as if data were missing."""
    grey = np.asarray(PICTURE).copy()
    grey[-32:, -32:] = 128
    for picture in (Image.fromarray(grey), Image.new("RGB", (40, 40), (128, 128, 128))):
        assert picture.size == open_rgb(encode(picture.convert(mode), "JPEG", **WAYS[way])).size


def test_a_header_without_pixels_is_refused() -> None:
    """With an end marker, and without."""
    data = _encoded("4:4:4")
    for tail in (b"", END):
        with pytest.raises(InvalidImage):
            open_rgb(data[: data.index(b"\xff\xda")] + tail)


# --- scans ---


def test_scans_are_bounded_in_a_picture_of_any_size() -> None:
    """A scan passes over all pixels and may cost a sender ten bytes."""
    data = encode(quadrants(64, 64), "JPEG", progressive=True)
    scan, end = data.rindex(b"\xff\xda"), data.rindex(END)
    open_rgb(data[:end] + data[scan:end] * 80 + data[end:])
    with pytest.raises(InvalidImage, match="more than 100 scans"):
        open_rgb(data[:end] + data[scan:end] * 100 + data[end:], ImageLimits())


# --- metadata ---


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


SEGMENTS = {
    "short JFIF": _segment(0xE0, b"JFIF\0"),
    "short Adobe": _segment(0xEE, b"Adobe"),
    "profile without a number": _segment(0xE2, b"ICC_PROFILE\0"),
    "half a profile": _segment(0xE2, b"ICC_PROFILE\0\1\2"),
    "Photoshop without a name": _segment(0xED, b"Photoshop 3.0\x008BIM\4\4"),
    "short Photoshop": _segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\1\0"),
    "pictures that cannot be read": _segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff"),
    "EXIF that cannot be read": _segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "empty XMP": _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", SEGMENTS)
def test_metadata_fails_no_picture(name: str) -> None:
    """And its orientation stays, if only other metadata cannot be read."""
    plain = encode(quadrants(), "JPEG")
    spoilt = plain[:2] + SEGMENTS[name] + plain[2:]
    assert open_rgb(plain).tobytes() == open_rgb(spoilt).tobytes()
    if not name.startswith("EXIF"):
        turned = plain[:2] + SEGMENTS[name] + _segment(0xE1, b"Exif\0\0" + exif_of(orientation=3)) + plain[2:]
        assert open_rgb(plain).transpose(Image.Transpose.ROTATE_180).tobytes() == open_rgb(turned).tobytes()


def test_what_decides_colours_stays() -> None:
    """Adobe's marker says whether four components are YCCK, and JFIF that three are YCbCr."""
    for mode in ("RGB", "CMYK"):
        data = encode(quadrants().convert(mode), "JPEG")
        spoilt = data[:2] + _segment(0xED, b"Photoshop 3.0\x008BIM\4\4") + _segment(0xFE, b"comment") + data[2:]
        assert jpeg.without_metadata(spoilt) == jpeg.without_metadata(data)
        assert open_rgb(data).tobytes() == open_rgb(spoilt).tobytes()


@pytest.mark.parametrize("name", ["JPEG", "WEBP", "TIFF", "PNG", "AVIF"])
def test_an_orientation_in_xmp_is_ignored(name: str) -> None:
    """Browsers know EXIF's only. It is what programs leave behind that turned the pixels."""
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description tiff:Orientation=\"6\"/></x:xmpmeta>"
    plain = encode(quadrants(), name)
    options: dict[str, Any] = {"tiffinfo": {700: xmp}} if name == "TIFF" else {"xmp": xmp}
    for exif in ({}, {"exif": Image.Exif()}):
        data = encode(quadrants(), name, **options, **exif)
        assert name == "PNG" or b'tiff:Orientation="6"' in data
        assert open_rgb(plain).tobytes() == open_rgb(data).tobytes()


def test_an_orientation_in_exif_counts_beside_one_in_xmp() -> None:
    """As without XMP."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 3, "a camera"
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    for tags in (exif, None):
        expected = quadrants().transpose(Image.Transpose.ROTATE_180) if tags else quadrants()
        image = open_rgb(encode(quadrants(), "JPEG", xmp=xmp, exif=exif if tags else _camera_only()))
        assert np.abs(np.asarray(expected).astype(int) - np.asarray(image)).mean() < 4


def _camera_only() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    return exif


def test_exif_that_cannot_be_read_fails_no_avif() -> None:
    """Its orientation is a property of its own."""
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    try:
        data = encode(quadrants(), "AVIF", exif=exif)
    except KeyError:
        pytest.skip("this Pillow has no AVIF")
    spoilt = data.replace(b"MM\0*", b"??\0*").replace(b"II*\0", b"??*\0")
    assert spoilt != data
    assert open_rgb(data).tobytes() == open_rgb(spoilt).tobytes()
