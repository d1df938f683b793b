import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_export.bundles.probes import load_probes, probe_inputs
from model_export.bundles.verification import THRESHOLDS, Report, verify_bundle
from model_export.checkpoints.training_run import load_training_run
from model_export.export.from_weights import reference_probes
from service.errors import ProviderUnavailable
from service.model.loading import load_bundle
from service.model.manifest import (
    IMAGE_ENCODER,
    MANIFEST,
    TEXT_ENCODER,
    TOKENIZER,
    FileEntry,
    Manifest,
    Parity,
    Precision,
)
from service.model.probes import PROBES
from tests.model_export.conftest import Exported
from tests.support.tiny_run import write_tiny_run

# An export takes some seconds, and many more on a busy machine.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def bundle(exported_fp16: Exported, tmp_path: Path) -> Path:
    """Return a copy of a valid bundle, to damage it."""
    return Path(shutil.copytree(exported_fp16.bundle, tmp_path / "bundle"))


def rewrite_manifest(path: Path, *, without: str = "", **changes: object) -> None:
    """Make a bundle's manifest agree with its changed files."""
    manifest = load_manifest(path)
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if "revision" not in name}
    fields.pop("schema_version")
    fields["files"] = {name: FileEntry.of(path / name) for name in manifest.files if name != without}
    (path / MANIFEST).write_text(Manifest.build(**(fields | changes)).to_json())


def load_manifest(path: Path) -> Manifest:
    """Read a manifest without checking the files."""
    return Manifest.model_validate_json((path / MANIFEST).read_bytes())


def spoil_weights(path: Path) -> None:
    """Change the largest weight of a graph by a little."""
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(tensor)
    random = np.random.default_rng(0)
    changed = (values + random.normal(scale=0.02, size=values.shape)).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, path)


def check(report: Report, name: str) -> str:
    """Return the detail of a failed check."""
    (found,) = (check for check in report.checks if check.name == name)
    assert not found.passed
    return found.detail


def test_every_exported_bundle_passes_alone(exported: Exported) -> None:
    """The bundle carries its own reference, and every check passes."""
    report = verify_bundle(exported.bundle)

    assert () == report.failed
    assert report.passed
    assert [check.name for check in report.checks] == [
        "files",
        "recorded parity",
        "tokenizer",
        *(f"images, batch {n}" for n in (1, 2, 7)),
        *(f"texts, batch {n}" for n in (1, 2, 7)),
        "texts, padded to 24",
        "unit length",
    ]


def test_a_bundle_passes_against_its_training_run(exported: Exported) -> None:
    """The reference that torch computes again from the run equals the bundle's probes."""
    run = load_training_run(exported.run)

    report = verify_bundle(exported.bundle, reference=lambda bundle: reference_probes(run, bundle))

    assert () == report.failed
    bundle = load_bundle(exported.bundle)
    again, stored = reference_probes(run, bundle), load_probes(bundle)
    np.testing.assert_array_equal(again.image_vectors, stored.image_vectors)
    np.testing.assert_array_equal(again.text_vectors, stored.text_vectors)


def test_probes_cover_every_text_length_and_pictures_of_every_grain(exported_fp16: Exported) -> None:
    """Inputs are a text of each length from 2 to the context, real prompts, and pictures beyond noise."""
    bundle = load_bundle(exported_fp16.bundle)
    inputs = probe_inputs(bundle)

    assert set(inputs.lengths.tolist()) == set(range(2, 25))
    end = bundle.manifest.text.end_of_text_id
    assert [row.tolist().index(end) + 1 for row in inputs.ids] == inputs.lengths.tolist()
    colours = [len(np.unique(picture.reshape(-1, 3), axis=0)) for picture in inputs.pixels]
    assert colours == sorted(colours, reverse=True)
    assert 1 == colours[-1]


def test_verifying_needs_no_torch(exported_fp16: Exported) -> None:
    """A serving machine without torch can verify a bundle; a subprocess forbids the import."""
    code = "import sys; sys.modules['torch'] = None; from model_export.cli import app; app(['verify', sys.argv[1]])"
    done = subprocess.run(
        [sys.executable, "-c", code, exported_fp16.bundle], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr


@pytest.mark.parametrize("name", [IMAGE_ENCODER, TEXT_ENCODER, "tokenizer.json", PROBES])
def test_a_changed_file_fails_by_name(bundle: Path, name: str) -> None:
    """The digest finds one changed byte; nothing of such a bundle runs."""
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)

    report = verify_bundle(bundle)

    assert ("files",) == report.failed
    assert name in check(report, "files")


