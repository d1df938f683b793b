from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from service.model.engine.openvino import OpenVinoSession
from service.model.engine.provider_table import TABLE, SessionPlan
from service.model.manifest import IMAGE_ENCODER, TEXT_ENCODER
from tests.support.openvino import needs_openvino
from tests.support.tiny_bundle import DIM, write_tiny_bundle

pytestmark = needs_openvino
OPTIONS = TABLE["openvino"].options(SessionPlan(threads=1))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A tiny model."""
    return write_tiny_bundle(tmp_path / "tiny", size=8)


def test_it_describes_a_graph_as_onnx_runtime_does(bundle: Path) -> None:
    """Names, types in the same words, sizes; a dimension of any size has none."""
    images, texts = (OpenVinoSession(bundle / name, OPTIONS) for name in (IMAGE_ENCODER, TEXT_ENCODER))
    (pixels,) = images.get_inputs()
    assert ("pixels", "tensor(uint8)", [None, 8, 8, 3]) == (pixels.name, pixels.type, pixels.shape)
    (ids,) = texts.get_inputs()
    assert ("ids", "tensor(int64)", [None, None]) == (ids.name, ids.type, ids.shape)
    (embedding,) = images.get_outputs()
    assert ("embedding", "tensor(float)", [None, DIM]) == (embedding.name, embedding.type, embedding.shape)


def test_an_answer_stays_what_it_is(bundle: Path) -> None:
    """The next run, of another size too, does not write over it; nor does it matter how the input lies in memory."""
    session = OpenVinoSession(bundle / IMAGE_ENCODER, OPTIONS)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    (first,) = session.run(None, {"pixels": pixels})
    kept = first.copy()
    (second,) = session.run(None, {"pixels": np.asfortranarray(pixels[::-1])})
    session.run(None, {"pixels": 255 - pixels[:1]})
    np.testing.assert_array_equal(kept, first)
    np.testing.assert_allclose(kept[::-1], second, atol=1e-6)


def test_threads_run_at_the_same_time(bundle: Path) -> None:
    """Each gets the answer to its own input."""
    session = OpenVinoSession(bundle / IMAGE_ENCODER, OPTIONS)
    batches = [np.full((1 + turn % 3, 8, 8, 3), 20 * turn, np.uint8) for turn in range(12)]
    alone = [session.run(None, {"pixels": batch})[0] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda batch: session.run(None, {"pixels": batch})[0], batches * 4))
    for turn, answer in enumerate(answers):
        np.testing.assert_allclose(answer, alone[turn % len(alone)], atol=1e-6)


def test_a_run_that_fails_leaves_the_next_ones_alone(bundle: Path) -> None:
    """What the failed one computed with is not used again."""
    session = OpenVinoSession(bundle / IMAGE_ENCODER, OPTIONS)
    with pytest.raises(RuntimeError):
        session.run(None, {"pixels": np.zeros((1, 9, 9, 3), np.uint8)})
    assert (2, DIM) == session.run(None, {"pixels": np.zeros((2, 8, 8, 3), np.uint8)})[0].shape


@pytest.mark.parametrize("activation", ["Gelu", "Swish", "Relu"])
def test_an_activation_is_computed_after_the_pooling_before_it(tmp_path: Path, activation: str) -> None:
    """GELU and Swish are not monotone: the maximum of their values is not their value of the maximum."""
    draws = np.random.default_rng(0)
    weights = numpy_helper.from_array(draws.normal(size=(8, 3, 3, 3)).astype(np.float32), "weights")
    ends = {
        "Gelu": [helper.make_node("Gelu", ["pooled"], ["embedding"])],
        "Relu": [helper.make_node("Relu", ["pooled"], ["embedding"])],
        "Swish": [
            helper.make_node("Sigmoid", ["pooled"], ["gate"]),
            helper.make_node("Mul", ["pooled", "gate"], ["embedding"]),
        ],
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "weights"], ["convolved"]),
        helper.make_node("MaxPool", ["convolved"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        *ends[activation],
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, None, None])
        for name, channels in (("pixels", 3), ("embedding", 8))
    ]
    graph = helper.make_graph(nodes, "convolution", ports[:1], ports[1:], [weights])
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    pixels = {"pixels": draws.normal(size=(2, 3, 18, 18)).astype(np.float32)}
    (wanted,) = InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, pixels)
    (given,) = OpenVinoSession(path, OPTIONS).run(None, pixels)
    assert (wanted.min() < 0) == (activation != "Relu")  # below zero they are not monotone
    np.testing.assert_allclose(given, wanted, atol=1e-4)
