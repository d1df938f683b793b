"""Find the files of the data, and their digests; a folder of pictures counts as one file."""

from __future__ import annotations

from collections.abc import Sequence

from model_export.curation.output import Output, json_bytes, read_json, write_whole, writing
from model_export.curation.picture_folders import folder_mark, holds_pictures, is_picture_folder
from model_export.curation.pieces import file_digest
from model_export.curation.progress import CurationProgress
from model_export.data.locations import describe
from model_export.data.patterns import expanded, file_names, files_in
from model_export.drivers.driver import Driver
from model_export.errors import DataError


def input_names(data: Sequence[str], *, texts: bool) -> list[str]:
    """Return the files that data stand for; a folder of pictures, without Parquet files and tars, is one of them.

    Args:
        data: files, folders and ranges of names.
        texts: the data must have texts, so that a folder of pictures is refused.

    Raises:
        DataError: none are named, or a name cannot be used.
    """
    names: list[str] = []
    for name in (each for given in data for each in expanded(given)):
        if not is_picture_folder(name) or files_in(name):
            names += file_names([name])
        elif not holds_pictures(name):
            kinds = "jpg, png, webp, gif, bmp, tiff or avif"
            raise DataError(f"{name}: holds no files named .parquet or .tar, and no pictures ({kinds})")
        elif texts:
            raise DataError(f"{name}: holds pictures, and no texts; name Parquet files or tars, or do without texts")
        else:
            names.append(name)
    if not names:
        raise DataError("no data: name Parquet or tar files, or folders of them")
    return names


def input_digests(output: Output, names: Sequence[str], driver: Driver, progress: CurationProgress) -> dict[str, str]:
    """Return the digest of each file; unchanged files keep the digest from an earlier run.

    Raises:
        DataError: one cannot be read.
    """
    known = read_json(output.digests) or {}
    marks = {name: list(folder_mark(name) if is_picture_folder(name) else describe(name)) for name in names}
    digests = {name: known[name][1] for name in names if name in known and known[name][0] == marks[name]}
    todo = [name for name in dict.fromkeys(names) if name not in digests]
    progress.begin("input files", len(todo))
    try:
        for name, digest in driver.run(_named_digest, todo, threads=True):
            digests[name] = digest
            progress.advance()
    finally:
        with writing(output.digests):
            write_whole(output.digests, json_bytes({name: [marks[name], digests[name]] for name in digests}))
    return digests


def check_unchanged(output: Output, names: Sequence[str]) -> None:
    """Check that folders of pictures are those whose digests were taken.

    Raises:
        DataError: a picture was added, changed or removed since then.
    """
    known = read_json(output.digests) or {}
    for name in filter(is_picture_folder, names):
        if name in known and known[name][0] != list(folder_mark(name)):
            raise DataError(
                f"{name}: was changed while it was read, and is other data now; start again with another output folder"
            )


def _named_digest(name: str) -> tuple[str, str]:
    return name, file_digest(name)
