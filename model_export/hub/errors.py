"""Turns errors of the hub's client into one line each that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model_export.errors import SourceError


class HubUnreachableError(SourceError):
    """The hub cannot be reached: no network, hub down, or offline by choice. The cache may suffice."""


_REFUSALS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (GatedRepoError, "is gated; ask for access at {endpoint}/{model}, then set HF_TOKEN to a token of that account"),
    (DisabledRepoError, "was disabled by the hub; choose another model"),
    (RepositoryNotFoundError, "is not on {endpoint}; check the spelling, or set HF_TOKEN if it is a private one"),
    (RevisionNotFoundError, "has no branch, tag or commit {revision!r}; see {endpoint}/{model}/tree/main"),
    (RemoteEntryNotFoundError, "lists a file that it does not have; run the command again"),
    (HFValidationError, "is not a hub id, OWNER/NAME or OWNER/NAME@REVISION"),
    (FileMetadataError, "{endpoint} does not answer as a hub does; check HF_ENDPOINT and the network's proxy"),
)
"""The first match counts: GatedRepoError is a RepositoryNotFoundError too."""

_STATUSES: Final = {
    401: "the hub refuses the token; set HF_TOKEN to a valid one, or unset it",
    403: "the token is not allowed to read it; give it that permission, or set HF_TOKEN to another",
    429: "the hub asks for fewer requests; wait a few minutes and run the command again, or set HF_TOKEN",
}


@contextmanager
def explained(model: str, revision: str | None, endpoint: str, *, note: str = "") -> Iterator[None]:
    """Turn the exceptions of the hub's client in this block into a SourceError.

    Args:
        note: appended to the message of a failed connection.

    Raises:
        HubUnreachableError: the hub cannot be reached.
        SourceError: the hub or the disk refuses.
    """
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, HFValidationError, OSError) as exc:
        # LocalEntryNotFoundError only says that a file could not be requested; its cause says why.
        cause = exc.__cause__ if isinstance(exc, LocalEntryNotFoundError) and exc.__cause__ else exc
        unreachable = _unreachable(cause, endpoint)
        if unreachable is not None:
            raise HubUnreachableError(f"{model}: {unreachable}{note}") from exc
        for kind, text in _REFUSALS:
            if isinstance(cause, kind):
                reason = text.format(endpoint=endpoint, model=model, revision=revision)
                raise SourceError(f"{model}: {reason}") from exc
        raise SourceError(f"{model}: {_refusal(cause, endpoint)}") from exc


def _unreachable(exc: BaseException, endpoint: str) -> str | None:
    if isinstance(exc, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to download"
    if isinstance(exc, HfHubHTTPError) and exc.response.status_code >= httpx2.codes.INTERNAL_SERVER_ERROR:
        return f"{endpoint} has trouble (HTTP {exc.response.status_code}); try again later"
    if isinstance(exc, httpx2.TransportError):
        why = str(exc) or type(exc).__name__
        return f"{endpoint} cannot be reached ({why}); check the network, then run the command again"
    return None


def _refusal(exc: BaseException, endpoint: str) -> str:
    if isinstance(exc, HfHubHTTPError):
        status = exc.response.status_code
        return _STATUSES.get(status, f"{endpoint} answers HTTP {status}; check HF_ENDPOINT")
    if not isinstance(exc, OSError):
        return f"{endpoint} cannot be asked ({exc}); check HF_ENDPOINT"
    place = exc.filename or "the hub's cache"
    if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
        return (
            f"{place}: the disk is full; free some space or set HF_HOME to a folder on another disk, then run the "
            "command again; what was received is kept"
        )
    return f"{place}: cannot be written ({exc.strerror or exc}); set HF_HOME to a writable folder"
