import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.errors import BundleError
from service.model.loading import load_bundle
from service.model.manifest import (
    IMAGE_ENCODER,
    MANIFEST,
    TEMPLATES,
    TEXT_ENCODER,
    TOKENIZER,
    FileEntry,
    ImageSection,
    Manifest,
    Parity,
    Provenance,
    SigmoidScoring,
    SoftmaxScoring,
    TextSection,
)
from tests.support.tiny_bundle import write_tiny_bundle


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good bundle."""
    return write_tiny_bundle(tmp_path / "tiny")


def _build(manifest: Manifest, **changes: Any) -> Manifest:
    """Make the manifest again, with other values and both revisions right."""
    fields = {name: getattr(manifest, name) for name in Manifest.model_fields}
    for name in ("schema_version", "revision", "text_revision"):
        del fields[name]
    return Manifest.build(**(fields | changes))


def _write(path: Path, manifest: Manifest) -> None:
    (path / MANIFEST).write_text(manifest.to_json(), "utf-8")


def _list(path: Path, name: str) -> None:
    """List one more file, whatever it is, in an otherwise right manifest."""
    manifest = load_bundle(path).manifest
    _write(path, _build(manifest, files=manifest.files | {name: FileEntry(sha256="0" * 64, bytes=1)}))


def test_a_good_bundle_loads(path: Path) -> None:
    """Manifest and template sets come out as they went in."""
    bundle = load_bundle(path)
    assert "tiny" == bundle.manifest.name
    assert {"default": ("a photo of a {}.",), "none": ("{}",)} == bundle.templates
    assert SoftmaxScoring(logit_scale=20.0) == bundle.manifest.scoring


def test_json_is_canonical(path: Path) -> None:
    """Equal manifests are equal bytes, and reading them back loses nothing."""
    manifest = load_bundle(path).manifest
    text = manifest.to_json()
    assert text.endswith("}\n")
    assert manifest == Manifest.model_validate_json(text)
    assert text == Manifest.model_validate_json(text).to_json()
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_a_bundle_written_twice_is_the_same(path: Path, tmp_path: Path) -> None:
    """Nothing of the machine or the hour is in it."""
    again = write_tiny_bundle(tmp_path / "again")
    assert (path / MANIFEST).read_bytes() == (again / MANIFEST).read_bytes()


def test_revision_follows_what_decides_an_answer(path: Path) -> None:
    """Scale, preprocessing and files do; parity and provenance do not."""
    manifest = load_bundle(path).manifest
    squash = manifest.image.model_copy(update={"resize": "squash"})
    for change in ({"scoring": SoftmaxScoring(logit_scale=21.0)}, {"image": squash}, {"name": "other"}):
        assert manifest.revision != _build(manifest, **change).revision
        assert manifest.text_revision == _build(manifest, **change).text_revision
    parity = Parity(reference="torch", max_abs_difference=1e-6, min_cosine=1.0)
    assert manifest.revision == _build(manifest, parity=parity, provenance=Provenance(source="elsewhere")).revision


def test_text_revision_follows_what_decides_a_texts_vector(path: Path) -> None:
    """Text graph, its external data, tokenizer and text section, and nothing of the image side."""
    manifest = load_bundle(path).manifest
    other = FileEntry(sha256="1" * 64, bytes=1)
    for name in (TEXT_ENCODER, TOKENIZER, f"{TEXT_ENCODER}.data"):
        assert manifest.text_revision != _build(manifest, files=manifest.files | {name: other}).text_revision
    for name in (IMAGE_ENCODER, TEMPLATES, f"{IMAGE_ENCODER}.data"):
        changed = _build(manifest, files=manifest.files | {name: other})
        assert manifest.text_revision == changed.text_revision
        assert manifest.revision != changed.revision
    longer = manifest.text.model_copy(update={"max_length": 63})
    assert manifest.text_revision != _build(manifest, text=longer).text_revision


@pytest.mark.parametrize("name", [IMAGE_ENCODER, TEXT_ENCODER, TOKENIZER, TEMPLATES])
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    """The operator sees which one to look for."""
    (path / name).unlink()
    with pytest.raises(BundleError, match=f"{re.escape(name)}: is missing"):
        load_bundle(path)


@pytest.mark.parametrize("name", [IMAGE_ENCODER, TEXT_ENCODER, TOKENIZER, TEMPLATES])
def test_a_changed_or_truncated_file_is_named(path: Path, name: str) -> None:
    """One flipped bit is found by digest, a lost byte already by size."""
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{re.escape(name)}: does not have the sha256"):
        load_bundle(path)
    (path / name).write_bytes(content[:-1])
    with pytest.raises(BundleError, match=rf"{re.escape(name)}: has \d+ bytes"):
        load_bundle(path, verify_digests=False)


def test_digests_may_be_left_unread(path: Path) -> None:
    """For a bundle that was verified a moment ago."""
    content = bytearray((path / IMAGE_ENCODER).read_bytes())
    content[-1] ^= 1
    (path / IMAGE_ENCODER).write_bytes(content)
    assert "tiny" == load_bundle(path, verify_digests=False).manifest.name


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "", "a\\b", "C:secret", "a\0b"])
def test_paths_outside_the_bundle_are_refused(path: Path, name: str) -> None:
    """Even where everything else about the manifest is right."""
    (path.parent / "secret").write_bytes(b"x")
    _list(path, name)
    with pytest.raises(BundleError, match="is not a path inside the bundle"):
        load_bundle(path)


def test_a_link_that_leads_outside_is_refused(path: Path) -> None:
    """While links within the bundle, as Kubernetes mounts them, are fine."""
    target = path.parent / "outside.onnx"
    (path / IMAGE_ENCODER).rename(target)
    (path / IMAGE_ENCODER).symlink_to(target)
    with pytest.raises(BundleError, match="leads outside the bundle"):
        load_bundle(path)
    (path / IMAGE_ENCODER).unlink()
    (path / "..data").mkdir()
    target.rename(path / "..data" / IMAGE_ENCODER)
    (path / IMAGE_ENCODER).symlink_to(Path("..data") / IMAGE_ENCODER)
    assert "tiny" == load_bundle(path).manifest.name


def test_a_listed_directory_or_loop_is_refused(path: Path) -> None:
    """Whatever stands in a file's place, the answer is ours."""
    (path / "folder").mkdir()
    _list(path, "folder")
    with pytest.raises(BundleError, match="is not a file"):
        load_bundle(path)
    (path / "folder").rmdir()
    (path / "folder").symlink_to("folder")
    with pytest.raises(BundleError, match="folder: "):
        load_bundle(path)


