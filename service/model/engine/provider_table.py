"""The table of execution providers: names, requirements and the options we set.

One row adds a provider: settings, command-line options and `resolve` accept its name. ONNX Runtime checks the options
of CUDA and TensorRT only if they are installed, so all of their names stand here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from service.model.choices import Compute


@dataclass(frozen=True, kw_only=True)
class InputRange:
    """Shapes of a graph's only input, for a provider that builds engines for them."""

    name: str
    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DeviceLimits:
    """Limits that a deployment sets on devices.

    Attributes:
        gpu_memory_bytes: largest arena of one session on a GPU; all memory if None.
        max_batch: images in the largest batch.
        max_batch_texts: texts in the largest batch.
        engine_cache: folder of TensorRT's engines; they are built at every start if None.
    """

    gpu_memory_bytes: int | None = None
    max_batch: int = 32
    max_batch_texts: int = 64
    engine_cache: Path | None = None


@dataclass(frozen=True, kw_only=True)
class SessionPlan:
    """The facts that decide the options of one session.

    Attributes:
        compute: precision in which a float32 graph is computed.
        half: whether the graph is fp16.
        key: identifies the graph's content, for files that a provider caches.
        shapes: of the input, if known.
    """

    threads: int
    compute: Compute = "fp32"
    half: bool = False
    limits: DeviceLimits = DeviceLimits()
    key: str = ""
    shapes: InputRange | None = None


def _no_options(_: SessionPlan) -> dict[str, str]:
    return {}


def _cuda(plan: SessionPlan) -> dict[str, str]:
    options = {
        # The default measures every convolution algorithm for each new batch size: seconds of delay in live traffic.
        "cudnn_conv_algo_search": "HEURISTIC",
        # fp32 means fp32: TensorFloat-32 would cost the parity that the manifest states.
        "use_tf32": "0",
        # The default doubles the arena at each step and so takes memory that the other encoder needs.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if plan.limits.gpu_memory_bytes is not None:
        options["gpu_mem_limit"] = str(plan.limits.gpu_memory_bytes)
    return options


def _tensorrt(plan: SessionPlan) -> dict[str, str]:
    options = {"trt_fp16_enable": "1" if plan.half else "0"}
    if plan.limits.engine_cache is not None:
        # One folder for each model: an engine is valid only for the graph, device and release it was built with.
        folder = str(plan.limits.engine_cache / plan.key)
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
        }
    if plan.limits.gpu_memory_bytes is not None:
        options["trt_max_workspace_size"] = str(plan.limits.gpu_memory_bytes)
    if plan.shapes is not None:
        # Without a profile TensorRT builds an engine, for minutes, at each new shape.
        for word, shape in (
            ("min", plan.shapes.smallest),
            ("opt", plan.shapes.usual),
            ("max", plan.shapes.largest),
        ):
            options[f"trt_profile_{word}_shapes"] = f"{plan.shapes.name}:{'x'.join(map(str, shape))}"
    return options


def _openvino(plan: SessionPlan) -> dict[str, str]:
    return {
        # By default it computes in bf16 if the CPU has any instruction for it, even if that is slower.
        "INFERENCE_PRECISION_HINT": "bf16" if plan.compute == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": str(plan.threads),
        # Batches run one after the other, each with all the threads.
        "NUM_STREAMS": "1",
        # Pinned threads would share the same cores in every session and every process.
        "ENABLE_CPU_PINNING": "NO",
    }


@dataclass(frozen=True)
class Row:
    """One provider.

    Attributes:
        ort_name: its runtime's name for it.
        source: the extra or package that installs it, for messages.
        options: its options for a session.
        partners: rows that take the nodes this provider leaves, before the CPU does.
        needs_cuda: whether it needs a CUDA device.
        binds: whether inputs and outputs are bound to the session before a run, which saves a GPU provider a wait.
        builds: whether it builds an engine in advance, for given shapes.
        runtime: ONNX Runtime, of which it is a provider, or OpenVINO itself.
        fp16: whether it computes an fp16 graph in fp16; other providers would compute it in fp32.
        trusted: whether its results need no check; the others must reproduce a bundle's probes first.
    """

    ort_name: str
    source: str
    options: Callable[[SessionPlan], dict[str, str]] = _no_options
    partners: tuple[str, ...] = ()
    needs_cuda: bool = False
    binds: bool = False
    builds: bool = False
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    fp16: bool = False
    trusted: bool = False


TABLE: Final[Mapping[str, Row]] = {
    "cpu": Row("CPUExecutionProvider", "the extra cpu", trusted=True),
    "cuda": Row(
        "CUDAExecutionProvider", "the extra gpu, in place of cpu", _cuda, needs_cuda=True, binds=True, fp16=True
    ),
    "tensorrt": Row(
        "TensorrtExecutionProvider",
        "the extra gpu, in place of cpu, and the package tensorrt",
        _tensorrt,
        partners=("cuda",),
        needs_cuda=True,
        binds=True,
        builds=True,
        fp16=True,
    ),
    "openvino": Row(
        "OpenVINO",
        "the extra cpu, on Linux or Windows on x86-64",
        _openvino,
        runtime="openvino",
    ),
}

if TYPE_CHECKING:
    ProviderName: TypeAlias = str
else:
    ProviderName = Literal["auto", *TABLE]  # mypy reads no computed Literal; pydantic and Typer do
