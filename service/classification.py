"""What goes into a classification and what comes out, in the words of the domain."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from service.class_vectors import ScoringMethod
from service.errors import AnyclassError

ImageSource: TypeAlias = bytes | AnyclassError | Callable[[], Awaitable[bytes]]
"""An encoded image, a way to get one, or why there is none."""


@dataclass(frozen=True, slots=True)
class LabelQuery:
    """The labels of a request as the client spelled them, and a template set's name or the templates themselves.

    With the name of a `label_set` there are neither: it brings its own.
    """

    labels: tuple[str, ...]
    templates: str | tuple[str, ...] = "default"
    label_set: str | None = None


async def load_image(source: ImageSource) -> bytes:
    """The encoded image. Raises what is wrong with it, or what getting it raises."""
    if isinstance(source, AnyclassError):
        raise source
    return source if isinstance(source, bytes) else await source()


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """How cosines become scores; `method` None is the model's own. `min_score` is in the scores' own unit."""

    method: ScoringMethod | None = None
    top_k: int | None = None
    min_score: float | None = None
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label in the client's spelling and its score."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for one image: predictions by falling score; `labels_cached` of `labels` needed no text encoder."""

    model: str
    revision: str
    predictions: tuple[Prediction, ...]
    labels: int
    labels_cached: int


@dataclass(slots=True)
class Timings:
    """Seconds spent in each stage of one request; stages overlap, so they do not add up to its duration."""

    decode_s: float = 0.0
    queue_s: float = 0.0
    text_s: float = 0.0
    image_s: float = 0.0
    score_s: float = 0.0
