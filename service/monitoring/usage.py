"""Counts the work of one request, for the metrics by API key and for the full access log.

The middleware of requests sets `current`; the pipeline adds to it, in whatever task of the request. Work without a
request, such as the lines of batch jobs, adds to nothing.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final


@dataclass(slots=True)
class Usage:
    """Work of one request.

    Attributes:
        model: model of the latest work, None before the first.
        images: images classified or embedded.
        labels: labels classified against or written to a label set, and texts embedded.
        stages_s: seconds in each stage, of all images together.
    """

    model: str | None = None
    images: int = 0
    labels: int = 0
    stages_s: dict[str, float] = field(default_factory=dict)


current: Final[ContextVar[Usage | None]] = ContextVar("usage", default=None)


def add_work(model: str | None, *, images: int = 0, labels: int = 0) -> None:
    """Add images and labels to the current request's work."""
    if (usage := current.get()) is not None:
        usage.model = model or usage.model
        usage.images += images
        usage.labels += labels


def add_time(stage: str, seconds: float) -> None:
    """Add seconds in a stage to the current request's work."""
    if (usage := current.get()) is not None:
        usage.stages_s[stage] = usage.stages_s.get(stage, 0.0) + seconds
