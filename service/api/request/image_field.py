"""Images given as text in JSON: a data URI (RFC 2397), base64 (RFC 4648), or a URL if the operator allows URLs."""

import binascii
import re
from functools import partial
from typing import Final

from service.classification.types import ImageSource
from service.errors import InvalidImage
from service.images.fetching import ImageFetcher

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20})://")
_WEB: Final = re.compile(r"https?://", re.IGNORECASE)
_URL_SAFE_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_PIECE_CHARS: Final = 2**18
_LINE_BREAKS: Final = b"\r\n"
_MAX_HEAD_CHARS: Final = 1_024

URLS_OFF: Final = (
    "Image URLs are switched off on this server. Send the image itself: as a file, as base64 or as a data URI."
)


def image_from_text(text: str, fetcher: ImageFetcher | None) -> ImageSource:
    """Return the image's bytes as `decode_image_text`; for a URL, with a `fetcher`, a function that fetches them.

    Raises `InvalidImage`. The function raises as `ImageFetcher.fetch`.
    """
    if fetcher is not None and _WEB.match(text):
        return partial(fetcher.fetch, text)
    return decode_image_text(text)


def image_from_bytes(data: bytes, fetcher: ImageFetcher | None) -> ImageSource:
    """Return `data`, an encoded image; if it is a URL, a function that fetches the image. No image begins like a URL.

    Raises `InvalidImage` for a URL without a `fetcher`.
    """
    if not data[:8].lower().startswith((b"http://", b"https://")):
        return data
    return image_from_text(data.decode("utf-8", "replace"), fetcher)


def decode_image_text(text: str) -> bytes:
    """Decode an image given as a data URI or as base64.

    Accepts the standard and the URL-safe alphabet, missing padding, and line breaks (as MIME has them); no other
    character. Ignores a data URI's media type: the bytes decide. Raises `InvalidImage`, also for a URL.
    """
    if match := _SCHEME.match(text):
        scheme = match[1].lower()
        raise InvalidImage(
            URLS_OFF if scheme in ("http", "https") else f"An image cannot be given as a {scheme}:// URL."
        )
    what, start = "base64", 0
    if text[:5].lower() == "data:":
        what, comma = "data URI", text.find(",", 0, _MAX_HEAD_CHARS)
        start = comma + 1
        if comma < 0 or not text[:comma].lower().endswith(";base64"):
            raise InvalidImage("The data URI must have the form data:image/jpeg;base64,… with base64 after the comma.")
    try:
        data = _decode_base64(text, start)
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise InvalidImage(f"The image is not valid {what}. Send the image's bytes in base64.") from exc
    if not data:
        raise InvalidImage("The image is empty.")
    return data


def _decode_base64(text: str, start: int) -> bytes:
    """Decode base64 from `start` on, piece by piece: each step holds the interpreter's lock for a millisecond.

    Raises UnicodeEncodeError and binascii.Error.
    """
    pieces, rest = [], b""
    padded = False
    for at in range(start, len(text), _PIECE_CHARS):
        piece = text[at : at + _PIECE_CHARS].encode("ascii").translate(_URL_SAFE_TO_STANDARD, _LINE_BREAKS)
        data = piece.rstrip(b"=")
        # At the end of a piece padding would be accepted.
        if b"=" in data or (padded and data):
            raise binascii.Error("padding within the data")
        padded = padded or len(data) < len(piece)
        rest += data
        whole = len(rest) - len(rest) % 4
        pieces.append(binascii.a2b_base64(rest[:whole], strict_mode=True))
        rest = rest[whole:]
    if rest:
        pieces.append(binascii.a2b_base64(rest + b"=" * (-len(rest) % 4), strict_mode=True))
    return b"".join(pieces)
