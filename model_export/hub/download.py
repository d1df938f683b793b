"""Downloads a large file into the hub's cache: resumable, also by a later process, and checked against its sha256.

The hub's own client (2.4) deletes a partial file when a download fails, and compares sizes only. Here received bytes
stay as ``blobs/SHA256.incomplete``, and the next try asks for the rest. Plain HTTP, never Xet, which cannot resume.
"""

import re
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

import httpx2
from huggingface_hub import constants, get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import (  # type: ignore[attr-defined] # public, but exported in a way mypy does not see
    WeakFileLock,
    build_hf_headers,
    tqdm,
)

from model_export.errors import SourceError
from model_export.files import sha256_of

LIBRARY: Final = "anyclass"
"""The client's name in requests to the hub."""

SHA256: Final = re.compile(r"[0-9a-f]{64}")

_RETRIES: Final = 4
_PAUSE_S: Final = 1.0
"""Before the first retry after a try that brought nothing; doubled before each further one."""

_TRANSIENT: Final = {408, 425, 429, 500, 502, 503, 504}
"""Statuses after which the same request may succeed."""


def download(url: str, blob: Path, *, size: int, lock: Path) -> bool:
    """Download a file whose digest the hub states.

    Args:
        url: on the hub; redirects are followed, and the token is not sent beyond the hub's host.
        blob: destination; its name is the sha256.
        lock: held meanwhile, so that two processes do not write one file.

    Returns:
        True if the file was downloaded and its digest checked, false if it existed.

    Raises:
        SourceError: the content has another digest; it was deleted.
        httpx2.TransportError: the connection was lost, and several tries brought nothing; received bytes are kept.
        huggingface_hub.errors.HfHubHTTPError: the hub refuses.
        OSError: the disk refuses; received bytes are kept.
    """
    partial = blob.with_name(f"{blob.name}.incomplete")
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return False
        if received(blob) > size:  # not a part of this file
            partial.unlink()
        title = url.rpartition("/")[2]
        with (
            partial.open("ab") as stream,
            tqdm(  # type: ignore[no-untyped-call]
                total=size,
                initial=stream.tell(),
                desc=title,
                unit="B",
                unit_scale=True,
                disable=None,  # unless stderr is a terminal
                name=LIBRARY,
            ) as bar,
        ):
            _complete(url, stream, size, bar)
        actual = sha256_of(partial)
        if partial.stat().st_size != size or actual != blob.name:
            partial.unlink()
            raise SourceError(wrong_digest(title, expected=blob.name, actual=actual))
        partial.replace(blob)
    return True


def received(blob: Path) -> int:
    """Count the bytes of a blob that the cache holds."""
    for path in (blob, blob.with_name(f"{blob.name}.incomplete")):
        if path.exists():
            return path.stat().st_size
    return 0


def wrong_digest(title: str, *, expected: str, actual: str) -> str:
    """Return the message for a file with another digest than the hub states, which was deleted."""
    return (
        f"{title}: has sha256 {actual[:12]}…, the hub states {expected[:12]}…; it was deleted, run the command again "
        "(if that does not help, a proxy or the mirror in HF_ENDPOINT alters downloads)"
    )


def _complete(url: str, stream: BinaryIO, size: int, bar: Any) -> None:  # noqa: ANN401, tqdm has no types
    fruitless = 0
    while (held := stream.tell()) < size:
        try:
            _append(url, stream, size, bar)
        except (httpx2.TransportError, HfHubHTTPError) as exc:
            if isinstance(exc, HfHubHTTPError) and exc.response.status_code not in _TRANSIENT:
                raise
            if stream.tell() > held:
                fruitless = 0
                continue
            if fruitless == _RETRIES:
                raise
            time.sleep(_PAUSE_S * 2**fruitless)
            fruitless += 1
        else:
            return  # all that the server has; the digest decides


def _append(url: str, stream: BinaryIO, size: int, bar: Any) -> None:  # noqa: ANN401, tqdm has no types
    held = stream.tell()
    # With compression, offsets would not match the range.
    headers = {**build_hf_headers(library_name=LIBRARY), "Accept-Encoding": "identity"}
    if held:
        headers["Range"] = f"bytes={held}-"
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        if held and response.status_code != httpx2.codes.PARTIAL_CONTENT:  # the server starts from the beginning
            _empty(stream)
            bar.update(-held)
        for (
            chunk
        ) in response.iter_bytes():  # unbuffered: bytes that wait in a larger chunk would be lost with the connection
            stream.write(chunk)
            bar.update(len(chunk))
            if stream.tell() > size:
                return


def _empty(stream: BinaryIO) -> None:
    stream.seek(0)
    stream.truncate()
