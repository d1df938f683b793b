import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from service.errors import ConfigurationError, ProviderUnavailable
from service.inference.registry import device_limits
from service.model.engine import providers, sessions
from service.model.engine.cpus import Cpu
from service.model.engine.provider_table import TABLE, DeviceLimits, InputRange, SessionPlan
from service.model.engine.providers import resolve
from service.model.engine.sessions import ResolvedProvider, input_name, open_session
from service.settings import Settings
from tests.support.openvino import OPENVINO_RUNS, needs_openvino

AMX = Cpu("GenuineIntel", frozenset({"amx_bf16"}))
AMD = Cpu("AuthenticAMD", frozenset({"avx512_bf16"}))
SLOW = Cpu("GenuineIntel", frozenset({"avx512_bf16"}))
"""It has instructions for bf16, which are slower than those for fp32."""
CUDA = bool(providers._cuda_devices()) and "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def test_the_cpu_is_always_there() -> None:
    """By name, and in ONNX Runtime's own words."""
    resolved = resolve("cpu")
    assert ("cpu", "CPUExecutionProvider") == (resolved.name, resolved.ort_name)
    assert "asked for by name" == resolved.reason


@pytest.mark.skipif(CUDA, reason="CUDA is there")
def test_auto_says_why() -> None:
    """The CPU's own provider where it is not fast in bf16, with the reason why not CUDA and why not OpenVINO."""
    resolved = resolve("auto", cpu=SLOW)
    assert ("cpu", "fp32", None) == (resolved.name, resolved.compute, resolved.second)
    assert "auto: OpenVINO is no faster on this CPU, which is not fast in bf16; no CUDA" == resolved.reason


@pytest.mark.skipif(CUDA or not OPENVINO_RUNS, reason="CUDA is there, or OpenVINO does not run")
@pytest.mark.parametrize("cpu", [AMX, AMD])
def test_auto_takes_openvino_for_its_bf16(cpu: Cpu) -> None:
    """Where that is fast, with the CPU's own provider as the second choice; never when fp32 is asked for."""
    resolved = resolve("auto", cpu=cpu)
    assert ("openvino", "bf16") == (resolved.name, resolved.compute)
    assert resolved.second is not None
    assert ("cpu", "fp32") == (resolved.second.name, resolved.second.compute)
    assert "auto: OpenVINO in bf16 is fastest on this CPU; no CUDA" == resolved.reason
    assert "cpu" == resolve("auto", compute="fp32", cpu=cpu).name


@needs_openvino
def test_bf16_is_taken_where_it_is_fast_or_asked_for() -> None:
    """By name, OpenVINO computes in fp32 unless bf16 is fast; bf16 that a CPU cannot do is refused."""
    assert "fp32" == resolve("openvino", cpu=SLOW).compute
    assert "bf16" == resolve("openvino", cpu=AMX).compute
    assert "fp32" == resolve("openvino", cpu=AMX, compute="fp32").compute
    assert "bf16" == resolve("openvino", cpu=SLOW, compute="bf16").compute
    assert ("openvino", None) == (resolve("auto", cpu=SLOW, compute="bf16").name, resolve("openvino").second)
    with pytest.raises(ConfigurationError, match="bf16"):
        resolve("openvino", cpu=Cpu(), compute="bf16")


@pytest.mark.parametrize("name", ["cpu", "cuda", "tensorrt"])
def test_bf16_on_a_provider_that_has_none_is_refused(name: str) -> None:
    """Before anything else is looked at."""
    with pytest.raises(ConfigurationError, match="does not compute in bf16"):
        resolve(name, compute="bf16", cpu=AMX)


@pytest.mark.skipif(CUDA, reason="CUDA is there")
@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_named_provider_that_is_not_there_stops_the_start(name: str) -> None:
    """With the reason and what to install; never a silent fall to the CPU."""
    expected = r"is not available: .+ It comes with the extra gpu, in place of .+ see docs/install\.md"
    with pytest.raises(ProviderUnavailable, match=expected):
        resolve(name)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_cuda_is_used_where_it_is() -> None:
    """A session on it holds it."""
    assert "cuda" == resolve("cuda").name


def test_openvino_is_there_or_says_what_is_missing() -> None:
    """Asking again, as a restart within a process does, answers the same."""
    answers = []
    for _ in range(2):
        try:
            answers.append(resolve("openvino").name)
        except ProviderUnavailable as exc:
            answers.append(exc.detail)
    assert answers[0] == answers[1]
    assert "openvino" == answers[0] or "the package openvino is not installed" in answers[0]


def test_an_unknown_name_lists_the_known_ones() -> None:
    """A misspelt name is refused at once."""
    with pytest.raises(ConfigurationError, match="auto, cpu, cuda, tensorrt, openvino"):
        resolve("gpu")


def test_a_session_that_fell_back_is_refused() -> None:
    """ONNX Runtime leaves out a provider it does not have; a session without it must not serve."""
    cuda_without_cuda = ResolvedProvider("cpu", "NoSuchExecutionProvider", "a test")
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


