"""The cache of `huggingface_hub` on this disk: paths of a model in it, downloads into it, checks of its files.

Its layout is documented: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. In ``models--OWNER--NAME``,
``refs/`` hold the last known commit of a branch, ``snapshots/COMMIT/`` link to ``blobs/``, whose names are digests.
"""

import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import RevisionResolutionError
from huggingface_hub.file_download import repo_folder_name

from model_export.errors import SourceError
from model_export.files import sha256_of
from model_export.hub.download import LIBRARY, SHA256, download, received, wrong_digest

COMMIT: Final = re.compile(r"[0-9a-f]{40}")

_LICENCE: Final = re.compile(r"^(license|license_name):\s*(?:-\s+)?['\"]?([\w.+-]+)", re.MULTILINE)
_FRONT_MATTER: Final = re.compile(r"\s*---\n(.*?)\n---", re.DOTALL)


class Remote(NamedTuple):
    """A file as the hub lists it: name relative to the root, bytes, and sha256 unless git itself holds it."""

    name: str
    size: int
    sha256: str | None


def repository(model_id: str) -> Path:
    """Return the folder of a model."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model_id, repo_type="model")


def snapshot(model_id: str, commit: str) -> Path:
    """Return the folder of a commit's files."""
    return repository(model_id) / "snapshots" / commit


def cached(model_id: str, commit: str, name: str) -> Path | None:
    """Return a file of a commit, or None if the cache lacks it."""
    found = try_to_load_from_cache(model_id, name, revision=commit)
    return Path(found) if isinstance(found, str) else None


def remember(model_id: str, revision: str | None, commit: str) -> None:
    """Store the commit of a revision, for when the hub cannot be reached; a read-only cache is left as it is."""
    revision = revision or constants.DEFAULT_REVISION
    if revision != commit:
        ref = repository(model_id) / "refs" / revision
        with suppress(OSError):
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)


def remembered(model_id: str, revision: str | None) -> str | None:
    """Return the commit that a revision had at the last answer of the hub, if the cache knows it."""
    try:
        found = HfApi().resolve_revision(model_id, revision=revision, local_files_only=True).resolved
    except (RevisionResolutionError, OSError):
        return None
    return found if COMMIT.fullmatch(found) else None


def remaining(model_id: str, files: Iterable[Remote]) -> int:
    """Count the bytes that are still to be downloaded.

    Raises:
        SourceError: the disk has no space for them.
    """
    folder = repository(model_id)
    left = sum(max(0, file.size - (received(folder / "blobs" / file.sha256) if file.sha256 else 0)) for file in files)
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if left > free:
        raise SourceError(
            f"{model_id}: {left / 1e6:.1f} MB are to be downloaded, {place} has {free / 1e6:.1f} MB free; "
            "free some space, or set HF_HOME to a folder on another disk"
        )
    return left


def ensure(model_id: str, commit: str, file: Remote, endpoint: str) -> None:
    """Download a file into the snapshot unless it is there, and check its digest.

    Raises:
        SourceError: the digest is another one; the file was deleted.
        huggingface_hub's exceptions, and OSError: see `model_export.hub.download`.
    """
    path, verified = cached(model_id, commit, file.name), None
    if path is None:
        if file.sha256 is not None:
            folder = repository(model_id)
            verified = folder / "blobs" / file.sha256
            fresh = download(
                hf_hub_url(model_id, file.name, revision=commit, endpoint=endpoint),
                verified,
                size=file.size,
                lock=folder.parent / ".locks" / folder.name / f"{file.sha256}.lock",
            )
            verified = verified if fresh else None
        # This downloads the small files that git itself holds; for the others it makes the snapshot's link to the blob.
        path = Path(hf_hub_download(model_id, file.name, revision=commit, endpoint=endpoint, library_name=LIBRARY))
    if verified is None or not path.samefile(verified):
        check(path, file.sha256)


def check(path: Path, sha256: str | None) -> None:
    """Compare a file of the cache with its digest, if one is known, and delete it if they differ.

    Raises:
        SourceError: they differ.
    """
    if sha256 is None:
        return
    actual = sha256_of(path)
    if actual != sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise SourceError(wrong_digest(str(path), expected=sha256, actual=actual))


def recorded_digest(path: Path) -> str | None:
    """Return the sha256 in the target of a snapshot's link; None for a file that git itself holds."""
    blob = path.readlink().name if path.is_symlink() else ""
    return blob if SHA256.fullmatch(blob) else None


def licence(model_id: str, commit: str) -> str | None:
    """Return the licence in the header of a model's card; for ``other``, the name given beside it."""
    try:
        card = (snapshot(model_id, commit) / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    header = _FRONT_MATTER.match(card)
    fields = dict(_LICENCE.findall(header[1])) if header else {}
    stated = fields.get("license")
    return fields.get("license_name", stated) if stated == "other" else stated
