"""Tests of fp16 and int8. The CPU provider computes fp16 in fp32, so ONNX's reference evaluator runs it."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator
from onnxruntime.transformers.float16 import convert_float_to_float16

from model_export.bundles.probes import LABELS, load_probes
from model_export.bundles.verification import verify_bundle
from model_export.checkpoints.training_run import load_training_run
from model_export.errors import ExportError
from model_export.export.from_weights import export_model
from model_export.export.reduce import PictureSample, Reduced, reduce_bundle
from model_export.graphs.precision import FP32_OPERATORS, to_fp16
from service.errors import ConfigurationError
from service.model.engine.engine import OnnxEngine
from service.model.loading import load_bundle
from service.model.manifest import IMAGE_ENCODER, TEXT_ENCODER
from tests.model_export.conftest import Exported, Heard
from tests.support.tiny_run import write_tiny_run

pytestmark = pytest.mark.timeout(600)


def reduced(exported: Exported, out: Path, precision: Reduced, **more: object) -> Heard:
    """Reduce a bundle and return the recorded steps."""
    heard = Heard()
    reduce_bundle(exported.bundle, out, precision=precision, listener=heard, **more)  # type: ignore[arg-type]
    return heard


def narrow_sample(exported: Exported) -> PictureSample:
    """Return grey pictures, and two labels."""
    section = load_bundle(exported.bundle).manifest.image
    pixels = np.random.default_rng(2).integers(120, 136, (16, section.height, section.width, 3), dtype=np.uint8)
    return PictureSample("grey", pixels, ("cat", "rocket"))


def real_sample(exported: Exported) -> PictureSample:
    """Return pictures with structure, of the bundle's size."""
    section = load_bundle(exported.bundle).manifest.image
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    pixels = coarse.repeat(section.height // 4, axis=1).repeat(section.width // 4, axis=2)
    return PictureSample("coarse patterns", pixels, ("cat", "rocket", "cup", "motorcycle"))


def types_into(model: ModelProto, operators: tuple[str, ...]) -> dict[str, set[int]]:
    """Return the element types of the inputs of a graph's operators, by operator."""
    graph = shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    found: dict[str, set[int]] = {}
    for node in graph.node:
        if node.op_type in operators:
            found.setdefault(node.op_type, set()).add(types[node.input[0]])
    return found


def test_fp16_keeps_what_must_be_exact_in_fp32(exported_vit: Exported, tmp_path: Path) -> None:
    """LayerNorm, softmax and unit length get fp32, matrices fp16; input and output keep their types."""
    heard = reduced(exported_vit, tmp_path / "fp16", "fp16")

    for name in (IMAGE_ENCODER, TEXT_ENCODER):
        model = onnx.load(tmp_path / "fp16" / name)
        kept = types_into(model, FP32_OPERATORS)
        assert set(kept) >= {"LayerNormalization", "Softmax", "ReduceSum"}
        assert all(types == {TensorProto.FLOAT} for types in kept.values())
        assert {"MatMul": {TensorProto.FLOAT16}} == types_into(model, ("MatMul",))
        assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    (report,), (agreement,) = heard.reports, heard.agreements
    assert report.passed
    assert agreement.min_image_cosine > 0.9999
    assert agreement.min_text_cosine > 0.9999


def with_outliers(model: ModelProto) -> ModelProto:
    """Raise a few channels of the residual stream to hundreds, as in large CLIP models."""
    changed = ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name.endswith(("positional_embedding", "class_embedding")):
            values = numpy_helper.to_array(tensor).copy()
            values[..., :3] += 900
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return changed


def adversarial_images(height: int, width: int) -> np.ndarray:
    """Return pictures at the edges of the byte range: uint8 ``[6, height, width, 3]``.

    Black, white, one channel alone, a checkerboard of single pixels, stripes, and noise of the two extremes.
    """
    low, high = 0, 255
    board = np.indices((height, width)).sum(axis=0) % 2
    stripes = np.broadcast_to(np.arange(width) % 2, (height, width))
    images = np.full((6, height, width, 3), low, dtype=np.uint8)
    images[1] = high
    images[2, :, :, 0] = high
    images[3] = (board * high)[..., None]
    images[4] = (stripes * high)[..., None]
    images[5] = np.random.default_rng(0).integers(0, 2, (height, width, 3)) * high
    return images


def test_fp16_stays_finite_and_near_where_a_plain_conversion_does_not(exported_vit: Exported) -> None:
    """Computed in real fp16: pictures at the extremes, and outlier channels whose squares leave fp16's range."""
    exact = with_outliers(onnx.load(exported_vit.bundle / IMAGE_ENCODER))
    assert exact != onnx.load(exported_vit.bundle / IMAGE_ENCODER)
    section = load_bundle(exported_vit.bundle).manifest.image
    pixels = {"pixels": adversarial_images(section.height, section.width)}

    def run(model: ModelProto) -> np.ndarray:
        with np.errstate(all="ignore"):
            (vectors,) = ReferenceEvaluator(model).run(None, pixels)
        return np.asarray(vectors, dtype=np.float64)

    copy = ModelProto()
    copy.CopyFrom(exact)
    plain = run(convert_float_to_float16(copy, keep_io_types=True))
    truth = run(exact)
    ours = run(to_fp16(exact))

    assert np.isfinite(ours).all()
    assert (ours * truth).sum(axis=1).min() > 0.999
    assert not np.isfinite(plain).all() or (plain * truth).sum(axis=1).min() < (ours * truth).sum(axis=1).min()


def test_a_narrow_sample_does_not_narrow_the_ranges(exported_vit: Exported, tmp_path: Path) -> None:
    """Calibrated on grey pictures and two labels, the bundle still passes on other pictures and on every length."""
    heard = reduced(exported_vit, tmp_path / "int8", "int8", sample=narrow_sample(exported_vit), calibrate=True)

    (report,) = heard.reports
    assert report.passed


@pytest.mark.parametrize("calibrate", [False, True], ids=["dynamic", "calibrated"])
def test_int8_quantises_matrices_and_nothing_else(exported_vit: Exported, tmp_path: Path, calibrate: bool) -> None:
    """Each MatMul with constant weights has 8-bit weights; attention's own products and LayerNorm stay fp32."""
    heard = reduced(exported_vit, tmp_path / "int8", "int8", sample=real_sample(exported_vit), calibrate=calibrate)

    before = onnx.load(exported_vit.bundle / IMAGE_ENCODER).graph
    constants = {tensor.name for tensor in before.initializer}
    weighted = [node for node in before.node if node.op_type == "MatMul" and node.input[1] in constants]
    after = onnx.load(tmp_path / "int8" / IMAGE_ENCODER).graph
    eight_bits = [t for t in after.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2]
    assert len(weighted) == len(eight_bits) > 0
    operators = Counter(node.op_type for node in after.node)
    if not calibrate:
        assert operators["MatMulInteger"] == len(weighted)
    assert operators["LayerNormalization"] == Counter(node.op_type for node in before.node)["LayerNormalization"]
    (agreement,) = heard.agreements
    assert (agreement.data, agreement.images, agreement.labels) == ("coarse patterns", 40, 4)
    assert agreement.mean_image_cosine > 0.99
    assert agreement.mean_text_cosine > 0.99


def test_the_agreement_is_what_the_two_bundles_answer(exported_vit: Exported, tmp_path: Path) -> None:
    """Both bundles reproduce the manifest's figures; the revision differs, the name does not."""
    sample = real_sample(exported_vit)
    reduced(exported_vit, tmp_path / "int8", "int8", sample=sample)
    first, second = load_bundle(exported_vit.bundle), load_bundle(tmp_path / "int8")

    cosines = (
        OnnxEngine.load(first, "cpu").encode_images(sample.pixels)
        * OnnxEngine.load(second, "cpu").encode_images(sample.pixels)
    ).sum(axis=1)

    agreement = second.manifest.agreement
    assert agreement is not None
    assert agreement.mean_image_cosine == pytest.approx(cosines.mean(), abs=1e-4)
    assert agreement.min_image_cosine == pytest.approx(cosines.min(), abs=1e-3)
    assert "int8" == second.manifest.precision
    assert second.manifest.name == first.manifest.name
    assert second.manifest.revision != first.manifest.revision
    assert verify_bundle(tmp_path / "int8").passed


def test_reducing_twice_gives_the_same_bytes(exported_vit: Exported, tmp_path: Path) -> None:
    """A reduction is reproducible: equal revisions, in each precision."""
    for precision in ("fp16", "int8"):
        for attempt in ("one", "two"):
            reduced(exported_vit, tmp_path / attempt / precision, precision)
        one, two = (load_bundle(tmp_path / attempt / precision).manifest for attempt in ("one", "two"))
        assert one.revision == two.revision


def test_the_cpu_does_not_serve_fp16_unless_forced(exported_vit: Exported, tmp_path: Path) -> None:
    """A CPU would not compute fp16; the error names the precision to export instead."""
    reduced(exported_vit, tmp_path / "fp16", "fp16")

    with pytest.raises(ConfigurationError, match="fp16-stored"):
        OnnxEngine.load(load_bundle(tmp_path / "fp16"), "cpu")


def test_only_an_fp32_bundle_is_reduced(exported_fp16: Exported, exported_vit: Exported, tmp_path: Path) -> None:
    """Rounding twice would be measured against the wrong model; calibration without pictures is refused too."""
    with pytest.raises(ExportError, match="reduce the fp32 bundle"):
        reduced(exported_fp16, tmp_path / "out", "int8")
    with pytest.raises(ExportError, match="--data"):
        reduced(exported_vit, tmp_path / "out", "int8", calibrate=True)

    assert [] == list(tmp_path.iterdir())


def test_a_weight_that_fp16_cannot_hold_is_named(exported_vit: Exported) -> None:
    """No weight becomes infinite or is silently clipped."""
    model = onnx.load(exported_vit.bundle / TEXT_ENCODER)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("ln_final.weight"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e6), tensor.name))

    with pytest.raises(ExportError, match=r"ln_final\.weight.*--precision fp32"):
        to_fp16(model)


def test_reducing_needs_no_torch(exported_vit: Exported, tmp_path: Path) -> None:
    """Reducing a bundle needs only ONNX and its runtime."""
    code = (
        "import sys; from pathlib import Path; from model_export.export.reduce import reduce_bundle; "
        "Silent = type('Silent', (), dict.fromkeys(('wrote', 'measured', 'agreed'), lambda *_: None)); "
        f"reduce_bundle(Path({str(exported_vit.bundle)!r}), Path({str(tmp_path / 'int8')!r}), precision='int8', "
        "listener=Silent()); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "False" == done.stdout.splitlines()[-1]
    assert load_probes(load_bundle(tmp_path / "int8")).inputs.lengths.size


def test_a_short_context_is_compared_on_what_fits(tmp_path: Path) -> None:
    """The comparison omits prompts that are too long for the encoder, as the probes do."""
    source = load_training_run(write_tiny_run(tmp_path / "run", "vit", context_length=14))
    export_model(source, tmp_path / "fp32", listener=Heard())

    heard = Heard()
    reduce_bundle(tmp_path / "fp32", tmp_path / "int8", precision="int8", listener=heard)

    (agreement,) = heard.agreements
    assert 0 < agreement.labels < len(LABELS)
