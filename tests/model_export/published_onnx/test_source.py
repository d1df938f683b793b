import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from model_export.bundles.verification import verify_bundle
from model_export.checkpoints.layouts import has_onnx_towers
from model_export.checkpoints.model_source import SourceOptions
from model_export.checkpoints.naming import bundle_name
from model_export.errors import ExportError, ParityError, SourceError
from model_export.graphs.passes import drop_unused
from model_export.published_onnx.logit_scale import Scale, read_scale
from model_export.published_onnx.source import OnnxOptions, OnnxSource, read_published
from model_export.published_onnx.to_bundle import write_bundle
from service.model.engine.engine import OnnxEngine
from service.model.loading import Bundle, load_bundle
from service.model.manifest import IMAGE_ENCODER, TEXT_ENCODER, SigmoidScoring, SoftmaxScoring
from service.model.tokenizer import Tokenizer
from tests.model_export.conftest import Heard
from tests.support.onnx_repository import (
    BIAS,
    CONTEXT,
    DIM,
    SCALE,
    SIGLIP_CONTEXT,
    SIZE,
    Repository,
    add_fp16,
    add_q4,
    add_quantized,
    bag_of_words,
    clip_repository,
    graph,
    siglip_repository,
)
from tests.support.tiny_run import END

# An export takes some seconds, on a machine that is busy training many more.
pytestmark = pytest.mark.timeout(600)

LABELS = ["a photo of a cat.", "a very old oak tree", "x"]


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A CLIP in every variant that has a code path of its own. Not to be written to."""
    repository = clip_repository(tmp_path_factory.mktemp("onnx") / "Tiny-CLIP")
    add_fp16(repository.folder, keep_io_types=False)
    add_quantized(repository.folder)
    add_q4(repository.folder)
    return repository


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A SigLIP, in fp16 too. Not to be written to."""
    repository = siglip_repository(tmp_path_factory.mktemp("onnx") / "tiny-siglip")
    add_fp16(repository.folder, keep_io_types=True)
    return repository


@pytest.fixture
def copied(clip: Repository, tmp_path: Path) -> Path:
    """A copy of the CLIP's folder, to break."""
    return shutil.copytree(clip.folder, tmp_path / "copied")


def bundle_of(source: OnnxSource, out: Path) -> Bundle:
    """Write a bundle and open it as the service does."""
    manifest = write_bundle(source, out, listener=Heard())
    bundle = load_bundle(out)
    assert bundle.manifest == manifest
    return bundle


def logits_of(bundle: Bundle, pixels: np.ndarray, texts: list[str]) -> np.ndarray:
    """Score as the service does, before softmax or sigmoid."""
    engine = OnnxEngine.load(bundle, "cpu")
    cosines = engine.encode_images(pixels) @ engine.encode_texts(Tokenizer.from_bundle(bundle).encode(texts)).T
    scoring = bundle.manifest.scoring
    return scoring.logit_scale * cosines + (scoring.logit_bias if isinstance(scoring, SigmoidScoring) else 0)


def transformers_logits(model: Any, bundle: Bundle, pixels: np.ndarray, texts: list[str]) -> np.ndarray:
    """What the model itself says of the same pixels and texts."""
    mean, std = (torch.tensor(value) for value in (bundle.manifest.image.mean, bundle.manifest.image.std))
    ids = torch.from_numpy(Tokenizer.from_bundle(bundle).encode(texts))
    values = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        out: np.ndarray = model(input_ids=ids, pixel_values=values).logits_per_image.numpy()
    return out


