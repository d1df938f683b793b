import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from service import providers
from service.errors import ConfigurationError, ProviderUnavailable
from service.providers import available_cpus, open_session, resolve

CUDA = bool(providers._cuda_devices()) and "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def test_the_cpu_is_always_there() -> None:
    """By name, and in ONNX Runtime's own words."""
    resolved = resolve("cpu")
    assert ("cpu", "CPUExecutionProvider") == (resolved.name, resolved.ort_name)
    assert "asked for by name" == resolved.reason


def test_auto_says_why() -> None:
    """CUDA where it works, else the CPU with the reason why not CUDA; never anything less tried."""
    resolved = resolve("auto")
    assert ("cuda" if CUDA else "cpu") == resolved.name
    assert resolved.reason.startswith("auto: ")


@pytest.mark.skipif(CUDA, reason="CUDA is there")
@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_named_provider_that_is_not_there_stops_the_start(name: str) -> None:
    """With the reason and what to install; never a silent fall to the CPU."""
    with pytest.raises(ProviderUnavailable, match=r"is not there: .+ To install it: pip install 'anyclass\[gpu\]'"):
        resolve(name)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="there is no CUDA device")
def test_cuda_is_used_where_it_is() -> None:
    """A session on it holds it."""
    assert "cuda" == resolve("cuda").name


def test_openvino_is_there_or_says_what_is_missing() -> None:
    """Asking again, as a restart within a process does, answers the same: a plugin registers only once."""
    answers = []
    for _ in range(2):
        try:
            answers.append(resolve("openvino").name)
        except ProviderUnavailable as exc:
            answers.append(exc.detail)
    assert answers[0] == answers[1]
    assert "openvino" == answers[0] or "onnxruntime-ep-openvino" in answers[0]


def test_an_unknown_name_lists_the_known_ones() -> None:
    """A slip of the pen is told at once."""
    with pytest.raises(ConfigurationError, match="auto, cpu, cuda, tensorrt, openvino"):
        resolve("gpu")


def test_a_session_that_fell_back_is_refused() -> None:
    """ONNX Runtime leaves out a provider it does not have; a session without it must not serve."""
    cuda_without_cuda = providers.ResolvedProvider("cpu", "NoSuchExecutionProvider", {}, "a test")
    with pytest.warns(UserWarning, match="not in available"), pytest.raises(ProviderUnavailable, match="runs on CPU"):
        open_session(providers._PROBE, cuda_without_cuda, threads=1)


def test_the_probe_is_the_graph_it_claims_to_be() -> None:
    """Written out as bytes, because onnx is no dependency of the service."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.producer_name = ""
    assert model.SerializeToString() == onnx.load_from_string(providers._PROBE).SerializeToString()
    session = open_session(providers._PROBE, resolve("cpu"), threads=1)
    assert [[7.0]] == [list(y) for y in session.run(None, {"x": np.array([7], np.float32)})]


def test_cpus_are_those_of_this_process() -> None:
    """Not those of the whole machine: a container's share counts."""
    allowed = os.sched_getaffinity(0)
    assert 1 <= available_cpus() <= len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert 1 == available_cpus()
    finally:
        os.sched_setaffinity(0, allowed)
