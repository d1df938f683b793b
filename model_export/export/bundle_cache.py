"""Find the bundle that ``make run MODEL=…`` made of a source.

``python -m model_export.export.bundle_cache MODEL`` prints four lines: ``ready`` or ``missing``, the source with its
revision pinned, the bundle's path, and ``weights``, ``open_clip``, ``graphs`` or ``unknown``: a conversion needs torch
for weights, and open_clip for models that only it builds.
A source that cannot be converted is refused here, from its configurations, before anything is installed for it.
Needs no torch, and no network for paths and cached models.
"""

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from model_export.checkpoints.choice import choose_of_folder, names_in
from model_export.checkpoints.layouts import unknown_layout, weights_format
from model_export.checkpoints.model_source import SourceOptions
from model_export.checkpoints.text_model import image_model_of
from model_export.errors import SourceError
from model_export.families.open_clip_torch.family import OPEN_CLIP_TORCH
from model_export.families.sizes import published_hint
from service.errors import BundleError
from service.model.loading import load_bundle
from service.model.manifest import MANIFEST

_DIGITS: Final = 12
"""Digits of a commit or a digest in the name of a bundle's folder."""

_BY_HAND: Final = "; `make run` takes no such option: convert it with anyclass-export, and serve the bundle"
"""The end of a message that advises an option."""


@dataclass(frozen=True)
class Place:
    """The place of a source's bundle.

    Attributes:
        source: the source for ``anyclass-export``: a path, or ``OWNER/NAME@COMMIT``.
        path: the bundle's folder.
        ready: whether it holds a bundle of the schema that this version serves.
    """

    source: str
    path: Path
    ready: bool
    note: str | None = None


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/anyclass/bundles``; the variable defaults to ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anyclass" / "bundles"


def locate(model: str, cache: Path) -> Place:
    """Find the bundle of a source, without downloading or writing anything.

    Asks the hub for the commit of an id without a revision, so that a changed model is converted again. If the hub is
    unreachable, falls back to the latest conversion.

    Args:
        model: a bundle, a checkpoint's file or folder, a training run, or a hub id.
        cache: the folder of bundles.

    Raises:
        SourceError: the source is none of these, or the hub refuses it.
    """
    path = Path(model).expanduser()
    if path.exists():
        if (path / MANIFEST).is_file():
            return Place(model, path, ready=True)
        path = path.absolute()
        return _place(str(path), cache / f"{_slug(path.name)}-{_state(path)}")
    from model_export.hub.fetch import hub_id  # local sources do not need the hub's client

    hub = hub_id(model)
    if hub is None:
        raise SourceError(
            f"{model}: is neither a bundle, a checkpoint's file or folder, a training run, "
            f"nor a hub id such as openai/clip-vit-base-patch32{published_hint(model)}"
        )
    return _hub_place(hub.model_id, hub.revision, cache)


def contents(source: str) -> str:
    """Return ``weights``, whose conversion needs torch, ``open_clip``, which it needs too, ``graphs``, or ``unknown``.

    It is unknown if the hub does not say. Downloads a hub model's configurations and tokenizer, which say whether it
    can be converted.

    Raises:
        SourceError: the source cannot be converted without options.
    """
    path = Path(source)
    if path.is_dir():
        choice = choose_of_folder(path, SourceOptions(), graphs="without weights")
    elif path.exists():
        if weights_format(path) is None:
            raise unknown_layout(path)
        return "weights"
    else:
        from model_export.checkpoints.at_hand import choice_of_hub
        from model_export.hub.errors import HubUnreachableError

        model_id, _, commit = source.partition("@")
        try:
            choice = choice_of_hub(model_id, commit)
        except HubUnreachableError:
            return "unknown"
    if choice.layout == "onnx":
        return "graphs"
    said = choice.description
    return "open_clip" if said is not None and said.family.name == OPEN_CLIP_TORCH.name else "weights"


def _hub_place(model_id: str, revision: str | None, cache: Path) -> Place:
    from model_export.hub.cache import remembered
    from model_export.hub.errors import HubUnreachableError
    from model_export.hub.fetch import resolve

    stem = cache / _slug(model_id.replace("/", "--"))  # as the hub's own cache writes it
    image_model = image_model_of(model_id)
    asked = [(model_id, revision), *([] if image_model is None else [(image_model, None)])]
    try:
        return _commit_place(model_id, [resolve(model, revision=at) for model, at in asked], stem)
    except HubUnreachableError as exc:
        commits = [commit for model, at in asked if (commit := remembered(model, at)) is not None]
        known = [_commit_place(model_id, commits, stem)] if len(commits) == len(asked) else []
        latest = _latest_first(model_id, stem, len(asked)) if revision is None else []
        places = [*(place for place in known if place.ready), *latest, *known]
        if not places:
            raise
        return replace(places[0], note=f"{str(exc).partition(';')[0]}; using the cached model")


def _commit_place(model_id: str, commits: Sequence[str], stem: Path) -> Place:
    """Return the place of a model's bundle by its commit, and that of the image model that a text model needs."""
    digits = "-".join(commit[:_DIGITS] for commit in commits)
    return _place(f"{model_id}@{commits[0]}", stem.with_name(f"{stem.name}-{digits}"))


def _place(source: str, path: Path) -> Place:
    try:
        load_bundle(path, verify_digests=False)  # the service checks the digests when it starts
    except BundleError:
        return Place(source, path, ready=False)
    return Place(source, path, ready=True)


def _latest_first(source: str, stem: Path, commits: int) -> list[Place]:
    name = re.compile(rf"{re.escape(stem.name)}(-[0-9a-f]{{{_DIGITS}}}){{{commits}}}")
    places = [_place(source, path) for path in stem.parent.glob(f"{stem.name}-*") if name.fullmatch(path.name)]
    ready = [place for place in places if place.ready]
    return sorted(ready, key=lambda place: place.path.stat().st_mtime, reverse=True)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip(".-") or "model"


def _state(path: Path) -> str:
    """Digest the names, sizes and times of a source's files: reading gigabytes at each start would take too long."""
    files = [path] if path.is_file() else [path / name for name in names_in(path)]
    lines = []
    for file in sorted(files):
        if not file.name.startswith("."):
            status = file.stat()
            lines.append(f"{file.relative_to(path.parent)} {status.st_size} {status.st_mtime_ns}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:_DIGITS]


def main() -> None:
    """Print the place of the bundle of the one argument; an error is one line on stderr."""
    try:
        place = locate(sys.argv[1], cache_folder())
        held = "unknown" if place.ready else contents(place.source)
    except SourceError as exc:
        by_hand = _BY_HAND if " --" in str(exc) else ""
        sys.exit(f"anyclass: {exc}{by_hand}")
    if place.note is not None:
        print(f"anyclass: {place.note}", file=sys.stderr)  # noqa: T201
    print("ready" if place.ready else "missing", place.source, place.path, held, sep="\n")  # noqa: T201, read by scripts/model.sh


if __name__ == "__main__":
    main()