def test_a_file_that_nothing_vouches_for_is_refused(path: Path) -> None:
    """A graph could keep its weights in it; notes and hidden files are left in peace."""
    (path / "README.md").write_text("about", "utf-8")
    (path / ".gitattributes").write_text("", "utf-8")
    load_bundle(path)
    (path / "image_encoder.onnx.data").write_bytes(b"weights")
    with pytest.raises(BundleError, match=r"onnx\.data: is not listed"):
        load_bundle(path)


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(fields: dict[str, Any]) -> None:
        *parents, last = key.split("/")
        for parent in parents:
            fields = fields[parent]
        fields[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("schema_version", 2), "schema version 2"),
        (_set("surprise", 1), "surprise: is not known here"),
        (_set("image/height", 0), "image.height: "),
        (_set("image/crop", "none"), "needs crop 'center'"),
        (_set("text/min_length", 999), "min_length 999 is above"),
        (_set("name", "Not A Slug"), "name: "),
        (_set("name", "../up"), "name: "),
        (_set("scoring", {"kind": "magic"}), "scoring: "),
        (_set("files", {}), "files lacks image_encoder.onnx"),
        (_set("scoring/logit_scale", 21.0), "revision does not match"),
        (_set("text/max_length", 63), "text_revision does not match"),
        (_set("dim", 17), "revision does not match"),
    ],
)
def test_a_manifest_that_breaks_the_contract_says_where(
    path: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    """Unknown schema, unknown or wrong fields, and changes after the fact."""
    fields = json.loads((path / MANIFEST).read_text("utf-8"))
    edit(fields)
    (path / MANIFEST).write_text(json.dumps(fields), "utf-8")
    with pytest.raises(BundleError, match=rf"manifest\.json: .*{re.escape(message)}"):
        load_bundle(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"schema_version": 1e999}'])
def test_a_manifest_that_is_no_manifest_is_refused(path: Path, content: bytes) -> None:
    """Any bytes at all give our error."""
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        load_bundle(path)


@pytest.mark.parametrize("sets", [{}, {"other": ["{}"]}, {"default": []}, {"default": ["no place"]}, {"default": "{}"}])
def test_unusable_templates_are_refused(path: Path, sets: Any) -> None:
    """Every bundle has a default set, and every template one place for a label."""
    (path / TEMPLATES).write_text(json.dumps(sets), "utf-8")
    manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    _write(path, _build(manifest, files=manifest.files | {TEMPLATES: FileEntry.of(path / TEMPLATES)}))
    with pytest.raises(BundleError, match=r"templates\.json: "):
        load_bundle(path)


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    """So are a file where a directory should be and a folder without a manifest; it says how a bundle is made."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name in ("nowhere", "file", "folder"):
        path = tmp_path / name
        said = (
            f"{path}: is not a bundle (it has no manifest.json); to make one of a hub id, a checkpoint or a training "
        )
        with pytest.raises(
            BundleError, match=re.escape(f"{said}run: make run MODEL={path}, or anyclass-export export")
        ):
            load_bundle(path)
    (tmp_path / "folder" / MANIFEST).mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
        load_bundle(tmp_path / "folder")


def test_numbers_that_are_not_finite_are_refused() -> None:
    """They have no place in JSON, nor in a score."""
    with pytest.raises(ValidationError):
        SigmoidScoring(logit_scale=10.0, logit_bias=float("nan"))
    with pytest.raises(ValidationError):
        SoftmaxScoring(logit_scale=0.0)


def test_sections_are_frozen(path: Path) -> None:
    """What was verified cannot change later."""
    manifest = load_bundle(path).manifest
    for section, field in ((manifest, "dim"), (manifest.image, "width"), (manifest.text, "pad_id")):
        assert isinstance(section, Manifest | ImageSection | TextSection)
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, field, 1)
