"""Fetches the files that a reader needs from the hub into a folder, pinned to a commit, complete and checked.

``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` work as in ``huggingface_hub``, whose cache is used:
files that another program downloaded are not downloaded again. Needs no torch.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils.logging import get_verbosity, set_verbosity
from rich.console import Console
from rich.markup import escape

from model_export.errors import IncompleteError, SourceError
from model_export.hub import cache
from model_export.hub.cache import COMMIT, Remote
from model_export.hub.download import LIBRARY, SHA256
from model_export.hub.errors import HubUnreachableError, explained

_REVISION: Final = r"(?!.*\.\.)\w[\w./-]*"  # becomes part of a path
_HUB_ID: Final = re.compile(rf"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>{_REVISION}))?")

Bring: TypeAlias = Callable[[Iterable[str]], Path]
"""Downloads files unless the cache holds them, and returns the folder of the snapshot."""

Choose: TypeAlias = Callable[[frozenset[str], str, Bring], tuple[str, ...]]
"""Chooses what to download, from the names of all files, relative to the repository's root. It is also given a name for
messages, and a `Bring` for files that it reads. Weights come last: a folder with all of them has every other file."""


@dataclass(frozen=True)
class HubId:
    """A model on the hub, and the requested branch, tag or commit."""

    model_id: str
    revision: str | None


@dataclass(frozen=True)
class Fetched:
    """A model of the hub on the disk.

    Attributes:
        folder: the snapshot in the hub's cache; it may hold further files.
        source_id: ``OWNER/NAME@COMMIT``.
        revision: the commit, 40 hexadecimal digits.
        licence: as the repository's card states it.
        files: the chosen ones, relative to the folder.
    """

    folder: Path
    source_id: str
    revision: str
    licence: str | None
    files: tuple[str, ...]


def hub_id(source: str) -> HubId | None:
    """Parse ``OWNER/NAME`` or ``OWNER/NAME@REVISION``; return None for anything else, and for an existing path."""
    found = _HUB_ID.fullmatch(source)
    if found is None or Path(source).exists():
        return None
    return HubId(found["id"], found["revision"])


def resolve(model_id: str, *, revision: str | None = None) -> str:
    """Ask the hub for the commit of a revision; a commit is returned as it is.

    Raises:
        HubUnreachableError: the hub cannot be reached (`cache.remembered` knows the last answer).
        SourceError: the model or revision does not exist, or this user may not read it.
    """
    asked = _checked(model_id, revision)
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    return _ask(asked, files=False)[0]


def fetch(model_id: str, choose: Choose, *, revision: str | None = None, console: Console | None = None) -> Fetched:
    """Download the files that a reader needs, unless the cache holds them.

    An interrupted download resumes. Every sha256 that the hub states is checked, also of files that were in the cache.
    If the hub cannot be reached, a complete cache suffices.

    Args:
        model_id: ``OWNER/NAME``.
        choose: names the files.
        revision: a branch, tag or commit; by default the repository's main branch.
        console: shows what is downloaded. Progress bars go to stderr, and only to a terminal.

    Raises:
        HubUnreachableError: the hub cannot be reached, and the cache is not complete.
        SourceError: the model or revision does not exist, this user may not read it, ``choose`` refuses it, a digest
            does not match, or the disk is full.
    """
    asked = _checked(model_id, revision)
    if get_verbosity() == logging.WARNING:  # errors are reported here, in one line
        set_verbosity(logging.ERROR)
    console = console or Console(quiet=True)
    try:
        commit, files = _ask(asked, files=True)
    except HubUnreachableError as exc:
        fetched = _from_cache(asked, exc, choose)
        _say(console, f"{fetched.source_id}: from the cache, the hub was not reached")
        return fetched

    def bring(wanted: Iterable[str]) -> Path:
        with explained(model_id, revision, _endpoint(), note="; what was received is kept"):
            for name in wanted:
                cache.ensure(model_id, commit, files[name], _endpoint())
        return cache.snapshot(model_id, commit)

    names = choose(frozenset(files), model_id, bring)
    missing = [files[name] for name in names if cache.cached(model_id, commit, name) is None]
    left = cache.remaining(model_id, missing)
    total = sum(files[name].size for name in names)
    _say(
        console,
        f"{model_id}@{commit[:12]}: {len(names)} files, {total / 1e6:.1f} MB, "
        + (f"{left / 1e6:.1f} MB to download" if missing else "all in the cache"),
    )
    bring(names)
    return _fetched(model_id, commit, names)


def _say(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


def _checked(model_id: str, revision: str | None) -> HubId:
    asked = HubId(model_id, revision)
    found = _HUB_ID.fullmatch(model_id if revision is None else f"{model_id}@{revision}")
    if found is None or HubId(found["id"], found["revision"]) != asked:
        raise SourceError(f"{model_id}@{revision or 'main'}: is not a hub id, OWNER/NAME or OWNER/NAME@REVISION")
    return asked


def _endpoint() -> str:
    # The library reads the variable only once, when it is imported.
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _ask(asked: HubId, *, files: bool) -> tuple[str, dict[str, Remote]]:
    """Return the commit of a revision, and its files if they are wanted."""
    endpoint = _endpoint()
    with explained(asked.model_id, asked.revision, endpoint):
        try:
            info = HfApi(endpoint=endpoint, library_name=LIBRARY).model_info(
                asked.model_id, revision=asked.revision, files_metadata=files, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
            commit = COMMIT.fullmatch(info.sha or "")
        except (HfHubHTTPError, HFValidationError):
            raise
        except (ValueError, KeyError, TypeError) as exc:  # not JSON, or not of a model
            raise FileMetadataError(str(exc)) from exc
        if commit is None:
            raise FileMetadataError(f"{info.sha} is no commit")
    cache.remember(asked.model_id, asked.revision, commit[0])
    return commit[0], _files(info) if files else {}


def _files(info: ModelInfo) -> dict[str, Remote]:
    files = {}
    for sibling in info.siblings or ():
        digest = sibling.lfs.sha256 if sibling.lfs else None
        if digest is not None and not SHA256.fullmatch(digest):
            raise SourceError(f"{info.id}: the hub states no sha256 for {sibling.rfilename}, but {digest[:80]!r}")
        size = sibling.lfs.size if sibling.lfs else sibling.size
        files[sibling.rfilename] = Remote(sibling.rfilename, size or 0, digest)
    return files


def _from_cache(asked: HubId, reason: HubUnreachableError, choose: Choose) -> Fetched:
    """Return an earlier download when the hub cannot be reached."""
    model_id, revision = asked.model_id, asked.revision
    commit = revision if revision and COMMIT.fullmatch(revision) else cache.remembered(model_id, revision)
    folder = cache.snapshot(model_id, commit or "")
    if commit is None or not folder.is_dir():
        raise HubUnreachableError(f"{reason} (it is not in the cache, {constants.HF_HUB_CACHE})") from reason

    def bring(wanted: Iterable[str]) -> Path:
        for name in wanted:
            cache.check(folder / name, cache.recorded_digest(folder / name))
        return folder

    names = frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    try:
        chosen = choose(names, str(folder), bring)
    except IncompleteError as exc:
        raise HubUnreachableError(f"{reason} (the cache does not hold all of it: {exc})") from exc
    bring(chosen)
    return _fetched(model_id, commit, chosen)


def _fetched(model_id: str, commit: str, names: tuple[str, ...]) -> Fetched:
    return Fetched(
        folder=cache.snapshot(model_id, commit),
        source_id=f"{model_id}@{commit}",
        revision=commit,
        licence=cache.licence(model_id, commit),
        files=names,
    )
