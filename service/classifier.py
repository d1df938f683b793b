"""The use case: an image and labels in, ranked scores out."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal

from service.errors import AnyclassError

ScoringMethod = Literal["softmax", "sigmoid", "cosine"]


@dataclass(frozen=True, slots=True)
class LabelQuery:
    """The labels of a request as the client spelled them, and a template set's name or the templates themselves."""

    labels: tuple[str, ...]
    templates: str | tuple[str, ...] = "default"


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


class Classifier:
    """Signatures first; the body follows.

    To be built as ``Classifier(models, text_cache, settings, metrics)``.
    """

    async def classify(
        self,
        image: bytes,
        query: LabelQuery,
        options: ScoringOptions,
        *,
        model: str | None = None,
        timings: Timings | None = None,
    ) -> Classification:
        """Classify one image. Raises `AnyclassError`."""
        raise NotImplementedError

    def classify_many(
        self,
        images: AsyncIterator[bytes] | Sequence[bytes],
        query: LabelQuery,
        options: ScoringOptions,
        *,
        model: str | None = None,
    ) -> AsyncIterator[tuple[int, Classification | AnyclassError]]:
        """Classify images in order; what is wrong with the request as a whole is raised before the first answer."""
        raise NotImplementedError

    async def close(self) -> None:
        """Answer what was accepted, then stop."""
        raise NotImplementedError
