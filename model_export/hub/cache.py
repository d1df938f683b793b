"""The cache of `huggingface_hub` on this disk: where a model is in it, and whether what is there is right.

Its layout is documented: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. In ``models--OWNER--NAME``,
``refs/`` say which commit a branch was, ``snapshots/COMMIT/`` link to ``blobs/``, whose names are digests.
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
from model_export.hub.download import LIBRARY, SHA256, download, received, sha256_of, wrong_digest

COMMIT: Final = re.compile(r"[0-9a-f]{40}")

_LICENCE: Final = re.compile(r"^(license|license_name):\s*(?:-\s+)?['\"]?([\w.+-]+)", re.MULTILINE)
_FRONT_MATTER: Final = re.compile(r"\s*---\n(.*?)\n---", re.DOTALL)


class Remote(NamedTuple):
    """A file as the hub lists it: name relative to the root, bytes, and sha256 unless it is in git itself."""

    name: str
    size: int
    sha256: str | None


def repository(model_id: str) -> Path:
    """The folder of a model."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model_id, repo_type="model")


def snapshot(model_id: str, commit: str) -> Path:
    """The folder of a commit's files."""
    return repository(model_id) / "snapshots" / commit


def cached(model_id: str, commit: str, name: str) -> Path | None:
    """A file of a commit, if it is here."""
    found = try_to_load_from_cache(model_id, name, revision=commit)
    return Path(found) if isinstance(found, str) else None


def remember(model_id: str, revision: str | None, commit: str) -> None:
    """Note which commit a revision is now, for when the hub cannot be asked; a cache that is read-only does too."""
    revision = revision or constants.DEFAULT_REVISION
    if revision != commit:
        ref = repository(model_id) / "refs" / revision
        with suppress(OSError):
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)


def remembered(model_id: str, revision: str | None) -> str | None:
    """Which commit a revision was when the hub was last asked."""
    try:
        found = HfApi().resolve_revision(model_id, revision=revision, local_files_only=True).resolved
    except (RevisionResolutionError, OSError):
        return None
    return found if COMMIT.fullmatch(found) else None


def room_for(model_id: str, files: Iterable[Remote]) -> int:
    """Count the bytes that are still to come.

    Raises:
        SourceError: the disk cannot hold them.
    """
    folder = repository(model_id)
    left = sum(max(0, file.size - (received(folder / "blobs" / file.sha256) if file.sha256 else 0)) for file in files)
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if left > free:
        raise SourceError(
            f"{model_id}: {left / 1e6:.1f} MB are to be downloaded, {place} has room for {free / 1e6:.1f} MB; "
            "free some space, or set HF_HOME to a folder on another disk"
        )
    return left


def bring(model_id: str, commit: str, file: Remote, endpoint: str) -> None:
    """See to it that a file is in the snapshot, and is what the hub says it is.

    Raises:
        SourceError: it is not, and was deleted.
        huggingface_hub's exceptions, and OSError: see `hub_download.download`.
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
        # What is in git itself is small, and downloaded here; for the others it makes the snapshot's link to the blob.
        path = Path(hf_hub_download(model_id, file.name, revision=commit, endpoint=endpoint, library_name=LIBRARY))
    if verified is None or not path.samefile(verified):
        check(path, file.sha256)


def check(path: Path, sha256: str | None) -> None:
    """Compare a file of the cache with its digest, if there is one, and remove it where they differ.

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
    """The sha256 that a snapshot's link tells of its blob; none for a file that is in git itself."""
    blob = path.readlink().name if path.is_symlink() else ""
    return blob if SHA256.fullmatch(blob) else None


def licence(model_id: str, commit: str) -> str | None:
    """The licence in the header of a model's card; under ``other`` the name that is given beside it."""
    try:
        card = (snapshot(model_id, commit) / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    header = _FRONT_MATTER.match(card)
    fields = dict(_LICENCE.findall(header[1])) if header else {}
    stated = fields.get("license")
    return fields.get("license_name", stated) if stated == "other" else stated