def noise(count: int) -> np.ndarray:
    """Pictures: uint8 ``[count, SIZE, SIZE, 3]``."""
    return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def clip_bundle(clip: Repository, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The CLIP's fp32 bundle. Not to be written to."""
    options = OnnxOptions(SourceOptions(source_id="someone/Tiny-CLIP@abc", licence="mit"))
    return bundle_of(read_published(clip.folder, options), tmp_path_factory.mktemp("bundles") / "clip")


def test_clip_answers_as_transformers_does(clip: Repository, clip_bundle: Bundle) -> None:
    """From pixels and texts to logits, the bundle is the model, with the scale that was trained."""
    pixels = noise(3)
    given = logits_of(clip_bundle, pixels, LABELS)
    wanted = transformers_logits(clip.model, clip_bundle, pixels, LABELS)
    assert np.ptp(wanted) > 0.1
    assert np.abs(given - wanted).max() <= 1e-4


def test_siglip_answers_as_transformers_does(siglip: Repository, tmp_path: Path) -> None:
    """SigLIP's texts are padded as it was trained, its towers pool into the joint space, its scores have a bias."""
    bundle = bundle_of(read_published(siglip.folder), tmp_path / "out")
    text, scoring = bundle.manifest.text, bundle.manifest.scoring
    assert (text.padding, text.max_length, text.pad_id) == ("fixed", SIGLIP_CONTEXT, text.end_of_text_id)
    assert isinstance(scoring, SigmoidScoring)
    assert pytest.approx(BIAS) == scoring.logit_bias
    pixels = noise(3)
    given = logits_of(bundle, pixels, LABELS)
    wanted = transformers_logits(siglip.model, bundle, pixels, LABELS)
    assert np.ptp(wanted) > 0.1
    assert np.abs(given - wanted).max() <= 1e-4


def test_the_manifest_says_what_is_served(clip: Repository, clip_bundle: Bundle) -> None:
    """Everything comes from the source: name, sizes, preprocessing, tokens, scale, and how near the graphs are."""
    manifest = clip_bundle.manifest
    assert (manifest.name, manifest.aliases) == ("tiny-clip", ("someone/Tiny-CLIP",))
    assert (manifest.architecture, manifest.precision, manifest.dim) == ("clip/vit", "fp32", DIM)
    assert manifest.image.mean == (0.48, 0.46, 0.41)
    assert isinstance(manifest.scoring, SoftmaxScoring)
    assert np.exp(SCALE) == pytest.approx(manifest.scoring.logit_scale)
    tokenizer = json.loads((clip.folder / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    text = manifest.text
    assert (text.padding, text.max_length, text.end_of_text_id) == ("longest", CONTEXT, ids[END])
    assert manifest.parity is not None
    assert manifest.parity.reference == "source graphs in onnxruntime"
    assert manifest.parity.max_abs_difference <= 1e-5
    provenance = manifest.provenance
    assert (provenance.source, provenance.licence) == ("someone/Tiny-CLIP@abc", "mit")
    assert provenance.recipe is not None
    assert provenance.recipe["logit_scale"] == "onnx/model.onnx"


def test_the_graphs_keep_the_contract(clip_bundle: Bundle) -> None:
    """One input and one output each, dynamic where a bundle promises it, and nothing of the exporter."""
    for file, given in (
        (IMAGE_ENCODER, ("pixels", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])),
        (TEXT_ENCODER, ("ids", TensorProto.INT64, ["batch", "length"])),
    ):
        model = onnx.load(clip_bundle.path / file)
        onnx.checker.check_model(model, full_check=True)
        assert [given] == [described(value) for value in model.graph.input]
        assert [("vectors", TensorProto.FLOAT, ["batch", DIM])] == [described(value) for value in model.graph.output]
        assert (model.producer_name, model.graph.name) == ("", "encoder")


def described(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
    """Return name, element type and shape."""
    kind = value.type.tensor_type
    return value.name, kind.elem_type, [dim.dim_param or dim.dim_value for dim in kind.shape.dim]


@pytest.mark.parametrize(
    ("model", "variant", "precision"),
    [("clip", "fp16", "fp16"), ("siglip", "fp16", "fp16"), ("clip", "quantized", "int8"), ("clip", "q4", "int4")],
)
def test_variants(request: pytest.FixtureRequest, tmp_path: Path, model: str, variant: str, precision: str) -> None:
    """Graphs of other precisions are served as they are, near to their source's own on the same batch."""
    folder, heard = request.getfixturevalue(model).folder, Heard()
    manifest = write_bundle(read_published(folder, variant=variant), tmp_path / "out", listener=heard)
    assert precision == manifest.precision
    assert [IMAGE_ENCODER, TEXT_ENCODER] == [graph.file for graph in heard.graphs]
    same_batch = {check.name: check for check in heard.reports[0].checks if check.name.endswith("same batch")}
    assert {"images, same batch", "texts, same batch"} == same_batch.keys()
    for check in same_batch.values():
        assert check.min_cosine is not None
        assert check.min_cosine >= 0.999
    assert verify_bundle(tmp_path / "out").passed


def test_a_written_bundle_verifies(clip_bundle: Bundle) -> None:
    """The bundle carries its reference, so that it can be verified alone."""
    assert verify_bundle(clip_bundle.path).failed == ()


def test_the_same_source_gives_the_same_bytes(clip_bundle: Bundle, copied: Path, tmp_path: Path) -> None:
    """Nothing of the machine, the folder or the hour is in a bundle."""
    options = OnnxOptions(SourceOptions(source_id="someone/Tiny-CLIP@abc", licence="mit"))
    again = bundle_of(read_published(copied, options), tmp_path / "again")
    assert [path.name for path in sorted(clip_bundle.path.iterdir())] == [
        path.name for path in sorted(again.path.iterdir())
    ]
    for path in clip_bundle.path.iterdir():
        assert path.read_bytes() == (again.path / path.name).read_bytes()


def test_no_torch_is_imported(clip: Repository, tmp_path: Path) -> None:
    """From the published files to the bundle without torch: what a user needs is a runtime, not a framework."""
    code = f"""
import sys
from pathlib import Path
from model_export.checkpoints.layouts import has_onnx_towers
from model_export.published_onnx.source import read_published
from model_export.published_onnx.to_bundle import write_bundle
class Quiet:
    def wrote(self, graph): pass
    def measured(self, report): pass
folder = Path({str(clip.folder)!r})
assert has_onnx_towers(folder)
write_bundle(read_published(folder), Path({str(tmp_path / "out")!r}), listener=Quiet())
print(sorted({{"torch", "transformers", "onnxscript"}} & sys.modules.keys()))
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
    load_bundle(tmp_path / "out")


def test_recognises_the_split_layout_alone(clip: Repository, copied: Path, tmp_path: Path) -> None:
    """Both encoders must be there, in whatever variant."""
    assert has_onnx_towers(clip.folder)
    for path in (copied / "onnx").glob("text_model*"):
        path.unlink()
    assert not has_onnx_towers(copied)
    assert not has_onnx_towers(tmp_path)
    assert not has_onnx_towers(clip.folder / "config.json")


def test_the_name_follows_from_the_folder(clip: Repository) -> None:
    """As for every other layout."""
    assert bundle_name(clip.folder, SourceOptions()) == read_published(clip.folder).name


def test_a_text_graph_that_sees_padding_is_padded_as_it_was_trained(copied: Path, tmp_path: Path) -> None:
    """Its vectors depend on padding, so the length becomes the context, and the report says so.

    This graph also takes a mask, positions and int32 ids, uses our names for values of its own, and has an output that
    nobody asked for.
    """
    vocabulary = json.loads((copied / "config.json").read_text())["text_config"]["vocab_size"]
    source_graph = bag_of_words(vocabulary=vocabulary)
    onnx.save_model(source_graph, copied / "onnx/text_model.onnx")
    heard = Heard()
    manifest = write_bundle(read_published(copied), tmp_path / "out", listener=heard)
    assert (manifest.text.padding, manifest.text.max_length) == ("fixed", CONTEXT)
    said = {check.name: check.detail for check in heard.reports[0].checks}
    assert f"so every text is of {CONTEXT} tokens" in said["padding"]

    bundle = load_bundle(tmp_path / "out")
    ids = Tokenizer.from_bundle(bundle).encode(LABELS)
    words, places = (numpy_helper.to_array(tensor) for tensor in source_graph.graph.initializer[:2])
    sums = (words[ids] * places).sum(axis=1)
    wanted = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    assert np.abs(OnnxEngine.load(bundle, "cpu").encode_texts(ids) - wanted).max() <= 1e-5
    assert "Neg" not in {each.op_type for each in onnx.load(bundle.path / TEXT_ENCODER).graph.node}


def test_a_text_graph_of_one_length_is_asked_with_that_length(copied: Path) -> None:
    """Where an exporter made the length constant, it is the bundle's context."""

    def one_length(model: ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 12

    changed("text_model", one_length)(copied)
    text = read_published(copied).text
    assert (text.padding, text.min_length, text.max_length) == ("fixed", 12, 12)


def test_graphs_that_do_not_survive_batching_are_not_written(copied: Path, tmp_path: Path) -> None:
    """Vectors that depend on the rest of their batch fail parity, and nothing is left behind."""
    path = copied / "onnx/vision_model.onnx"
    model = onnx.load(path)
    (last,) = (each for each in model.graph.node if "image_embeds" in each.output)
    last.output[:] = ["own"]
    model.graph.node.append(node("ReduceMax", "own", "highest", axes=[0]))
    model.graph.node.append(node("Add", "own highest", "image_embeds"))
    onnx.save_model(model, path)
    with pytest.raises(ParityError, match=r"was not written; its graphs fail: images, batch 2, images, batch 7"):
        write_bundle(read_published(copied), tmp_path / "new" / "out", listener=Heard())
    assert list((tmp_path / "new").iterdir()) == []


def test_weights_beside_the_graph_in_a_folder_of_links(clip_bundle: Bundle, copied: Path, tmp_path: Path) -> None:
    """A hub's cache is links, which neither onnx nor the runtime follows to weights; the bundle is the same."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name in ("vision_model", "text_model"):
        path = copied / f"onnx/{name}.onnx"
        model = onnx.load(path)
        onnx.save_model(model, path, save_as_external_data=True, location=f"{name}.onnx_data", size_threshold=64)
        for file in (path, path.with_name(f"{name}.onnx_data")):
            file.rename(blobs / file.name)
            file.symlink_to(blobs / file.name)
    bundle = bundle_of(read_published(copied), tmp_path / "out")
    files = clip_bundle.manifest.files
    assert [files[name] for name in (IMAGE_ENCODER, TEXT_ENCODER)] == [
        bundle.manifest.files[name] for name in (IMAGE_ENCODER, TEXT_ENCODER)
    ]
    (copied / "onnx/text_model.onnx_data").unlink()
    with pytest.raises(SourceError, match=r"text_model.onnx_data: is missing, and text_model.onnx keeps"):
        read_published(copied)


def test_weights_outside_the_folder_are_refused(copied: Path) -> None:
    """A graph does not get to read any file of the machine."""
    path = copied / "onnx/vision_model.onnx"
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../config.json")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match=r"vision_model.onnx: refers to weights in '../config.json', outside"):
        read_published(copied)


# --- the logit scale


def test_a_stated_scale_takes_the_place_of_the_full_graph(copied: Path, tmp_path: Path) -> None:
    """Without the full graph the user's word counts; the configuration's initial value never does."""
    (copied / "onnx/model.onnx").unlink()
    source = read_published(copied, OnnxOptions(logit_scale=50.0))
    assert SoftmaxScoring(logit_scale=50.0) == source.scoring
    assert source.provenance.recipe is not None
    assert source.provenance.recipe["logit_scale"] == "stated by the user"
    with pytest.raises(SourceError, match=r"model.onnx: is missing.*download it too, or state --logit-scale"):
        read_published(copied)


def test_a_stated_scale_may_not_contradict_the_full_graph(clip: Repository) -> None:
    """What a file says counts; a statement near it is the same statement."""
    assert read_published(clip.folder, OnnxOptions(logit_scale=20.08)).scoring == read_published(clip.folder).scoring
    with pytest.raises(SourceError, match=r"model.onnx: has logit scale 20.0855, stated is logit scale 100; leave"):
        read_published(clip.folder, OnnxOptions(logit_scale=100))


def test_siglip_needs_its_bias_too(siglip: Repository, tmp_path: Path) -> None:
    """A scale alone does not make SigLIP's scores."""
    folder = shutil.copytree(siglip.folder, tmp_path / "siglip")
    (folder / "onnx/model.onnx").unlink()
    with pytest.raises(SourceError, match=r"need a bias too; state --logit-scale and --logit-bias"):
        read_published(folder, OnnxOptions(logit_scale=100))
    stated = read_published(folder, OnnxOptions(logit_scale=100, logit_bias=-10))
    assert SigmoidScoring(logit_scale=100, logit_bias=-10) == stated.scoring


def test_a_scale_must_be_above_zero(copied: Path) -> None:
    """Neither 0 nor infinity is a scale."""
    (copied / "onnx/model.onnx").unlink()
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(SourceError, match="is not a scale; it must be above 0"):
            read_published(copied, OnnxOptions(logit_scale=scale))


def cosines(*nodes: onnx.NodeProto, constants: dict[str, Any], output: str = "logits_per_image") -> ModelProto:
    """A full graph reduced to its end: ``a`` and ``b`` are the embeddings, ``cosines`` their product."""
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("a", "b")]
    made = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    out = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", "m"])]
    turned = helper.make_node("Transpose", ["b"], ["t"], perm=[1, 0])
    return graph([turned, *nodes], given, out, made)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """Write a node on one line."""
    return helper.make_node(operator, inputs.split(), [output], **attributes)


PRODUCT = node("MatMul", "a t", "cosines")
ENDINGS: dict[str, tuple[ModelProto, Scale]] = {
    "folded": (
        cosines(PRODUCT, node("Mul", "cosines s", "logits_per_image"), constants={"s": np.float32(64)}),
        Scale(64, None),
    ),
    "in log space, behind a transpose": (
        cosines(
            PRODUCT,
            node("Exp", "s", "e"),
            node("Mul", "e cosines", "texts"),
            node("Transpose", "texts", "logits_per_image", perm=[1, 0]),
            constants={"s": np.float32(np.log(64))},
        ),
        Scale(64, None),
    ),
    "with a bias": (
        cosines(
            PRODUCT,
            node("Exp", "s", "e"),
            node("Mul", "cosines e", "scaled"),
            node("Add", "scaled bias", "logits_per_image"),
            constants={"s": np.log([64], dtype=np.float32), "bias": np.array([-12], np.float32)},
        ),
        Scale(64, -12),
    ),
    "a bias before the scale": (
        cosines(
            PRODUCT,
            node("Sub", "cosines half", "moved"),
            node("Mul", "moved s", "logits_per_image"),
            constants={"s": np.float32(64), "half": np.float32(0.5)},
        ),
        Scale(64, -32),
    ),
    "on one embedding": (
        cosines(node("Mul", "s a", "c"), node("MatMul", "c t", "logits_per_image"), constants={"s": np.float32(64)}),
        Scale(64, None),
    ),
    "fp16, by division": (
        cosines(
            PRODUCT,
            node("Div", "cosines temperature", "half"),
            node("Cast", "half", "logits_per_image", to=TensorProto.FLOAT),
            constants={"temperature": np.float16(1 / 64)},
        ),
        Scale(64, None),
    ),
    "a constant node, the other output": (
        cosines(
            helper.make_node("Constant", [], ["s"], value_float=64.0),
            PRODUCT,
            node("Mul", "cosines s", "logits_per_text"),
            constants={},
            output="logits_per_text",
        ),
        Scale(64, None),
    ),
    "fused": (
        cosines(node("Gemm", "a b", "logits_per_image", alpha=64.0, transB=1), constants={}),
        Scale(64, None),
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_scale_is_read_from_the_full_graph(tmp_path: Path, ending: str) -> None:
    """Wherever an exporter or an optimiser has put it, exponentiated or not."""
    model, wanted = ENDINGS[ending]
    onnx.save_model(model, tmp_path / "model.onnx")
    given = read_scale(tmp_path / "model.onnx")
    assert given.scale == pytest.approx(wanted.scale, rel=1e-6)
    assert given.bias == (None if wanted.bias is None else pytest.approx(wanted.bias, rel=1e-6))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (cosines(node("MatMul", "a t", "logits_per_image"), constants={}), "multiplies the cosines with no constant"),
        (cosines(node("MatMul", "a t", "similarity"), constants={}, output="similarity"), "has no output logits_per"),
        (
            cosines(PRODUCT, node("Softmax", "cosines", "logits_per_image"), constants={}),
            "logits_per_image comes from Softmax, not from a product",
        ),
        (
            cosines(PRODUCT, node("Mul", "cosines cosines", "logits_per_image"), constants={}),
            "logits_per_image comes from Mul, not from a product",
        ),
    ],
)
def test_a_scale_that_cannot_be_read_is_not_guessed(tmp_path: Path, model: ModelProto, message: str) -> None:
    """A graph that makes its logits otherwise is an error."""
    onnx.save_model(model, tmp_path / "model.onnx")
    with pytest.raises(SourceError, match=message):
        read_scale(tmp_path / "model.onnx")


# --- what is refused


def changed(name: str, change: Callable[[ModelProto], None]) -> Callable[[Path], None]:
    """Change a published graph."""

    def apply(folder: Path) -> None:
        model = onnx.load(folder / f"onnx/{name}.onnx")
        change(model)
        (folder / f"onnx/{name}.onnx").write_bytes(model.SerializeToString())

    return apply


def another_output(model: ModelProto) -> None:
    """Call the vectors something else."""
    model.graph.node.append(node("Identity", "image_embeds", "features"))
    model.graph.output[0].name = "features"


def another_input(model: ModelProto) -> None:
    """Want what a text of CLIP has not."""
    model.graph.input.append(helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["batch", "length"]))


def fixed_batch(model: ModelProto) -> None:
    """Let the first axis be 1 always."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def shorter_vectors(model: ModelProto) -> None:
    """Let the output be of another length."""
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = DIM - 1


def old_opset(model: ModelProto) -> None:
    """Let the graph be of another time."""
    model.opset_import[0].version = 9


def circular(model: ModelProto) -> None:
    """Let a node read its own output."""
    model.graph.node[5].input[0] = model.graph.node[5].output[0]


def unsorted(model: ModelProto) -> None:
    """Put the last node first."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[-1], *nodes[:-1]])


def config(**fields: Any) -> Callable[[Path], None]:
    """Change the configuration."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, **fields}))

    return apply


def without(name: str) -> Callable[[Path], None]:
    """Delete a file."""
    return lambda folder: (folder / name).unlink()


def truncated(folder: Path) -> None:
    """Cut a download in the middle."""
    path = folder / "onnx/vision_model.onnx"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no fp32 graph": (
        without("onnx/text_model.onnx"),
        r"text_model.onnx: is missing; complete variants: fp16, quantized, q4$",
    ),
    "no full graph": (without("onnx/model.onnx"), r"model.onnx: is missing.*download it too, or state --logit-scale"),
    "full graph without logits": (
        changed("model", lambda model: model.graph.output.__delitem__(slice(0, 2))),
        r"model.onnx: has no output logits_per_image.*; state --logit-scale$",
    ),
    "unknown output": (
        changed("vision_model", another_output),
        r"vision_model.onnx: has the outputs features, last_hidden_state, not image_embeds$",
    ),
    "unknown input": (
        changed("text_model", another_input),
        r"text_model.onnx: wants the input token_type_ids; only input_ids, attention_mask, position_ids can be given$",
    ),
    "fixed batch": (
        changed("vision_model", fixed_batch),
        r"vision_model.onnx: takes batches of 1 only.*export it again with a dynamic batch$",
    ),
    "two models": (
        changed("text_model", shorter_vectors),
        r"text_model.onnx: gives vectors of 23, the image graph of 24",
    ),
    "old": (changed("text_model", old_opset), r"text_model.onnx: is of opset 9; export it again with 11 or later$"),
    "truncated": (truncated, r"vision_model.onnx: is not an ONNX graph; is the download complete\?$"),
    "circular": (changed("text_model", circular), r"text_model.onnx: is not a sound ONNX graph: nothing computes what"),
    "no tokenizer": (without("tokenizer.json"), r"holds no tokenizer.*name one with --tokenizer$"),
    "no config": (without("config.json"), r"config.json: is missing"),
    "another kind of model": (
        config(model_type="bert"),
        r"config.json: model_type 'bert' is not known; clip, siglip are$",
    ),
    "another size": (config(vision_config={"image_size": 64}), r"preprocessor_config.json: prepares pictures of 32x32"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_cannot_be_served_is_refused_by_name(copied: Path, refusal: str) -> None:
    """One line that names the file and says what to do, before anything is computed."""
    change, message = REFUSALS[refusal]
    change(copied)
    with pytest.raises(SourceError, match=message) as caught:
        read_published(copied)
    assert "\n" not in str(caught.value)


def test_nodes_in_any_order_are_put_in_theirs(clip_bundle: Bundle, copied: Path, tmp_path: Path) -> None:
    """Some converters forget the order of nodes; the bundle is the same."""
    changed("text_model", unsorted)(copied)
    bundle = bundle_of(read_published(copied), tmp_path / "out")
    assert clip_bundle.manifest.text_revision == bundle.manifest.text_revision


def test_unknown_variant(clip: Repository) -> None:
    """The names are those of the published files."""
    with pytest.raises(SourceError, match=r"unknown variant 'q3'; the names are fp32, fp16, quantized, int8"):
        read_published(clip.folder, variant="q3")


@pytest.mark.parametrize(
    ("domain", "error", "message"),
    [
        ("", ExportError, r"text_model.onnx: does not pass ONNX's checker \(.*Imagine.*\); take another variant$"),
        ("org.example", SourceError, r"text_model.onnx: ONNX Runtime cannot load it on the CPU \(.*Imagine.*\); take"),
    ],
)
def test_an_operator_that_does_not_exist(
    copied: Path, tmp_path: Path, domain: str, error: type[Exception], message: str
) -> None:
    """It is told in one line, by the file's name, and nothing is written."""

    def invent(model: ModelProto) -> None:
        model.graph.node[-1].op_type = "Imagine"
        model.graph.node[-1].domain = domain
        model.opset_import.append(helper.make_opsetid("org.example", 1))

    changed("text_model", invent)(copied)
    with pytest.raises(error, match=message) as caught:
        write_bundle(read_published(copied), tmp_path / "new" / "out", listener=Heard())
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_value_that_only_a_branch_reads_is_kept() -> None:
    """Nodes inside an If see the values around it."""
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    yes = helper.make_graph([node("Neg", "doubled", "y")], "yes", [], [_scalar("y")])
    no = helper.make_graph([node("Identity", "w", "z")], "no", [], [_scalar("z")])
    made = graph(
        [
            node("Add", "x x", "doubled"),
            node("Abs", "x", "unused"),
            node("ReduceMax", "x", "positive", keepdims=0),
            node("Cast", "positive", "condition", to=TensorProto.BOOL),
            helper.make_node("If", ["condition"], ["out"], then_branch=yes, else_branch=no),
        ],
        given,
        [_scalar("out")],
        [helper.make_tensor("w", TensorProto.FLOAT, [1], [1]), helper.make_tensor("v", TensorProto.FLOAT, [1], [1])],
    )
    drop_unused(made.graph)
    assert [each.output[0] for each in made.graph.node] == ["doubled", "positive", "condition", "out"]
    assert [tensor.name for tensor in made.graph.initializer] == ["w"]


def _scalar(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
