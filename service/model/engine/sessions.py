"""Opens sessions on a resolved provider."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

import numpy.typing as npt

from service.errors import ConfigurationError, ProviderUnavailable
from service.installation import PAGE
from service.model.choices import ChosenBy, Compute
from service.model.engine.cpus import available_cpus
from service.model.engine.openvino import OpenVinoSession
from service.model.engine.provider_table import TABLE, DeviceLimits, InputRange, SessionPlan

_LOG_ERRORS_ONLY: Final = 3
_NO_LIMITS: Final = DeviceLimits()


class Tensor(Protocol):
    """An input or output of a graph: `onnxruntime.NodeArg` or its like."""

    @property
    def name(self) -> str:
        """Name in the graph."""

    @property
    def type(self) -> str:
        """ONNX Runtime's name of the type, such as `tensor(float)`."""

    @property
    def shape(self) -> list[int | str | None]:
        """Length of each axis; a name or None if it varies."""


class Session(Protocol):
    """The part of `onnxruntime.InferenceSession`, which ships no annotations, that every provider has."""

    def get_inputs(self) -> Sequence[Tensor]:
        """Describe the graph's inputs."""

    def get_outputs(self) -> Sequence[Tensor]:
        """Describe the graph's outputs."""

    def run(self, output_names: None, input_feed: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Compute every output."""


@dataclass(frozen=True)
class ResolvedProvider:
    """A provider that has run a graph.

    Attributes:
        reason: for the choice of this one, for a log.
        compute: precision in which it computes float32 graphs.
        second: the provider that `auto` uses for a model that this one computes wrongly.
        chosen_by: the way it was chosen.
    """

    name: str
    ort_name: str
    reason: str
    compute: Compute = "fp32"
    second: "ResolvedProvider | None" = None
    chosen_by: ChosenBy = "name"


def open_session(
    model: Path | bytes,
    provider: ResolvedProvider,
    *,
    threads: int | None = None,
    half: bool = False,
    limits: DeviceLimits = _NO_LIMITS,
    key: str = "",
    shapes: InputRange | None = None,
) -> Session:
    """Open a session, `onnxruntime.InferenceSession` or its like, that really runs on the provider.

    The runtime's own exceptions pass through.

    Args:
        threads: of one run's CPU work; `available_cpus()` if None.
        half: whether the graph is fp16.
        key: identifies the graph's content, for files that a provider caches.
        shapes: of the graph's input, for a provider that builds engines for them.

    Raises:
        ProviderUnavailable: the session fell back to another provider.
        ConfigurationError: the folder for engines cannot be created.
    """
    row = TABLE[provider.name]
    plan = SessionPlan(
        threads=threads or available_cpus(), compute=provider.compute, half=half, limits=limits, key=key, shapes=shapes
    )
    if row.builds and limits.engine_cache is not None:
        _make_folder(limits.engine_cache / key)
    if row.runtime == "openvino":
        return OpenVinoSession(model, row.options(plan))
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.intra_op_num_threads = plan.threads
    # Threads that spin between two runs would take cores from image decoding and from the other encoder.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, bytes) else str(model)
    partners = [(TABLE[partner].ort_name, TABLE[partner].options(plan)) for partner in row.partners]
    opened = ort.InferenceSession(source, options, providers=[(provider.ort_name, row.options(plan)), *partners])
    opened.disable_fallback()
    held = opened.get_providers()
    if provider.ort_name not in held:
        raise ProviderUnavailable(f"{provider.name} could not be started: the session runs on {', '.join(held)}.")
    session: Session = opened
    return session


def input_name(model: Path) -> str:
    """Return the name of a graph's first input. ONNX Runtime's own exceptions pass through."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    name: str = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]).get_inputs()[0].name
    return name


def _make_folder(path: Path) -> None:
    try:
        # The runtime executes the files in it unchecked, so no other user may write to it.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(f"The folder for engines cannot be created: {exc}") from exc


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime, with its warnings off. Raises ProviderUnavailable if it is not installed."""
    # Imported late: it takes a third of a second, which `anyclass --version` does not need.
    try:
        ort = import_module("onnxruntime")
    except ImportError as exc:
        raise ProviderUnavailable(
            f"onnxruntime is not installed. It comes with the extra cpu, or for NVIDIA GPUs gpu: see {PAGE}."
        ) from exc
    ort.set_default_logger_severity(_LOG_ERRORS_ONLY)
    return ort