@pytest.mark.parametrize(("name", "kind"), [(IMAGE_ENCODER, "images"), (TEXT_ENCODER, "texts")])
def test_other_weights_fail_by_encoder(bundle: Path, name: str, kind: str) -> None:
    """Verification finds a graph that runs but computes something else, even if every digest agrees."""
    spoil_weights(bundle / name)
    rewrite_manifest(bundle)

    report = verify_bundle(bundle)

    wanted = [f"{kind}, batch {n}" for n in (1, 2, 7)] + (["texts, padded to 24"] if kind == "texts" else [])
    assert list(report.failed) == wanted


def test_a_graph_with_a_fixed_batch_fails_at_the_other_sizes(bundle: Path) -> None:
    """A graph that the runtime refuses is a failed check, not an exception."""
    model = onnx.load(bundle / IMAGE_ENCODER)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save(model, bundle / IMAGE_ENCODER)
    rewrite_manifest(bundle)

    report = verify_bundle(bundle)

    assert not report.passed
    assert set(report.failed) <= {"graphs", "images, batch 1", "images, batch 2"}


def test_a_file_that_is_no_graph_fails(bundle: Path) -> None:
    """A text file under the name of a graph, with the right digest, is found when the engine loads it."""
    (bundle / TEXT_ENCODER).write_text("not a graph")
    rewrite_manifest(bundle)
    assert ("graphs",) == verify_bundle(bundle).failed


@pytest.mark.parametrize("change", [{"normalizer": None}, {"post_processor": None}, {"model": None}])
def test_another_tokenizer_fails(bundle: Path, change: dict[str, None]) -> None:
    """Verification finds a tokenizer with other ids, or none, even if every digest agrees."""
    tokenizer = json.loads((bundle / TOKENIZER).read_text())
    (bundle / TOKENIZER).write_text(json.dumps(tokenizer | change))
    rewrite_manifest(bundle)

    assert ("tokenizer",) == verify_bundle(bundle).failed


def test_a_bundle_without_probes_needs_a_reference(bundle: Path, exported_fp16: Exported) -> None:
    """Without probes the check fails with a remedy; with the run it passes."""
    (bundle / PROBES).unlink()
    rewrite_manifest(bundle, without=PROBES)

    report = verify_bundle(bundle)
    assert ("reference",) == report.failed
    assert "--run" in check(report, "reference")

    run = load_training_run(exported_fp16.run)
    assert verify_bundle(bundle, reference=lambda opened: reference_probes(run, opened)).passed


def test_probes_of_another_shape_fail(bundle: Path) -> None:
    """Probes that do not fit the manifest are refused by name."""
    rewrite_manifest(bundle, dim=25)
    assert PROBES in check(verify_bundle(bundle), "reference")


def test_another_training_run_is_not_the_reference(exported_fp16: Exported, tmp_path: Path) -> None:
    """A comparison with the wrong run is reported as such, not as a difference of vectors."""
    other = load_training_run(write_tiny_run(tmp_path / "other", seed=1))

    report = verify_bundle(exported_fp16.bundle, reference=lambda bundle: reference_probes(other, bundle))

    assert ("reference",) == report.failed
    assert "different weights" in check(report, "reference")


@pytest.mark.parametrize(
    "parity",
    [
        None,
        Parity(reference="torch", max_abs_difference=2e-4, min_cosine=1),
        Parity(reference="torch", max_abs_difference=1e-6, min_cosine=0.99),
    ],
)
def test_recorded_parity_is_checked(bundle: Path, parity: Parity | None) -> None:
    """A bundle without a measurement, or with a bad one, fails."""
    rewrite_manifest(bundle, parity=parity)
    assert ("recorded parity",) == verify_bundle(bundle).failed


def test_every_precision_has_limits() -> None:
    """Every precision has limits."""
    assert set(THRESHOLDS) == set(get_args(Precision))


def test_a_manifest_that_was_edited_fails(bundle: Path) -> None:
    """A changed scale no longer agrees with the revision."""
    fields = json.loads((bundle / MANIFEST).read_text())
    fields["scoring"]["logit_scale"] = 1.0
    (bundle / MANIFEST).write_text(json.dumps(fields))
    assert "revision" in check(verify_bundle(bundle), "files")


def test_a_missing_provider_says_nothing_about_the_bundle(exported_fp16: Exported) -> None:
    """A missing provider is an error of the machine, so it is raised and not a failed check."""
    with pytest.raises(ProviderUnavailable):
        verify_bundle(exported_fp16.bundle, provider="tensorrt")
