import copy
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from onnxruntime.transformers.optimizer import optimize_model
from torch import nn

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.bundles.probes import load_probes
from model_export.checkpoints.training_run import load_training_run
from model_export.errors import ExportError, ParityError
from model_export.export.from_weights import export_model, served_encoders
from model_export.graphs.folding import fold_batch_norm, round_to_fp16
from model_export.graphs.passes import save, store_fp16
from model_export.graphs.torch_export import export_image_encoder
from service.model.engine.engine import OnnxEngine
from service.model.loading import load_bundle
from service.model.manifest import IMAGE_ENCODER, TEXT_ENCODER, TOKENIZER
from service.model.tokenizer import Tokenizer
from tests.model_export.conftest import Exported, Heard
from tests.support.tiny_run import TOWERS, write_tiny_run

ATOL = 1e-5

# An export takes some seconds, and many more on a busy machine.
pytestmark = pytest.mark.timeout(600)


def operators(path: Path) -> Counter[str]:
    """Count a graph's nodes by operator."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def axes(value: onnx.ValueInfoProto) -> list[int | str]:
    """Return the shape, dynamic axes by name."""
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_graphs_have_the_contracted_inputs_and_outputs(exported: Exported) -> None:
    """Pixels are uint8 of fixed size and any batch; ids are int64 with both axes dynamic; vectors are float32."""
    run = load_training_run(exported.run)
    size = run.image.height

    image = onnx.load(exported.bundle / IMAGE_ENCODER).graph
    assert ["batch", size, size, 3] == axes(image.input[0])
    assert image.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    text = onnx.load(exported.bundle / TEXT_ENCODER).graph
    assert ["batch", "length"] == axes(text.input[0])
    assert text.input[0].type.tensor_type.elem_type == TensorProto.INT64
    for graph in (image, text):
        assert len(graph.input) == len(graph.output) == 1
        assert ["batch", 24] == axes(graph.output[0])
        assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_image_vectors_are_torchs(exported: Exported, batch: int) -> None:
    """The served graph gives torch's float32 vectors for any picture, in any batch size."""
    run = load_training_run(exported.run)
    section = run.image
    shape = (batch, section.height, section.width, 3)
    pixels = np.random.default_rng(batch).integers(0, 256, shape, dtype=np.uint8)
    with torch.no_grad():
        expected = ImageEncoder(run.model, section.mean, section.std)(torch.from_numpy(pixels)).numpy()

    actual = OnnxEngine.load(load_bundle(exported.bundle), "cpu").encode_images(pixels)

    np.testing.assert_allclose(actual, expected, atol=ATOL)
    np.testing.assert_allclose(np.linalg.norm(actual, axis=1), 1, atol=ATOL)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_text_vectors_are_torchs_at_every_length(exported: Exported, batch: int) -> None:
    """The length is dynamic: every one from 2 to the context gives torch's vectors, and padding changes nothing."""
    run = load_training_run(exported.run)
    text = run.text
    vocabulary = len(run.model.text.get_parameter("token_embedding.weight"))
    engine = OnnxEngine.load(load_bundle(exported.bundle), "cpu")
    random = np.random.default_rng(batch)
    for length in range(2, text.max_length + 1):
        ids = random.integers(text.end_of_text_id + 1, vocabulary, (batch, length))
        ids[:, -1] = text.end_of_text_id
        with torch.no_grad():
            expected = TextEncoder(run.model)(torch.from_numpy(ids)).numpy()

        actual = engine.encode_texts(ids)

        np.testing.assert_allclose(actual, expected, atol=ATOL)
        padded = np.full((batch, text.max_length), text.pad_id)
        padded[:, :length] = ids
        np.testing.assert_allclose(engine.encode_texts(padded), actual, atol=ATOL)


def test_real_prompts_agree_and_only_the_first_end_of_text_counts(exported: Exported) -> None:
    """Tokenised prompts give torch's vectors; whatever follows the first end-of-text token changes nothing."""
    run = load_training_run(exported.run)
    bundle = load_bundle(exported.bundle)
    engine = OnnxEngine.load(bundle, "cpu")
    ids = Tokenizer.from_bundle(bundle).encode(["a photo of a cat.", "A ROCKET", "tea"])
    with torch.no_grad():
        expected = TextEncoder(run.model)(torch.from_numpy(ids)).numpy()

    np.testing.assert_allclose(engine.encode_texts(ids), expected, atol=ATOL)
    end = np.full((3, 1), run.text.end_of_text_id)
    np.testing.assert_allclose(engine.encode_texts(np.hstack([ids, end])), expected, atol=ATOL)


