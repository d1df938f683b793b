"""Inputs and results of a classification."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, overload

from service.errors import AnyclassError
from service.model.answer_warnings import AnswerWarning
from service.model.arrays import Indices, Vectors
from service.model.choices import ScoringMethod

ImageSource: TypeAlias = bytes | AnyclassError | Callable[[], Awaitable[bytes]]
"""An encoded image, a function that fetches one, or the error of an image that could not be read."""


@dataclass(frozen=True, slots=True)
class LabelQuery:
    """The labels of a request as the client spelled them, and a template set's name or the templates themselves.

    With a `label_set`, `labels` is empty: the set brings its own labels and templates.
    """

    labels: tuple[str, ...]
    templates: str | tuple[str, ...] = "default"
    label_set: str | None = None


async def load_image(source: ImageSource) -> bytes:
    """Return the encoded image. Raises the source's error, or the errors of fetching it."""
    if isinstance(source, AnyclassError):
        raise source
    return source if isinstance(source, bytes) else await source()


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """Options of scoring; `method` None is the model's own. `min_score` is in the unit of the scores."""

    method: ScoringMethod | None = None
    top_k: int | None = None
    min_score: float | None = None
    temperature: float = 1.0


class Prediction(NamedTuple):
    """A label in the client's spelling and its score. A tuple takes a fifth of a dataclass's time to create."""

    label: str
    score: float


class Ranking(Sequence[Prediction]):
    """The predictions of one image, best first, each created on access.

    An image may have 100,000 of them; as objects they would take ten times the memory.
    """

    __slots__ = ("_labels", "_order", "_scores")

    def __init__(self, labels: Sequence[str], order: Indices, scores: Vectors) -> None:
        """`order` holds the indices of the kept labels, best first; `scores`, float32 `[labels]`, the scores of all."""
        self._labels = labels
        self._order = order
        self._scores = scores[order]

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...
    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        if isinstance(index, slice):
            return tuple(self[each] for each in range(len(self))[index])
        return Prediction(self._labels[self._order[index]], float(self._scores[index]))

    def __iter__(self) -> Iterator[Prediction]:
        for index, score in zip(self._order.tolist(), self._scores.tolist(), strict=True):
            yield Prediction(self._labels[index], score)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as a list


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for one image: predictions by falling score; `labels_cached` of `labels` needed no text encoder.

    `warnings` are about the labels, and the same for every image of a request.
    """

    model: str
    revision: str
    predictions: Sequence[Prediction]
    labels: int
    labels_cached: int
    warnings: tuple[AnswerWarning, ...] = ()


@dataclass(slots=True)
class Timings:
    """Seconds in each stage of one request; stages overlap, so they do not add up to its duration."""

    decode_s: float = 0.0
    queue_s: float = 0.0
    text_s: float = 0.0
    image_s: float = 0.0
    score_s: float = 0.0
