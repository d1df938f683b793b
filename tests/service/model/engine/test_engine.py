import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.errors import (
    BundleError,
    ConfigurationError,
    DeviceLost,
    DeviceOutOfMemory,
    InferenceFailed,
    NonFiniteOutput,
    ProviderUnavailable,
)
from service.model.engine.encoder import input_range
from service.model.engine.engine import Engine, OnnxEngine
from service.model.engine.provider_table import InputRange
from service.model.engine.providers import resolve
from service.model.engine.sessions import ResolvedProvider
from service.model.loading import Bundle, load_bundle
from service.model.manifest import DEMO_BUNDLE, IMAGE_ENCODER, TEXT_ENCODER
from service.model.probes import IMAGES, probe_pictures
from service.model.prompts import prompts_for
from service.model.scoring import class_vectors, cosines
from service.model.tokenizer import Tokenizer
from tests.support.openvino import needs_openvino
from tests.support.probes import with_probes
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
    with pytest.raises(BundleError, match=f"{TEXT_ENCODER}: onnxruntime cannot load it"):
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
    with pytest.raises(BundleError, match=f"{IMAGE_ENCODER}: onnxruntime cannot load it"):
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


def _bf16() -> ResolvedProvider:
    return dataclasses.replace(resolve("openvino", compute="fp32"), compute="bf16")


def test_a_bundles_probes_tell_a_wrong_provider(bundle: Bundle) -> None:
    """Vectors of unit length and yet of another model are found, and the message says which encoder's."""
    sound = with_probes(bundle)
    OnnxEngine.load(sound, "cpu", threads=1).compare(sound)
    turned = with_probes(bundle, turned=True)
    with pytest.raises(ProviderUnavailable, match=rf"cpu computes {IMAGE_ENCODER} of model tiny wrongly: .* cosine"):
        OnnxEngine.load(turned, "cpu", threads=1).compare(turned)


@needs_openvino
def test_a_provider_that_computes_wrongly_is_refused_or_replaced(bundle: Bundle) -> None:
    """By name it stops the start; `auto` takes the second choice and says why; a tool that verifies measures it."""
    turned = with_probes(bundle, turned=True)
    by_name = resolve("openvino", compute="fp32")
    with pytest.raises(ProviderUnavailable, match="wrongly"):
        OnnxEngine.load(turned, by_name, threads=1)
    assert "openvino" == OnnxEngine.load(turned, by_name, threads=1, force_precision=True).provider
    by_itself = dataclasses.replace(_bf16(), second=resolve("cpu"))
    engine = OnnxEngine.load(turned, by_itself, threads=1)
    assert ("cpu", "fp32") == (engine.provider, engine.precision)
    assert engine.provider_reason.startswith("auto: Provider openvino computes")
    assert ("openvino", "bf16") == (
        (sound := OnnxEngine.load(with_probes(bundle), by_itself, threads=1)).provider,
        sound.precision,
    )


@needs_openvino
def test_auto_takes_a_provider_for_what_it_is_good_at(tmp_path: Path) -> None:
    """bf16 is no gain for an int8 model; by name it is computed as the graph says, and said so."""
    int8 = load_bundle(write_tiny_bundle(tmp_path / "q", precision="int8"))
    engine = OnnxEngine.load(int8, dataclasses.replace(_bf16(), second=resolve("cpu")), threads=1)
    assert ("cpu", "int8") == (engine.provider, engine.precision)
    assert "no faster for int8" in engine.provider_reason
    assert ("openvino", "int8") == ((by_name := OnnxEngine.load(int8, _bf16(), threads=1)).provider, by_name.precision)


@needs_openvino
def test_the_demo_is_right_on_openvino_or_refused() -> None:
    """Release 1.8.1 swaps GELU and max pooling in fp32, which is another model."""
    demo = load_bundle(DEMO_BUNDLE)
    pictures = probe_pictures(demo.manifest.image.height, demo.manifest.image.width)
    try:
        engine = OnnxEngine.load(demo, resolve("openvino", compute="fp32"), threads=1)
    except ProviderUnavailable:
        return
    wanted = OnnxEngine.load(demo, "cpu", threads=1).encode_images(pictures)
    assert (engine.encode_images(pictures) * wanted).sum(axis=1).min() > 0.99


@needs_openvino
def test_threads_share_openvino() -> None:
    """Both encoders of the demo, from several threads, in mixed batches: the same answers as from one."""
    demo = load_bundle(DEMO_BUNDLE)
    engine = OnnxEngine(demo, _bf16(), threads=1)
    pictures = probe_pictures(demo.manifest.image.height, demo.manifest.image.width)
    texts = Tokenizer.from_bundle(demo).encode(["a photo of a cat.", "a dog", "a very small red fire engine"])

    def encode(turn: int) -> np.ndarray:
        batch = 1 + turn % IMAGES
        return engine.encode_texts(texts[: 1 + turn % 3]) if turn % 2 else engine.encode_images(pictures[:batch])

    expected = [encode(turn) for turn in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for want, got in zip(expected, pool.map(encode, range(24)), strict=True):
            np.testing.assert_allclose(want, got, atol=1e-5)


def test_bound_inputs_and_outputs_change_no_vector(engine: OnnxEngine) -> None:
    """The way GPU providers are run, here on the CPU: for any batch, and an array that is not contiguous."""
    pictures = _pictures(6)
    expected = [engine.encode_images(batch) for batch in (pictures, pictures[:1], pictures[::2])]
    assert engine._images is not None
    engine._images._binds = True
    for want, batch in zip(expected, (pictures, pictures[:1], pictures[::2]), strict=True):
        np.testing.assert_array_equal(want, engine.encode_images(batch))
    with pytest.raises(InferenceFailed):
        engine.encode_images(np.zeros((1, 9, 9, 3), np.uint8))


class _BrokenSession:
    """A session that fails as a broken device does."""

    def __init__(self, message: str) -> None:
        self._message = message

    def run(self, output_names: None, input_feed: dict[str, Any]) -> list[Any]:
        raise RuntimeError(self._message)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", DeviceOutOfMemory),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", DeviceLost),
    ],
)
def test_a_devices_failure_has_a_name(engine: OnnxEngine, message: str, error: type[InferenceFailed]) -> None:
    """So that less is tried, or the process ends; the detail says nothing of the inside."""
    assert engine._images is not None
    engine._images._session = _BrokenSession(message)  # type: ignore[assignment]
    with pytest.raises(error) as caught:
        engine.encode_images(_pictures(1))
    assert "CUDA" not in caught.value.detail


def test_a_provider_that_builds_is_told_every_shape(bundle: Bundle) -> None:
    """From one row of the smallest to a full batch of the largest, and best for a full batch of usual texts."""
    images = input_range(bundle.path / IMAGE_ENCODER, ((8, 8, 3), (8, 8, 3)), 32)
    assert ((1, 8, 8, 3), (32, 8, 8, 3), (32, 8, 8, 3)) == (images.smallest, images.usual, images.largest)
    texts = input_range(bundle.path / TEXT_ENCODER, ((2,), (77,)), 64)
    assert InputRange(name=texts.name, smallest=(1, 2), usual=(64, 16), largest=(64, 77)) == texts