def test_graphs_are_clean(exported: Exported) -> None:
    """Batch norms are folded, no layer computes shapes, and no trace of exporter, source or machine remains."""
    image, text = operators(exported.bundle / IMAGE_ENCODER), operators(exported.bundle / TEXT_ENCODER)
    assert 0 == image["BatchNormalization"]
    assert image["Shape"] <= 1, "only a class token's batch"
    assert 1 == text["Shape"], "only to slice positions and mask"
    assert not text.keys() & {"Concat", "Range", "Expand", "Where", "Identity", "Constant"}
    for name in (IMAGE_ENCODER, TEXT_ENCODER):
        model = onnx.load(exported.bundle / name)
        assert model.producer_name == model.producer_version == model.doc_string == ""
        assert not model.metadata_props
        assert not model.functions
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
        content = (exported.bundle / name).read_bytes()
        assert b"torch" not in content
        assert b"/" not in bytes(model.graph.name, "utf-8")


def test_manifest_says_what_the_run_says(exported: Exported) -> None:
    """Scale, text section, provenance and parity come from the run and the measurement."""
    run = load_training_run(exported.run)
    manifest = load_bundle(exported.bundle).manifest

    assert manifest.scoring.logit_scale == pytest.approx(1 / 0.07)
    assert manifest.architecture == run.architecture
    assert (manifest.text.padding, manifest.text.min_length, manifest.text.max_length) == ("longest", 2, 24)
    assert manifest.text.end_of_text_id == run.text.end_of_text_id
    assert manifest.provenance == run.provenance
    assert {"name": "tiny", "seed": 0, "optim": {"lr": 1e-3}} == manifest.provenance.recipe
    assert manifest.parity is not None
    assert manifest.parity.max_abs_difference < 1e-5
    assert manifest.parity.min_cosine > 0.99999
    assert (exported.bundle / TOKENIZER).read_bytes() == run.tokenizer


def test_listener_hears_of_each_step(exported: Exported) -> None:
    """The listener receives both graphs and the measurement."""
    assert [IMAGE_ENCODER, TEXT_ENCODER] == [graph.file for graph in exported.heard.graphs]
    (report,) = exported.heard.reports
    assert report.passed
    assert [check.name for check in report.checks] == [
        *(f"images, batch {n}" for n in (1, 2, 7)),
        *(f"texts, batch {n}" for n in (1, 2, 7)),
        "texts, padded to 24",
        "unit length",
    ]


def test_exports_are_the_same_to_the_byte(exported_fp16: Exported, tmp_path: Path) -> None:
    """Another process with another hash seed and other threads writes the same bytes."""
    command = [sys.executable, "-m", "model_export.cli", "export", "--precision", "fp16-stored"]
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    subprocess.run([*command, exported_fp16.run, tmp_path / "again"], check=True, env=environment, capture_output=True)

    names = sorted(path.name for path in exported_fp16.bundle.iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (exported_fp16.bundle / name).read_bytes(), name


def test_fp16_stored_weights_are_halved_in_the_file_and_fp32_in_the_session(
    exported_fp16: Exported, tmp_path: Path
) -> None:
    """The large weights are fp16 in the file; the runtime folds every Cast when it loads, and computes fp32."""
    path = exported_fp16.bundle / IMAGE_ENCODER
    stored = onnx.load(path).graph.initializer
    large = [tensor for tensor in stored if np.prod(tensor.dims) >= 1024]
    assert large
    assert {TensorProto.FLOAT16} == {tensor.data_type for tensor in large}

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    loaded = onnx.load(tmp_path / "loaded.onnx").graph
    assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in loaded.initializer}
    assert 1 == sum(node.op_type == "Cast" for node in loaded.node), "only the one of the pixels"


