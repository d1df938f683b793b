"""Resolves a provider's name to a provider that really computes.

ONNX Runtime lists a provider as available if it was compiled in, and silently computes on the CPU if the device or a
library is missing. So a provider counts as available only once it has run a graph, and `open_session` checks every
session.
"""

import ctypes
from dataclasses import replace
from typing import Final

import numpy as np

from service.errors import ConfigurationError, ProviderUnavailable
from service.installation import PAGE
from service.model.choices import Compute, ComputeChoice
from service.model.engine.cpus import Cpu, this_cpu
from service.model.engine.provider_table import TABLE
from service.model.engine.sessions import ResolvedProvider, import_onnxruntime, open_session

# One node, y = x, float32 [1]: the smallest graph that shows that a device computes.
_PROBE: Final = (
    b'\x08\x08\x12\x00:;\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x05probeZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02'
    b"\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
_NOT_BUILT_IN: Final = "this onnxruntime was built without it"


def resolve(name: str, *, compute: ComputeChoice = "auto", cpu: Cpu | None = None) -> ResolvedProvider:
    """Find the provider to use.

    `auto` is CUDA if it really works, else OpenVINO if the CPU is much faster in bf16 and `compute` allows it, else the
    CPU provider; `service.model.engine.tuning` measures whether that is best. It is never TensorRT, which builds
    engines for minutes.

    Args:
        name: a provider, or `auto`.
        compute: `fp32` or `bf16` alone, or `auto`: bf16 if that is much faster.
        cpu: vendor and flags; this machine's if None.

    Raises:
        ProviderUnavailable: the named one is not available; the detail says why and what to install.
        ConfigurationError: no provider has that name, or it does not compute in that precision.
    """
    cpu = cpu or this_cpu()
    if name == "auto":
        return replace(_best(compute, cpu), chosen_by="rule")
    if name not in TABLE:
        raise ConfigurationError(f"Provider {name!r} is not known; choose one of auto, {', '.join(TABLE)}.")
    if compute == "bf16":
        if name != "openvino":
            raise ConfigurationError(f"Provider {name} does not compute in bf16; openvino does.")
        if not cpu.has_bf16:
            raise ConfigurationError("This CPU does not compute in bf16.")
    fast = name == "openvino" and compute == "auto" and cpu.has_fast_bf16
    return _resolve_row(name, "asked for by name", "bf16" if fast or compute == "bf16" else "fp32")


def _best(compute: ComputeChoice, cpu: Cpu) -> ResolvedProvider:
    if compute == "bf16":
        chosen = resolve("openvino", compute="bf16", cpu=cpu)
        return replace(chosen, reason="auto: only openvino computes in bf16")
    cuda = try_provider("cuda", "auto: CUDA works")
    if not isinstance(cuda, str):
        return cuda
    # An installation for CPUs never has CUDA; one for GPUs without it needs the reason.
    no_cuda = "no CUDA" if cuda == _NOT_BUILT_IN else f"no CUDA ({cuda})"
    if compute == "fp32":
        return _resolve_row("cpu", f"auto: OpenVINO is no faster in fp32; {no_cuda}")
    if not cpu.has_fast_bf16:
        return _resolve_row("cpu", f"auto: OpenVINO is no faster on this CPU, which is not fast in bf16; {no_cuda}")
    openvino = try_provider("openvino", f"auto: OpenVINO in bf16 is fastest on this CPU; {no_cuda}", "bf16")
    if isinstance(openvino, str):
        return _resolve_row("cpu", f"auto: OpenVINO in bf16 would be faster, but {openvino}; {no_cuda}")
    return replace(openvino, second=replace(_resolve_row("cpu", "auto"), chosen_by="rule"))


def _resolve_row(name: str, reason: str, compute: Compute = "fp32") -> ResolvedProvider:
    found = try_provider(name, reason, compute)
    if isinstance(found, str):
        raise ProviderUnavailable(
            f"Provider {name} is not available: {found}. It comes with {TABLE[name].source}: see {PAGE}."
        )
    return found


def try_provider(name: str, reason: str, compute: Compute = "fp32") -> ResolvedProvider | str:
    """Run a graph on a provider; return it, or the reason why it is not available.

    Raises ProviderUnavailable without onnxruntime.
    """
    row = TABLE[name]
    ort = import_onnxruntime()
    if row.runtime == "onnxruntime" and row.ort_name not in ort.get_available_providers():
        return _NOT_BUILT_IN
    if row.needs_cuda:
        if not _cuda_devices():
            return "the driver shows no CUDA device"
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA's and cuDNN's pip packages are not on the loader's path
    provider = ResolvedProvider(name, row.ort_name, reason, compute)
    try:
        session = open_session(_PROBE, provider, threads=1)
        session.run(None, {"x": np.zeros(1, np.float32)})
    except ProviderUnavailable:
        return "its libraries could not be loaded"
    except ImportError:
        return f"the package {row.runtime} is not installed"
    except Exception as exc:  # noqa: BLE001 - the runtimes' exceptions share no base of their own
        return f"a trial run failed: {exc}"
    return provider


def _cuda_devices() -> int:
    """Return the number of CUDA devices, from the driver: quick, and silent without one."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return 0
    return count.value if ready else 0
