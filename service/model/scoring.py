"""The arithmetic of zero-shot classification, pure NumPy, used by both halves.

Radford et al. 2021, section 3.1.4: a class vector is the mean of the unit embeddings of its prompts, normalised
again; an image is compared with it by cosine.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import InvalidScoring, NonFiniteOutput
from service.model.arrays import Indices, Vectors
from service.model.choices import ScoringMethod
from service.model.manifest import SigmoidScoring, SoftmaxScoring

_SHORTEST_MEAN = 1e-6
"""A mean of unit vectors shorter than this is rounding noise: it points nowhere."""

_FEW = 8
"""If fewer than one label in so many is wanted, selecting them is faster than sorting all."""


def class_vectors(prompt_embeddings: Vectors, n_templates: int) -> Vectors:
    """Average each label's prompts.

    Args:
        prompt_embeddings: float32 `[labels · n_templates, dim]`, unit length, label-major.
        n_templates: prompts for each label, at least 1.

    Returns:
        float32 `[labels, dim]`, unit length.

    Raises:
        NonFiniteOutput: the prompts of a label are not finite, or cancel each other out.
    """
    rows, dim = prompt_embeddings.shape
    if n_templates < 1 or rows % n_templates:
        raise ValueError(f"{rows} prompt embeddings are not a multiple of {n_templates} templates")
    # A label's vector must not depend on which labels it was computed with: every step is within its own rows.
    means = prompt_embeddings.reshape(rows // n_templates, n_templates, dim).mean(axis=1, dtype=np.float64)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths < _SHORTEST_MEAN).any():
        raise NonFiniteOutput("The text embeddings of a label have no direction.")
    vectors: Vectors = (means / lengths).astype(np.float32)
    return vectors


def cosines(image: Vectors, matrix: Vectors) -> Vectors:
    """Compare unit vectors: float32 `[dim]` or `[batch, dim]` and `[labels, dim]` → `[labels]` or `[batch, labels]`."""
    if image.ndim == 1:
        # No matrix product: NumPy would spread it over all cores, which are busy with the encoders, and wait for each
        # of them. Measured for a thousand labels: 35 ms, against 0.1 ms this way.
        compared: Vectors = np.einsum("d,ld->l", image, matrix)
        return compared
    products: Vectors = image @ matrix.T
    return products


def scores(
    cosines: Vectors,
    scoring: SoftmaxScoring | SigmoidScoring,
    method: ScoringMethod | None = None,
    temperature: float = 1.0,
) -> Vectors:
    """Turn cosines into scores over the last axis.

    Args:
        cosines: float32 `[labels]` or `[batch, labels]`.
        scoring: the model's own scale and bias.
        method: `softmax` (sum to 1), `sigmoid` (each in 0..1) or `cosine` (each in -1..1); the model's own if None.
        temperature: divides the logits; above 0, and 1 for `cosine`.

    Returns:
        float32 of the same shape, finite.

    Raises:
        InvalidScoring: `sigmoid` on a model without a bias, or a temperature that is not finite and above 0, or one
            other than 1 for `cosine`.
        NonFiniteOutput: cosines that are not finite.
    """
    check_scoring(scoring, method, temperature)
    if not np.isfinite(cosines).all():
        raise NonFiniteOutput("The model's answer is not finite.")
    method = method or scoring.kind
    if method == "cosine":
        clipped: Vectors = cosines.clip(-1, 1)  # rounding may leave 1.0000001
        return clipped
    scaled = cosines.astype(np.float64) * scoring.logit_scale
    # Extreme temperatures overflow to infinities of the right sign, which exp turns into 0.
    with np.errstate(over="ignore"):
        if method == "sigmoid" and isinstance(scoring, SigmoidScoring):
            return _sigmoid((scaled + scoring.logit_bias) / temperature).astype(np.float32)
        weights = np.exp((scaled - scaled.max(axis=-1, keepdims=True)) / temperature)
    shares: Vectors = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    return shares


def check_scoring(
    scoring: SoftmaxScoring | SigmoidScoring, method: ScoringMethod | None = None, temperature: float = 1.0
) -> None:
    """Raise InvalidScoring as `scores` would, before any work is spent on the request."""
    if method == "sigmoid" and not isinstance(scoring, SigmoidScoring):
        raise InvalidScoring(
            "This model has no logit bias, so it cannot score by 'sigmoid'; use 'softmax' or 'cosine'."
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise InvalidScoring("The temperature must be a finite number above 0.")
    if method == "cosine" and temperature != 1:
        raise InvalidScoring("A cosine has no temperature; leave it out, or score by 'softmax'.")


def check_ranking(top_k: int | None = None, min_score: float | None = None) -> None:
    """Raise InvalidScoring if `top_k` is below 1, or `min_score` is not finite."""
    if top_k is not None and top_k < 1:
        raise InvalidScoring("top_k must be at least 1.")
    if min_score is not None and not math.isfinite(min_score):
        raise InvalidScoring("min_score must be a finite number.")


def rank(scores: Vectors, top_k: int | None = None, min_score: float | None = None) -> Indices:
    """Order labels by falling score, equal scores by index.

    Args:
        scores: float32 `[labels]`.
        top_k: most labels to return; all if None.
        min_score: least score of a returned label; all if None.

    Returns:
        intp `[kept]`, indices into `scores`.

    Raises:
        InvalidScoring: as `check_ranking`.
    """
    check_ranking(top_k, min_score)
    if top_k is None or top_k * _FEW > len(scores):
        order = np.argsort(-scores, kind="stable")[:top_k]
    else:
        # Labels that tie with the last of the best are sorted too, so that equal scores go by index here as well.
        best = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
        order = best[np.argsort(-scores[best], kind="stable")][:top_k]
    return order if min_score is None else order[scores[order] >= min_score]


def _sigmoid(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    small = np.exp(-np.abs(x))  # never overflows
    shares: npt.NDArray[Any] = np.where(x >= 0, 1 / (1 + small), small / (1 + small))
    return shares
