from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.class_vectors import class_vectors, cosines
from service.engine import Engine, OnnxEngine
from service.errors import BundleError, ConfigurationError, InferenceFailed, NonFiniteOutput, ProviderUnavailable
from service.manifest import IMAGE_ENCODER, TEXT_ENCODER, Bundle, load_bundle
from service.prompts import prompts_for
from service.providers import resolve
from service.tokenizer import Tokenizer
from tests.support.tiny_bundle import COLOURS, DIM, write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A tiny model's bundle."""
    return load_bundle(write_tiny_bundle(tmp_path / "tiny"))


@pytest.fixture
def engine(bundle: Bundle) -> OnnxEngine:
    """Its engine, on the CPU."""
    return OnnxEngine.load(bundle, "cpu", threads=1)


def _pictures(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, 8, 8, 3), dtype=np.uint8)


def test_the_engine_keeps_the_contract(engine: OnnxEngine) -> None:
    """Unit float32 vectors, for any batch, and honest about where it runs."""
    engine.warm()
    contract: Engine = engine
    assert (DIM, "cpu", "fp32") == (contract.dim, contract.provider, contract.precision)
    assert "asked for by name" == engine.provider_reason
    for batch in (1, 2, 7):
        vectors = contract.encode_images(_pictures(batch))
        assert (batch, DIM) == vectors.shape
        assert np.float32 == vectors.dtype
        np.testing.assert_allclose(np.ones(batch), np.linalg.norm(vectors, axis=1), rtol=1e-5)


def test_nothing_in_nothing_out(engine: OnnxEngine) -> None:
    """An empty batch is no error and costs no run."""
    assert (0, DIM) == engine.encode_images(_pictures(0)).shape
    assert (0, DIM) == engine.encode_texts(np.empty((0, 5), np.int64)).shape


def test_padding_changes_no_vector(engine: OnnxEngine, bundle: Bundle) -> None:
    """A text answers the same beside longer ones."""
    tokenizer = Tokenizer.from_bundle(bundle)
    alone = engine.encode_texts(tokenizer.encode(["a red thing"]))
    beside = engine.encode_texts(tokenizer.encode(["a red thing", "something much longer than that"]))
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-6)


def test_the_tiny_model_knows_its_colours(engine: OnnxEngine, bundle: Bundle) -> None:
    """The whole way from labels and pictures to the right answers."""
    tokenizer = Tokenizer.from_bundle(bundle)
    prompts = prompts_for(COLOURS, bundle.templates["default"])
    matrix = class_vectors(engine.encode_texts(tokenizer.encode(prompts)), len(bundle.templates["default"]))
    pictures = np.array([np.full((8, 8, 3), np.clip(np.array(rgb) * 255, 0, 255)) for rgb in COLOURS.values()])
    answers = cosines(engine.encode_images(pictures.astype(np.uint8)), matrix).argmax(axis=1)
    assert list(range(len(COLOURS))) == answers.tolist()


