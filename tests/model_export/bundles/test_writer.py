import stat
from pathlib import Path

import pytest

from model_export.bundles.writer import staged
from model_export.errors import ExportError
from service.model.manifest import MANIFEST


def bundle_at(path: Path, content: str = "old") -> Path:
    """Make a folder that looks like a bundle."""
    path.mkdir()
    (path / MANIFEST).write_text(content)
    return path


def names(path: Path) -> list[str]:
    """List a folder, hidden files too."""
    return sorted(entry.name for entry in path.iterdir())


def test_a_bundle_appears_whole(tmp_path: Path) -> None:
    """The name appears only with the complete bundle, readable by others and without temporary files."""
    out = tmp_path / "deep" / "bundle"
    with staged(out, force=False) as stage:
        (stage / MANIFEST).write_text("new")
        assert not out.exists()

    assert "new" == (out / MANIFEST).read_text()
    assert ["bundle"] == names(out.parent)
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(out.parent.stat().st_mode)


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, interruption: type[BaseException]) -> None:
    """After any failure, the old bundle remains and no temporary file."""
    out = bundle_at(tmp_path / "bundle")
    with pytest.raises(interruption), staged(out, force=True) as stage:  # noqa: PT012
        (stage / MANIFEST).write_text("half")
        raise interruption

    assert "old" == (out / MANIFEST).read_text()
    assert ["bundle"] == names(tmp_path)


def test_an_existing_bundle_is_replaced_only_with_force(tmp_path: Path) -> None:
    """An existing folder is refused without --force, and replaced completely with it."""
    out = bundle_at(tmp_path / "bundle")
    (out / "left-over.onnx").touch()
    with pytest.raises(ExportError, match=r"exists already.*--force"), staged(out, force=False):
        pytest.fail("the block must not run")

    with staged(out, force=True) as stage:
        (stage / MANIFEST).write_text("new")

    assert [MANIFEST] == names(out)
    assert "new" == (out / MANIFEST).read_text()
    assert ["bundle"] == names(tmp_path)


def test_force_replaces_nothing_but_bundles(tmp_path: Path) -> None:
    """A folder without a bundle, a file and a symbolic link remain, even with --force."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(bundle_at(tmp_path / "bundle"))

    for name, reason in (("photos", "is not a bundle"), ("file", "is not a bundle"), ("link", "symbolic link")):
        with pytest.raises(ExportError, match=reason), staged(tmp_path / name, force=True):
            pytest.fail("the block must not run")

    assert ["bundle", "file", "link", "photos"] == names(tmp_path)
    assert ["cat.jpg"] == names(tmp_path / "photos")


def test_a_destination_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """Two exports to one name: the second one to finish is refused."""
    out = tmp_path / "bundle"
    with pytest.raises(ExportError, match="exists already"), staged(out, force=False) as stage:  # noqa: PT012
        (stage / MANIFEST).write_text("second")
        bundle_at(out, "first")

    assert "first" == (out / MANIFEST).read_text()
    assert ["bundle"] == names(tmp_path)


def test_a_disk_that_refuses_is_a_named_error(tmp_path: Path) -> None:
    """A parent that is a file cannot hold a bundle; the error names it."""
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"file.*cannot be written"), staged(tmp_path / "file" / "b", force=False):
        pytest.fail("the block must not run")
