"""The kind of the bytes, from the first of them."""

import pytest

from service.errors import UnsupportedImageFormat
from service.images.formats import FORMATS, format_of
from tests.support.pictures import encode, grey_tiff, quadrants

NAMED = {
    "HEIC": b"\0\0\0\x24ftypheic\0\0\0\0mif1heic",
    "HEIC (": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heix",
    "MP4 or QuickTime video": b"\0\0\0\x18ftypmp42\0\0\0\0isommp42",
    "QuickTime": b"\0\0\0\x14ftypqt  \0\0\2\0qt  ",
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "CR2": b"II*\0\x10\0\0\0CR\2\0" + bytes(40),
    "raw file": b"FUJIFILMCCD-RAW 0201",
    "JPEG XL": b"\xff\x0a\x7f\x7f",
    "JPEG XL;": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG 2000": encode(quadrants(), "JPEG2000"),
    "JPEG 2000;": b"\xff\x4f\xff\x51\0",
    "Photoshop": b"8BPS\0\1" + bytes(100),
    "PDF": encode(quadrants(), "PDF"),
    "PostScript": encode(quadrants(), "EPS"),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "SVG,": b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a drawing -->\n<!DOCTYPE svg PUBLIC 'x'>\n<svg/>",
    "HTML": b"\n<!DOCTYPE html><html lang='en'>",
    "HTML page": b"<html></html>",
    "JSON": b'{"image": "aa"}',
    "JSON;": b"[1, 2]",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n",
    "base64": b"/9j/4AAQSkZJRgABAQ",
    "base64 text": b"data:image/png;base64,iVBORw0KGgo",
    "ZIP": b"PK\3\4" + bytes(100),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "an archive": b"7z\xbc\xaf\x27\x1c" + bytes(20),
    "tar": b"a.jpg" + bytes(252) + b"ustar\x0000" + bytes(200),
    "a video": b"\x1a\x45\xdf\xa3" + bytes(20),
    "icon": encode(quadrants(), "ICO"),
    "Apple icon": encode(quadrants(), "ICNS"),
    "netpbm": encode(quadrants(), "PPM"),
    "DICOM": bytes(128) + b"DICM",
    "XML": b"<?xml version='1.0'?><feed/>",
    "text": b"# Read me\n\nThis is not a picture.",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_refusal_names_what_came(name: str) -> None:
    """And what to send instead."""
    with pytest.raises(UnsupportedImageFormat) as caught:
        format_of(NAMED[name])
    assert name.rstrip(";,") in str(caught.value).split(";")[0]
    assert f"send one of {', '.join(FORMATS)}." in str(caught.value)


@pytest.mark.parametrize("data", [bytes(1000), b"\x80secret\xff", b"%", b"\xd0\xcf\x11\xe0", b"\0\0\1\0"])
def test_unknown_bytes_are_refused_without_a_name(data: bytes) -> None:
    """A guess would mislead."""
    with pytest.raises(UnsupportedImageFormat, match=r"^The image's format is not supported; send one of"):
        format_of(data)


def test_a_refusal_repeats_nothing_of_the_bytes() -> None:
    """They may be private, and messages go into logs."""
    for data in (b"Jane's secret diary of 2026", b'{"password": "secret"}', b"<html>secret</html>", b"secret\0"):
        with pytest.raises(UnsupportedImageFormat) as caught:
            format_of(data)
        assert "secret" not in str(caught.value)


def test_a_tiff_is_no_camera_raw_file() -> None:
    """Both begin alike."""
    assert "TIFF" == format_of(grey_tiff(2, 1, b"\0\xff", bits=8, photometric=1))
