"""Reads and checks a bundle."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import JsonValue, TypeAdapter, ValidationError

from service.errors import BundleError
from service.model.manifest import DEFAULT_TEMPLATES, MANIFEST, SCHEMA_VERSION, TEMPLATES, FileEntry, Manifest
from service.validation_messages import faults


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed `load_bundle`."""

    path: Path
    manifest: Manifest
    templates: dict[str, tuple[str, ...]]


def load_bundle(path: Path, *, verify_digests: bool = True) -> Bundle:
    """Read and check the bundle at `path`.

    Sizes, paths and revisions are always checked; `verify_digests=False` skips the one check that reads every byte.
    Raises BundleError, which names the faulty file.
    """
    if not (path / MANIFEST).exists():
        raise BundleError(
            f"{path}: is not a bundle (it has no {MANIFEST}); to make one of a hub id, a checkpoint or a training run: "
            f"make run MODEL={path}, or anyclass-export export (docs/export.md)"
        )
    manifest = _read_manifest(path / MANIFEST)
    root = path.resolve()
    for name, entry in manifest.files.items():
        _check_file(root, name, entry, verify_digest=verify_digests)
    _refuse_unlisted(root, manifest)
    return Bundle(path=path, manifest=manifest, templates=_read_templates(path / TEMPLATES))


def _read_manifest(path: Path) -> Manifest:
    fields = _read_json(path)
    if not isinstance(fields, dict):
        raise BundleError(f"{path}: must hold a JSON object")
    if fields.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(
            f"{path}: has schema version {fields.get('schema_version')!r}, "
            f"this service reads {SCHEMA_VERSION}; export the model again"
        )
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as exc:
        raise BundleError(f"{path}: {_explain(exc)}") from exc
    if manifest.text_revision != manifest.compute_text_revision():
        raise BundleError(f"{path}: text_revision does not match the content; the manifest was changed")
    if manifest.revision != manifest.compute_revision():
        raise BundleError(f"{path}: revision does not match the content; the manifest was changed")
    return manifest


def _read_templates(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        sets = TypeAdapter(dict[str, tuple[str, ...]]).validate_python(_read_json(path))
    except ValidationError as exc:
        raise BundleError(f"{path}: {_explain(exc)}") from exc
    if DEFAULT_TEMPLATES not in sets:
        raise BundleError(f"{path}: has no template set {DEFAULT_TEMPLATES!r}")
    for name, templates in sets.items():
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise BundleError(f"{path}: set {name!r} must hold templates with exactly one {{}} each")
    return sets


def _read_json(path: Path) -> JsonValue:
    try:
        content: JsonValue = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise BundleError(f"{path}: is missing") from exc
    except OSError as exc:
        raise BundleError(f"{path}: cannot be read ({exc.strerror})") from exc
    except (ValueError, RecursionError) as exc:
        raise BundleError(f"{path}: is not JSON in UTF-8") from exc
    return content


def _check_file(root: Path, name: str, entry: FileEntry, *, verify_digest: bool) -> None:
    pure = PurePosixPath(name)
    if not name or "\\" in name or "\0" in name or ":" in name or pure.is_absolute() or ".." in pure.parts:
        raise BundleError(f"{name!r}: is not a path inside the bundle {root}")
    try:
        path = (root / pure).resolve(strict=True)
        if not path.is_relative_to(root):
            raise BundleError(f"{root / pure}: leads outside the bundle, to {path}")
        if not path.is_file():
            raise BundleError(f"{path}: is not a file")
        size = path.stat().st_size
        if size != entry.bytes:
            raise BundleError(f"{path}: has {size} bytes, the manifest says {entry.bytes}; copy the bundle again")
        if verify_digest and FileEntry.of(path).sha256 != entry.sha256:
            raise BundleError(f"{path}: does not have the sha256 of the manifest; copy the bundle again")
    except FileNotFoundError as exc:
        raise BundleError(f"{root / pure}: is missing") from exc
    except (OSError, RuntimeError) as exc:  # RuntimeError: a loop of symbolic links, before Python 3.13
        raise BundleError(f"{root / pure}: cannot be read ({exc})") from exc


def _refuse_unlisted(root: Path, manifest: Manifest) -> None:
    # A graph may keep weights in any file beside it, so a file without a digest could change every answer unnoticed.
    # File managers, volumes and model hubs leave hidden files and readmes, which are allowed.
    listed = {MANIFEST, *manifest.files}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        ignored = path.suffix in {".md", ".txt"} or any(part.startswith(".") for part in Path(name).parts)
        if name not in listed and not ignored and not path.is_dir():
            raise BundleError(f"{path}: is not listed in {MANIFEST}, so it cannot be verified; remove it")


def _explain(exc: ValidationError) -> str:
    return "; ".join(f"{name or 'content'}: {fault}" for name, fault in faults(exc.errors()))
