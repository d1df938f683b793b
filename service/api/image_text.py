"""The image as text, in JSON: a data URI (RFC 2397) or base64 (RFC 4648)."""

import binascii
import re
from typing import Final

from service.errors import InvalidImage

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20})://")
_URL_SAFE_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_LINE_BREAKS: Final = b"\r\n"

URLS_OFF: Final = (
    "Image URLs are switched off on this server, so it fetches nothing. "
    "Send the picture itself: as a file, as base64 or as a data URI."
)


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