@needs_openvino
def test_openvino_knows_every_option() -> None:
    """It refuses one that it does not know, so a session with ours shows that it knows all of them."""
    provider = resolve("openvino", compute="fp32")
    config = TABLE["openvino"].options(SessionPlan(threads=3))
    assert ("f32", "3", "1") == (
        config["INFERENCE_PRECISION_HINT"],
        config["INFERENCE_NUM_THREADS"],
        config["NUM_STREAMS"],
    )
    bf16 = TABLE["openvino"].options(SessionPlan(threads=3, compute="bf16"))
    assert {**config, "INFERENCE_PRECISION_HINT": "bf16"} == bf16
    session = open_session(providers._PROBE, provider, threads=1)
    assert [[7.0]] == [list(y) for y in session.run(None, {"x": np.array([7], np.float32)})]


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_onnx_runtime_knows_every_option_of_cuda(name: str, tmp_path: Path) -> None:
    """It refuses one that it does not know, so a session with ours shows that it knows all of them."""
    if TABLE[name].ort_name not in onnxruntime.get_available_providers():
        pytest.skip("not in this build")
    limits = DeviceLimits(gpu_memory_bytes=2**30, engine_cache=tmp_path)
    shapes = InputRange(name="x", smallest=(1,), usual=(1,), largest=(1,))
    session = open_session(providers._PROBE, resolve(name), threads=1, half=True, limits=limits, key="k", shapes=shapes)
    assert [[7.0]] == [list(y) for y in session.run(None, {"x": np.array([7], np.float32)})]


def test_gpu_memory_is_bounded_when_it_is_said() -> None:
    """The setting's MiB reach CUDA as bytes; without it the arena has no limit."""
    limits = device_limits(Settings(gpu_memory_mib=3))
    options = TABLE["cuda"].options(SessionPlan(threads=1, limits=limits))
    assert (str(3 * 2**20), "kSameAsRequested") == (options["gpu_mem_limit"], options["arena_extend_strategy"])
    assert "gpu_mem_limit" not in TABLE["cuda"].options(SessionPlan(threads=1, limits=device_limits(Settings())))


def test_tensorrt_builds_once_for_all_shapes(tmp_path: Path) -> None:
    """Engines are kept in a folder for each model, and cover every batch that will come."""
    limits = device_limits(Settings(engine_cache=tmp_path, max_batch=8, max_batch_texts=9))
    assert (tmp_path, 8, 9) == (limits.engine_cache, limits.max_batch, limits.max_batch_texts)
    shapes = InputRange(name="ids", smallest=(1, 2), usual=(8, 16), largest=(8, 77))
    options = TABLE["tensorrt"].options(SessionPlan(threads=1, half=True, limits=limits, key="abc", shapes=shapes))
    assert ("1", "1") == (options["trt_fp16_enable"], options["trt_engine_cache_enable"])
    assert str(tmp_path / "abc") == options["trt_engine_cache_path"] == options["trt_timing_cache_path"]
    profile = [options[f"trt_profile_{word}_shapes"] for word in ("min", "opt", "max")]
    assert ["ids:1x2", "ids:8x16", "ids:8x77"] == profile
    assert {"trt_fp16_enable": "0"} == TABLE["tensorrt"].options(SessionPlan(threads=1))


def test_engines_are_kept_with_the_users_caches() -> None:
    """Where no other place is set."""
    cache = device_limits(Settings()).engine_cache
    assert cache is not None
    assert ("anyclass", "engines") == cache.parts[-2:]


def test_a_folder_for_engines_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """Others cannot write into one that was made; one that cannot be made stops the start."""
    sessions._make_folder(tmp_path / "a" / "b")
    assert 0o700 == (tmp_path / "a" / "b").stat().st_mode & 0o777
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="folder for engines"):
        sessions._make_folder(tmp_path / "file" / "b")


def test_the_input_of_a_graph_is_found(tmp_path: Path) -> None:
    """For a provider that needs the name before it opens the graph."""
    (tmp_path / "g.onnx").write_bytes(providers._PROBE)
    assert "x" == input_name(tmp_path / "g.onnx")


COMPUTES = """
import sys
import numpy as np
from service.model.engine.providers import _PROBE, open_session, resolve

session = open_session(_PROBE, resolve(sys.argv[1], compute="fp32"))
assert [7] == session.run(None, {"x": np.array([7], np.float32)})[0]
assert [] == [name for name in sys.modules if name.startswith("openvino_telemetry.")]
"""


@pytest.mark.parametrize("name", ["cpu", pytest.param("openvino", marks=needs_openvino)])
def test_nothing_is_reported_and_nothing_written(tmp_path: Path, name: str) -> None:
    """Left alone, both runtimes tell their makers when they are imported, and leave files in the home directory."""
    quiet = {"HOME", "XDG_CACHE_HOME", "CI", "ORT_DISABLE_TELEMETRY"}  # in continuous integration they keep quiet
    env = {key: value for key, value in os.environ.items() if key not in quiet} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPUTES, name], capture_output=True, text=True, check=False, env=env)
    assert (0, "") == (done.returncode, done.stderr)
    assert [] == list(tmp_path.iterdir())
