"""Write a bundle completely or not at all, and never over anything but a bundle."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model_export.errors import ExportError
from model_export.files import sync
from service.model.manifest import (
    MANIFEST,
    TEMPLATES,
    TOKENIZER,
    Agreement,
    FileEntry,
    ImageSection,
    Manifest,
    Parity,
    Precision,
    Provenance,
    SigmoidScoring,
    SoftmaxScoring,
    TextSection,
)


def check_destination(out: Path, *, force: bool) -> None:
    """Refuse a destination that must not be replaced, before the long work and again before the swap.

    Raises:
        ExportError: ``out`` exists and ``force`` is not set, or it is not a bundle.
    """
    if out.is_symlink():
        raise ExportError(f"{out}: is a symbolic link; name the folder itself")
    if not out.exists():
        return
    if not force:
        raise ExportError(f"{out}: exists already; choose another name, or replace it with --force")
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise ExportError(f"{out}: is not a bundle, so --force does not replace it")


@dataclass(frozen=True)
class BundleSource:
    """A model that passed every check, with everything that its bundle states except measurements.

    Attributes:
        name: the bundle's name, a slug.
        aliases: other names the service answers to, such as a hub id.
        architecture: for people, as ``clip/vit``.
        dim: of the joint space.
        image: how a picture is prepared; mean and std go into the graph.
        scoring: how cosines become scores, the scale already exponentiated.
        templates: named prompt-template sets, one of them ``default``.
        tokenizer: the bytes of a ``tokenizer.json`` that neither pads nor truncates and adds the special tokens.
        provenance: source, digest of the weights, licence, recipe and card.
    """

    name: str
    aliases: tuple[str, ...]
    architecture: str
    dim: int
    image: ImageSection
    text: TextSection
    scoring: SoftmaxScoring | SigmoidScoring
    templates: dict[str, tuple[str, ...]]
    tokenizer: bytes
    provenance: Provenance


def write_tokenizer(source: BundleSource, stage: Path) -> None:
    """Write the tokenizer and the templates."""
    (stage / TOKENIZER).write_bytes(source.tokenizer)
    templates = json.dumps(source.templates, indent=2, sort_keys=True, ensure_ascii=False)
    (stage / TEMPLATES).write_text(f"{templates}\n", encoding="utf-8")


def write_manifest(
    source: BundleSource | Manifest,
    stage: Path,
    *,
    precision: Precision,
    text: TextSection | None = None,
    parity: Parity | None = None,
    agreement: Agreement | None = None,
) -> Manifest:
    """Write the manifest of all files in the folder `stage`.

    The source, or the manifest of another bundle, provides everything that is not measured, and the preprocessing of
    texts unless `text` is given.
    """
    manifest = Manifest.build(
        name=source.name,
        aliases=source.aliases,
        architecture=source.architecture,
        dim=source.dim,
        image=source.image,
        text=text or source.text,
        scoring=source.scoring,
        precision=precision,
        files={path.name: FileEntry.of(path) for path in sorted(stage.iterdir()) if path.name != MANIFEST},
        parity=parity,
        agreement=agreement,
        provenance=source.provenance,
    )
    (stage / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty folder beside ``out``, and rename it to ``out`` if the block succeeds.

    After a failure, ``out`` is unchanged and the folder is removed. The content is synced to the disk before the
    rename. Replacing an existing bundle takes two renames: a process that opens it within the microseconds between
    them finds nothing.

    Raises:
        ExportError: the destination may not be replaced, or the disk refuses.
    """
    out = out.absolute()
    check_destination(out, force=force)
    suffix = f"{os.getpid()}-{secrets.token_hex(4)}"
    stage = out.with_name(f".{out.name}.{suffix}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage.mkdir()
        yield stage
        _sync_tree(stage)
        check_destination(out, force=force)
        _take_place(stage, out, aside=out.with_name(f".{out.name}.{suffix}.old"))
        sync(out.parent)
    except OSError as exc:
        raise ExportError(f"{exc.filename or out}: cannot be written ({exc.strerror or exc})") from exc
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _take_place(stage: Path, out: Path, *, aside: Path) -> None:
    if not out.exists():
        stage.rename(out)
        return
    out.rename(aside)
    try:
        stage.rename(out)
    except OSError:
        aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync_tree(root: Path) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        sync(path)
    sync(root)