def test_threads_share_an_engine(engine: OnnxEngine) -> None:
    """Concurrent calls of different shapes do not disturb each other."""
    batches = [_pictures(1 + i % 5) for i in range(40)]
    expected = [engine.encode_images(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for want, got in zip(expected, pool.map(engine.encode_images, batches), strict=True):
            np.testing.assert_allclose(want, got, atol=1e-6)


def test_nan_is_an_error_and_found_when_warming(tmp_path: Path) -> None:
    """It never gets as far as a cache; a model that always answers so is never served."""
    images = load_bundle(write_tiny_bundle(tmp_path / "i", nan_images=True))
    engine = OnnxEngine.load(images, "cpu", threads=1)
    with pytest.raises(NonFiniteOutput):
        engine.encode_images(_pictures(2))
    with pytest.raises(BundleError, match=f"{IMAGE_ENCODER}: fails"):
        engine.warm()
    texts = OnnxEngine.load(load_bundle(write_tiny_bundle(tmp_path / "t", nan_texts=True)), "cpu", threads=1)
    with pytest.raises(NonFiniteOutput):
        texts.encode_texts(np.ones((1, 3), np.int64))


def test_what_the_runtime_refuses_is_our_error(engine: OnnxEngine) -> None:
    """Its message, which may speak of the model's inside, is the cause and not the detail."""
    with pytest.raises(InferenceFailed) as caught:
        engine.encode_images(np.zeros((1, 9, 9, 3), np.uint8))
    assert "The model could not be run on this input." == caught.value.detail
    assert caught.value.__cause__ is not None
    with pytest.raises(InferenceFailed):
        engine.encode_texts(np.full((1, 3), 10**6, np.int64))


def test_a_closed_engine_says_so(engine: OnnxEngine) -> None:
    """Closing twice is fine, using it afterwards is not."""
    engine.close()
    engine.close()
    with pytest.raises(InferenceFailed, match="closed"):
        engine.encode_images(_pictures(1))


def _replace_graph(bundle: Bundle, name: str, model: onnx.ModelProto | bytes) -> None:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    (bundle.path / name).write_bytes(content)


def _identity(element: int, shape: list[str | int]) -> onnx.ModelProto:
    tensors = [helper.make_tensor_value_info(name, element, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_graph_that_cannot_be_loaded_is_named(bundle: Bundle, content: bytes) -> None:
    """Whatever ONNX Runtime raises."""
    _replace_graph(bundle, TEXT_ENCODER, content)
    with pytest.raises(BundleError, match=f"{TEXT_ENCODER}: ONNX Runtime cannot load it"):
        OnnxEngine.load(bundle, "cpu", threads=1)


def test_a_graph_of_another_shape_is_named(bundle: Bundle) -> None:
    """At the start, not at the first request."""
    _replace_graph(bundle, IMAGE_ENCODER, _identity(TensorProto.FLOAT, ["batch", DIM]))
    with pytest.raises(BundleError, match=r"must have one input, tensor\(uint8\)"):
        OnnxEngine.load(bundle, "cpu", threads=1)
    _replace_graph(bundle, IMAGE_ENCODER, _identity(TensorProto.UINT8, ["batch", DIM]))
    with pytest.raises(BundleError, match=rf"must have one output, tensor\(float\) \[batch, {DIM}\]"):
        OnnxEngine.load(bundle, "cpu", threads=1)


def test_weights_outside_the_bundle_are_not_read(bundle: Bundle) -> None:
    """A graph may name a file of its own accord; ONNX Runtime refuses one that is elsewhere, and so do we."""
    (bundle.path.parent / "weights.bin").write_bytes(np.ones(DIM, np.float32).tobytes())
    model = onnx.load(bundle.path / IMAGE_ENCODER)
    (constant,) = (tensor for tensor in model.graph.initializer if tensor.name == "constant")
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../weights.bin"), ("length", str(4 * DIM))):
        entry = constant.external_data.add()
        entry.key, entry.value = key, value
    _replace_graph(bundle, IMAGE_ENCODER, model)
    with pytest.raises(BundleError, match=f"{IMAGE_ENCODER}: ONNX Runtime cannot load it"):
        OnnxEngine.load(bundle, "cpu", threads=1)


def test_fp16_is_not_served_from_the_cpu_unless_forced(tmp_path: Path) -> None:
    """The CPU would compute it in fp32: other numbers than the parity report speaks of."""
    bundle = load_bundle(write_tiny_bundle(tmp_path / "half", precision="fp16"))
    with pytest.raises(ConfigurationError, match="fp16"):
        OnnxEngine.load(bundle, resolve("cpu"), threads=1)
    OnnxEngine.load(bundle, resolve("cpu"), threads=1, force_precision=True).warm()


def test_an_absent_provider_never_becomes_the_cpu(bundle: Bundle) -> None:
    """Asked for by name, refused by name."""
    if resolve("auto").name == "cuda":
        pytest.skip("CUDA is there")
    with pytest.raises(ProviderUnavailable, match="cuda"):
        OnnxEngine.load(bundle, "cuda")
