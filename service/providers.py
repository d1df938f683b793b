"""Execution providers: a name → what ONNX Runtime calls it, whether it is really there, and sessions on it.

ONNX Runtime lists a provider as available when it was compiled in, and quietly computes on the CPU when the device
or a library is missing. So a provider counts as there only once it has run a graph, and every session is asked
afterwards what it holds.
"""

import ctypes
import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from service.errors import ConfigurationError, ProviderUnavailable

ProviderName: TypeAlias = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]

# One node, y = x, float32 [1]: the smallest graph that shows that a device computes.
_PROBE: Final = (
    b'\x08\x08\x12\x00:;\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x05probeZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02'
    b"\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
_LOG_ERRORS_ONLY: Final = 3
_CUDA_OPTIONS: Final = {
    # The default measures every convolution algorithm anew for each batch size: seconds of delay in live traffic.
    "cudnn_conv_algo_search": "HEURISTIC",
    # fp32 means fp32: TensorFloat-32 would cost the parity that the manifest states.
    "use_tf32": "0",
}


@dataclass(frozen=True)
class _Row:
    ort_name: str
    install: str
    options: Mapping[str, str] = field(default_factory=dict)
    partners: tuple[str, ...] = ()
    """Rows that take the nodes this provider leaves, before the CPU does."""
    needs_cuda: bool = False
    plugin: str | None = None
    """The module that brings the provider as a library to be registered."""


_TABLE: Final[Mapping[str, _Row]] = {
    "cpu": _Row("CPUExecutionProvider", install="pip install 'anyclass[cpu]'"),
    "cuda": _Row(
        "CUDAExecutionProvider", install="pip install 'anyclass[gpu]'", options=_CUDA_OPTIONS, needs_cuda=True
    ),
    "tensorrt": _Row(
        "TensorrtExecutionProvider",
        install="pip install 'anyclass[gpu]' tensorrt",
        partners=("cuda",),
        needs_cuda=True,
    ),
    "openvino": _Row(
        "OpenVINOExecutionProvider",
        install="pip install 'anyclass[cpu]' onnxruntime-ep-openvino",
        plugin="onnxruntime_ep_openvino",
    ),
}

_plugin_lock = threading.Lock()
_registered_plugins: set[str] = set()


class Tensor(Protocol):
    """An input or output of a graph: `onnxruntime.NodeArg`."""

    name: str
    type: str
    shape: list[int | str | None]


class Session(Protocol):
    """What is used of `onnxruntime.InferenceSession`, which ships no annotations."""

    def get_inputs(self) -> list[Tensor]:
        """Describe the graph's inputs."""

    def get_outputs(self) -> list[Tensor]:
        """Describe the graph's outputs."""

    def run(self, output_names: None, input_feed: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Compute every output."""


@dataclass(frozen=True)
class ResolvedProvider:
    """A provider that was seen to compute; `reason` says for a log why it is this one."""

    name: str
    ort_name: str
    options: Mapping[str, str]
    reason: str


def resolve(name: ProviderName | str) -> ResolvedProvider:
    """Find the provider to use. `auto` is CUDA where it really works, else the CPU.

    Raises:
        ProviderUnavailable: the named one is not there; the detail says why and what to install.
        ConfigurationError: there is no provider of that name.
    """
    if name == "auto":
        try:
            return _resolve_row("cuda", "auto: CUDA is there")
        except ProviderUnavailable as exc:
            return _resolve_row("cpu", f"auto: {exc.detail}")
    if name not in _TABLE:
        raise ConfigurationError(f"There is no provider {name!r}; choose one of auto, {', '.join(_TABLE)}.")
    return _resolve_row(name, "asked for by name")


def open_session(model: Path | bytes, provider: ResolvedProvider, *, threads: int | None = None) -> Session:
    """Open an `onnxruntime.InferenceSession` that really runs on the provider.

    `threads` for one run's CPU work; `available_cpus()` if None. ONNX Runtime's own exceptions pass through.

    Raises:
        ProviderUnavailable: the session fell back to another provider.
    """
    ort = _onnxruntime()
    row = _TABLE[provider.name]
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.intra_op_num_threads = threads or available_cpus()
    # Threads that spin between two runs would take the cores from image decoding and from the other encoder.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, bytes) else str(model)
    if row.plugin:
        options.add_provider_for_devices(_plugin_devices(provider.name), dict(provider.options))
        opened = ort.InferenceSession(source, options)
    else:
        partners = [(_TABLE[partner].ort_name, dict(_TABLE[partner].options)) for partner in row.partners]
        chain = [(provider.ort_name, dict(provider.options)), *partners]
        opened = ort.InferenceSession(source, options, providers=chain)
    opened.disable_fallback()
    held = opened.get_providers()
    if provider.ort_name not in held:
        raise ProviderUnavailable(f"{provider.name} could not be started: the session runs on {', '.join(held)}.")
    session: Session = opened
    return session


def available_cpus() -> int:
    """Count the CPUs this process may use: its affinity, and in a container its quota; ONNX Runtime minds neither."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return allowed


def _resolve_row(name: str, reason: str) -> ResolvedProvider:
    row = _TABLE[name]
    ort = _onnxruntime()
    if row.plugin:
        _plugin_devices(name)
    elif row.ort_name not in ort.get_available_providers():
        raise _unavailable(name, "this onnxruntime was built without it")
    if row.needs_cuda:
        if not _cuda_devices():
            raise _unavailable(name, "the driver shows no CUDA device")
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN from their pip packages, which are not on the loader's path
    provider = ResolvedProvider(name=name, ort_name=row.ort_name, options=row.options, reason=reason)
    try:
        session = open_session(_PROBE, provider, threads=1)
        session.run(None, {"x": np.zeros(1, np.float32)})
    except ProviderUnavailable:
        raise _unavailable(name, "its libraries could not be loaded") from None
    except Exception as exc:  # ONNX Runtime's exceptions share no base of their own
        raise _unavailable(name, f"a trial run failed: {exc}") from exc
    return provider


def _unavailable(name: str, why: str) -> ProviderUnavailable:
    return ProviderUnavailable(f"Provider {name} is not there: {why}. To install it: {_TABLE[name].install}")


def _onnxruntime() -> ModuleType:
    # Imported late: it takes a third of a second, which the command line does not need to say its version.
    try:
        ort = import_module("onnxruntime")
    except ImportError as exc:
        raise ProviderUnavailable(
            "onnxruntime is not installed. Install exactly one: pip install 'anyclass[cpu]' or 'anyclass[gpu]'"
        ) from exc
    ort.set_default_logger_severity(_LOG_ERRORS_ONLY)
    return ort


def _plugin_devices(name: str) -> list[Any]:
    row = _TABLE[name]
    ort = _onnxruntime()
    with _plugin_lock:  # a library can be registered only once in a process
        if row.ort_name not in _registered_plugins:
            try:
                plugin = import_module(str(row.plugin))
                ort.register_execution_provider_library(row.ort_name, plugin.get_library_path())
            except ImportError as exc:
                raise _unavailable(name, "its plugin is not installed") from exc
            except Exception as exc:  # ONNX Runtime's exceptions share no base of their own
                raise _unavailable(name, f"its plugin could not be registered: {exc}") from exc
            _registered_plugins.add(row.ort_name)
    # The exact name: the plugin lists a twin, ….AUTO, that chooses a device by itself.
    devices = [device for device in ort.get_ep_devices() if device.ep_name == row.ort_name]
    on_cpu = [device for device in devices if device.device.type == ort.OrtHardwareDeviceType.CPU]
    if not devices:
        raise _unavailable(name, "its plugin finds no device that it supports")
    return (on_cpu or devices)[:1]


def _cuda_devices() -> int:
    """Ask the driver, which is quick and quiet where there is none."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return 0
    return count.value if ready else 0
