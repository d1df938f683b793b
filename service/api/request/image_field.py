"""The image as text, in JSON: a data URI (RFC 2397), base64 (RFC 4648), or a URL where the operator allows it."""

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
_LINE_BREAKS: Final = b"\r\n"

URLS_OFF: Final = (
    "Image URLs are switched off on this server, so it fetches nothing. "
    "Send the picture itself: as a file, as base64 or as a data URI."
)


def image_source(text: str, fetcher: ImageFetcher | None) -> ImageSource:
    """The bytes of an image as `decode_image_text` has them, or a way to fetch those of a URL where that is allowed.

    Raises `InvalidImage`; fetching raises what `ImageFetcher.fetch` raises.
    """
    if fetcher is not None and _WEB.match(text):
        return partial(fetcher.fetch, text)
    return decode_image_text(text)


def encoded_or_url(data: bytes, fetcher: ImageFetcher | None) -> ImageSource:
    """`data`, an encoded image, or a way to fetch one where it is a URL: no picture begins as a URL does.

    Raises `InvalidImage` for a URL without a fetcher.
    """
    if not data[:8].lower().startswith((b"http://", b"https://")):
        return data
    return image_source(data.decode("utf-8", "replace"), fetcher)


def decode_image_text(text: str) -> bytes:
    """The bytes of an image given as a data URI or as base64.

    The alphabet may be the standard or the URL-safe one, padding may be left out and lines may be broken (as
    MIME does); any other character is refused. A data URI's media type is not believed, the bytes tell. Raises
    `InvalidImage`, also for a URL.
    """
    if match := _SCHEME.match(text):
        scheme = match[1].lower()
        raise InvalidImage(
            URLS_OFF if scheme in ("http", "https") else f"An image cannot be given as a {scheme}:// URL."
        )
    what = "base64"
    if text[:5].lower() == "data:":
        what = "data URI"
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidImage("The data URI must have the form data:image/jpeg;base64,… with base64 after the comma.")
    try:
        encoded = text.encode("ascii").translate(_URL_SAFE_TO_STANDARD, _LINE_BREAKS).rstrip(b"=")
        data = binascii.a2b_base64(encoded + b"=" * (-len(encoded) % 4), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise InvalidImage(f"The image is not valid {what}; it must hold the picture's bytes in base64.") from exc
    if not data:
        raise InvalidImage("The image is empty.")
    return data
