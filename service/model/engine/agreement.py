"""Compares an encoder's vectors with those that a bundle's probes state."""

from typing import Any, Final

import numpy.typing as npt

from service.model.arrays import Vectors
from service.model.engine.encoder import Encoder

FULL_FLOATS: Final = frozenset({"fp32", "fp16-stored"})
"""Precisions of a bundle whose graphs compute in float32, for which a provider may use bf16."""
_MIN_COSINE: Final = 0.99
_MIN_COSINE_QUANTISED: Final = 0.95
"""Least cosines to a bundle's probes. bf16 costs less than 0.001, a wrongly computed graph far more."""


def least_cosine(precision: str) -> float:
    """Return the least cosine to the probes at which a provider may serve a bundle of this precision."""
    return _MIN_COSINE if precision in {*FULL_FLOATS, "fp16"} else _MIN_COSINE_QUANTISED


def agreement(encoder: Encoder, inputs: npt.NDArray[Any], wanted: Vectors) -> float:
    """Return the least cosine of the vectors of `inputs` to `wanted`, `[batch, dim]`.

    Raises BundleError if the encoder fails or its vectors are not finite and of unit length.
    """
    return float((encoder.check(inputs) * wanted).sum(axis=1).min())
