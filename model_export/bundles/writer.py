"""Writing a bundle: all of it or nothing, and never over something that is not a bundle."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from model_export.errors import ExportError
from service.model.manifest import (
    MANIFEST,
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
    """Refuse what must not be replaced; called before the long work and again before the swap.

    Raises:
        ExportError: ``out`` exists and ``force`` is not set, or it is something other than a bundle.
    """
    if out.is_symlink():
        raise ExportError(f"{out}: is a symbolic link; name the folder itself")
    if not out.exists():
        return
    if not force:
        raise ExportError(f"{out}: exists already; choose another name, or replace it with --force")
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise ExportError(f"{out}: is not a bundle, so --force does not replace it")


class Described(Protocol):
    """What a manifest takes from whatever it is made of: a model, published graphs, or another bundle's manifest."""

    @property
    def name(self) -> str:
        """A slug."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names."""

    @property
    def architecture(self) -> str:
        """For people."""

    @property
    def dim(self) -> int:
        """Of the joint space."""

    @property
    def image(self) -> ImageSection:
        """How a picture is prepared."""

    @property
    def text(self) -> TextSection:
        """How a text is prepared."""

    @property
    def scoring(self) -> SoftmaxScoring | SigmoidScoring:
        """How cosines become scores."""

    @property
    def provenance(self) -> Provenance:
        """Where the weights come from."""


def write_manifest(
    source: Described,
    stage: Path,
    *,
    precision: Precision,
    text: TextSection | None = None,
    parity: Parity | None = None,
    agreement: Agreement | None = None,
) -> Manifest:
    """Write the manifest of the files in a folder.

    Args:
        source: says everything that is not measured.
        stage: the folder; every file in it becomes part of the bundle.
        precision: of the graphs.
        text: how texts are prepared, where that is not as ``source`` says.
        parity: as measured.
        agreement: as measured.
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
    """Yield an empty folder beside ``out`` that takes its place when the block ends well.

    Whatever goes wrong, ``out`` is then what it was before, and the folder is gone. The content is on the disk before
    the name is. Replacing an existing bundle takes two renames: a process that opens it by name between them, a
    moment of microseconds, finds nothing.

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
        _sync(out.parent)
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
        _sync(path)
    _sync(root)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
