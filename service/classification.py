"""What goes into a classification and what comes out, in the words of the domain."""

from dataclasses import dataclass

from service.class_vectors import ScoringMethod


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
