"""Recognises formats by the first bytes: those that are read, and those whose name helps the sender.

One table for each. A refusal names the kind of the bytes and never repeats them.
"""

import re
from typing import Final

from PIL import features

from service.errors import UnsupportedImageFormat

_SIGNATURES: Final = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"(?!.{8}CR\x02)(?:II[\x2a\x2b]\0|MM\0[\x2a\x2b])", re.DOTALL),
    "AVIF": re.compile(rb"....ftyp(?:....){0,16}?avi[fs]", re.DOTALL),
}
FORMATS: Final = tuple(name for name in _SIGNATURES if name != "AVIF" or features.check("avif"))
"""Names of the accepted formats, in Pillow's spelling; with AVIF if this build of Pillow has it."""

_LOOKED_AT: Final = 1024
_ANYWHERE: Final = re.DOTALL | re.IGNORECASE
_TEXT_START: Final = rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.{0,500}?-->\s*)?"

_FOREIGN: Final = tuple(
    (re.compile(signature, flags), name, advice)
    for signature, flags, name, advice in (
        (rb"....ftyp(?:....){0,16}?(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL, "HEIC (an iPhone's photo)", ""),
        (rb"....ftypcrx ", re.DOTALL, "a camera's raw file (CR3)", "develop it first"),
        (rb"....ftyp(?:....){0,16}?avi[fs]", re.DOTALL, "AVIF, for which this installation has no decoder", ""),
        (rb"....ftyp", re.DOTALL, "an MP4 or QuickTime video", "take a frame of it"),
        (rb"II[\x2a\x2b]\0.{4}CR\x02", re.DOTALL, "a camera's raw file (CR2)", "develop it first"),
        (rb"IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW|FOVb", 0, "a camera's raw file", "develop it first"),
        (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", 0, "JPEG XL", ""),
        (rb"\0\0\0\x0cjP {2}\r\n\x87\n|\xff\x4f\xff\x51", 0, "JPEG 2000", ""),
        (rb"8BPS", 0, "a Photoshop document (PSD)", ""),
        (rb"%PDF-", 0, "a PDF document", "render a page of it"),
        (rb"%!PS|\xc5\xd0\xd3\xc6", 0, "PostScript", "render it first"),
        (_TEXT_START + rb"(?:<!doctype\s+svg[^>]*>\s*)?<svg", _ANYWHERE, "SVG, a drawing", "render it first"),
        (_TEXT_START + rb"<(?:!doctype\s+html|html|head|body)", _ANYWHERE, "an HTML page, not a picture", ""),
        (rb"version https://git-lfs\.github\.com/spec/", 0, "a Git LFS pointer", "run `git lfs pull`"),
        (rb"data:image/|/9j/|iVBORw0KGgo|UklGR|R0lGOD", 0, "base64 text", "decode it"),
        (rb"\s*[\[{]\s*(?:[\"\[{\d\]}-]|true|false|null)", 0, "JSON, not a picture", ""),
        (rb"PK(?:\x03\x04|\x05\x06)", 0, "a ZIP archive", "unpack it"),
        (rb"\x1f\x8b", 0, "a gzip file", "unpack it"),
        (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|\xfd7zXZ\0|BZh[1-9]|\x28\xb5\x2f\xfd", 0, "an archive", "unpack it"),
        (rb".{257}ustar", re.DOTALL, "a tar archive", "unpack it"),
        (rb"\x1a\x45\xdf\xa3|RIFF....AVI ", re.DOTALL, "a video", "take a frame of it"),
        (rb"\0\0[\1\2]\0[\1-\xff]\0", 0, "a Windows icon or cursor", ""),
        (rb"icns", 0, "an Apple icon", ""),
        (rb"P[1-7]\s", 0, "a netpbm image", ""),
        (rb".{128}DICM", re.DOTALL, "a DICOM file", "render it first"),
        (rb"v/1\x01|#\?RADIANCE|#\?RGBE", 0, "an HDR image", "map its tones first"),
        (rb"PAR1", 0, "a Parquet file", ""),
        (_TEXT_START + rb"<\?xml", _ANYWHERE, "XML", ""),
        (rb"(?:\xef\xbb\xbf)?[\t\r\n -~]{16}", 0, "text, not a picture", ""),
    )
)
_ACCEPTED: Final = f"send one of {', '.join(FORMATS)}."
_UNKNOWN: Final = f"The image's format is not supported; {_ACCEPTED}"


def format_of(data: bytes) -> str:
    """Return the name of an accepted format.

    Raises UnsupportedImageFormat, which names the format if it is a known one.
    """
    head = data[:_LOOKED_AT]
    for name in FORMATS:
        if _SIGNATURES[name].match(head):
            return name
    for signature, name, advice in _FOREIGN:
        if signature.match(head):
            raise unsupported(name, advice)
    raise UnsupportedImageFormat(_UNKNOWN)


def unsupported(name: str, advice: str = "") -> UnsupportedImageFormat:
    """Return the error that names a format, with what to do."""
    return UnsupportedImageFormat(f"The image is {name}; {f'{advice}, then ' if advice else ''}{_ACCEPTED}")