def test_fp16_stored_graphs_agree_with_the_rounded_weights(exported_fp16: Exported) -> None:
    """Rounding is the only difference to the trained model: against rounded weights the vectors agree as in fp32."""
    run = load_training_run(exported_fp16.run)
    rounded, _ = served_encoders(run, "fp16-stored")
    section = run.image
    exact = ImageEncoder(run.model, section.mean, section.std)
    shape = (3, section.height, section.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    actual = OnnxEngine.load(load_bundle(exported_fp16.bundle), "cpu").encode_images(pixels)

    with torch.no_grad():
        np.testing.assert_allclose(actual, rounded(torch.from_numpy(pixels)).numpy(), atol=ATOL)
        unrounded = exact(torch.from_numpy(pixels)).numpy()
    assert np.abs(actual - unrounded).max() > ATOL
    assert (actual * unrounded).sum(axis=1).min() > 0.999


def test_a_weight_beyond_fp16_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    """Rounding never makes an infinity; the error names the weight and the remedy."""
    run = load_training_run(write_tiny_run(tmp_path / "run"))
    with torch.no_grad():
        run.model.text.get_parameter("token_embedding.weight")[0, 0] = 1e6

    with pytest.raises(ExportError, match=r"token_embedding\.weight.*--precision fp32"):
        export_model(run, tmp_path / "bundle", precision="fp16-stored", listener=Heard())

    assert ["run"] == [path.name for path in tmp_path.iterdir()]


def test_a_graph_that_does_not_agree_is_not_written(tmp_path: Path) -> None:
    """The bundle gets its name only if its vectors agree with torch's."""
    run = load_training_run(write_tiny_run(tmp_path / "run", "residual_conv"))

    class Forgetful(nn.Module):
        """A tower that differs in float64, as a stand-in for a wrong exporter."""

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = tower(pixels.to(dtype))
            return out if pixels.dtype == torch.float32 else out.roll(1, dims=1).double()

    tower, dtype = copy.deepcopy(run.model.visual), torch.float32
    run.model.visual = Forgetful()
    heard = Heard()

    with pytest.raises(ParityError, match="images, batch 1, images, batch 2, images, batch 7"):
        export_model(run, tmp_path / "bundle", listener=heard)

    assert ["run"] == [path.name for path in tmp_path.iterdir()]
    assert heard.reports[0].failed == tuple(f"images, batch {n}" for n in (1, 2, 7))


@pytest.mark.parametrize("tower", ["residual_conv", "whitening", "modified_resnet"])
def test_folding_batch_norm_changes_no_vector(tmp_path: Path, tower: str) -> None:
    """Every batch norm whose gains are positive is folded, also across a max pool; the vectors stay."""
    run = load_training_run(write_tiny_run(tmp_path / "run", tower))
    section = run.image
    encoder = ImageEncoder(run.model, section.mean, section.std).eval()
    pixels = torch.randint(0, 256, (4, section.height, section.width, 3), dtype=torch.uint8)

    folded = fold_batch_norm(encoder)

    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(folded(pixels), encoder(pixels), atol=ATOL, rtol=0)


def test_a_negative_gain_behind_a_max_pool_is_not_folded(tmp_path: Path) -> None:
    """The maximum does not commute with a negative gain: that batch norm stays, and the vectors are right."""
    run = load_training_run(write_tiny_run(tmp_path / "run"))
    with torch.no_grad():
        run.model.visual.get_submodule("stages.0.bn1").get_parameter("weight")[0] = -0.7
    section = run.image
    encoder = ImageEncoder(run.model, section.mean, section.std).eval()
    pixels = torch.randint(0, 256, (4, section.height, section.width, 3), dtype=torch.uint8)

    folded = fold_batch_norm(encoder)

    kept = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert ["model.visual.stages.0.bn1"] == kept
    torch.testing.assert_close(folded(pixels), encoder(pixels), atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", [IMAGE_ENCODER, TEXT_ENCODER])
def test_attention_and_residuals_are_fused_for_gpus(exported_vit: Exported, tmp_path: Path, name: str) -> None:
    """ONNX Runtime's offline tool fuses each attention except the last block's, and keeps the vectors."""
    bundle = load_bundle(exported_vit.bundle)
    fused = optimize_model(
        str(bundle.path / name), model_type="clip", num_heads=2, hidden_size=32, opt_level=0, use_gpu=True
    )
    fused.save_model_to_file(str(tmp_path / name))

    found = operators(tmp_path / name)
    layers = 2
    assert (layers - 1, layers) == (found["Attention"], found["QuickGelu"])
    assert found["SkipLayerNormalization"] >= layers
    probes = load_probes(bundle).inputs
    given = {"pixels": probes.pixels} if name == IMAGE_ENCODER else {"ids": probes.ids}
    plain, by_tool = (
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"]).run(None, given)[0]
        for folder in (bundle.path, tmp_path)
    )
    np.testing.assert_allclose(by_tool, plain, rtol=0, atol=ATOL)


def test_large_weights_go_beside_the_graph(tmp_path: Path) -> None:
    """Above the limit the weights are external data, which the runtime finds."""
    run = load_training_run(write_tiny_run(tmp_path / "run", "vit"))
    image, _ = served_encoders(run, "fp32")
    size = TOWERS["vit"]["image_size"]
    model = export_image_encoder(round_to_fp16(image), height=size, width=size)
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    assert store_fp16(model) > 0
    assert ["one.onnx"] == [path.name for path in save(model, tmp_path / "one.onnx")]

    files = save(model, tmp_path / "two.onnx", external_data_bytes=1000)

    assert ["two.onnx", "two.onnx.data"] == [path.name for path in files]
    vectors = [
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, {"pixels": pixels})[
            0
        ]
        for name in ("one.onnx", "two.onnx")
    ]
    np.testing.assert_array_equal(*vectors)
