"""The table of execution providers: what each is called, what it needs, and which of its options we set.

ONNX Runtime checks the options of CUDA and TensorRT only where those are installed; all of their names stand here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from service.model.choices import Compute


@dataclass(frozen=True, kw_only=True)
class InputRange:
    """The shapes that a graph's one input will have, for a provider that builds for them."""

    name: str
    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DeviceLimits:
    """What a deployment sets of devices.

    Attributes:
        gpu_memory_bytes: the most that one session's arena may take on a GPU; all there is if None.
        max_batch: images of the largest batch that will be run.
        max_batch_texts: the same of texts.
        engine_cache: where TensorRT keeps its engines; they are built at every start if None.
    """

    gpu_memory_bytes: int | None = None
    max_batch: int = 32
    max_batch_texts: int = 64
    engine_cache: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that the options of one session follow from.

    Attributes:
        threads: CPU threads of one run.
        half: whether the graph is fp16.
        key: identifies the graph's content, for what is kept of it on disk.
        shapes: of its input, where they are known.
    """

    threads: int
    compute: Compute = "fp32"
    half: bool = False
    limits: DeviceLimits = DeviceLimits()
    key: str = ""
    shapes: InputRange | None = None


def _no_options(_: Plan) -> dict[str, str]:
    return {}


def _cuda(plan: Plan) -> dict[str, str]:
    options = {
        # The default measures every convolution algorithm anew for each batch size: seconds of delay in live traffic.
        "cudnn_conv_algo_search": "HEURISTIC",
        # fp32 means fp32: TensorFloat-32 would cost the parity that the manifest states.
        "use_tf32": "0",
        # The default doubles the arena at each step, and takes memory that the other encoder needs.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if plan.limits.gpu_memory_bytes is not None:
        options["gpu_mem_limit"] = str(plan.limits.gpu_memory_bytes)
    return options


def _tensorrt(plan: Plan) -> dict[str, str]:
    options = {"trt_fp16_enable": "1" if plan.half else "0"}
    if plan.limits.engine_cache is not None:
        # One folder for each model: an engine is good for the graph, the device and the release it was built with.
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
        # Without a profile TensorRT builds anew, for minutes, at each shape that it has not met.
        for word, shape in (
            ("min", plan.shapes.smallest),
            ("opt", plan.shapes.usual),
            ("max", plan.shapes.largest),
        ):
            options[f"trt_profile_{word}_shapes"] = f"{plan.shapes.name}:{'x'.join(map(str, shape))}"
    return options


def _openvino(plan: Plan) -> dict[str, str]:
    return {
        # Left to itself it computes in bf16 wherever the CPU has any instruction for it, also where that is slower.
        "INFERENCE_PRECISION_HINT": "bf16" if plan.compute == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": str(plan.threads),
        # Batches come one after the other, each with all the threads.
        "NUM_STREAMS": "1",
        # Threads tied to cores would be tied to the same ones in each session and each process.
        "ENABLE_CPU_PINNING": "NO",
    }


@dataclass(frozen=True)
class Row:
    """One provider.

    Attributes:
        ort_name: what its runtime calls it.
        source: what brings it.
        options: its options for a session.
        partners: rows that take the nodes this provider leaves, before the CPU does.
        needs_cuda: whether a CUDA device must be there.
        binds: whether inputs and outputs are bound to the session before a run, which saves a GPU provider a wait.
        builds: whether it builds an engine ahead, for the shapes it is told.
        runtime: what computes: a provider of ONNX Runtime, or OpenVINO itself.
        fp16: whether it computes a fp16 graph in fp16; any other would compute it in fp32.
        trusted: whether it computes what the graph says; any other must first answer a bundle's probes rightly.
    """

    ort_name: str
    source: str
    options: Callable[[Plan], dict[str, str]] = _no_options
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
