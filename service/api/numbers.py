"""Many float32 as JSON."""

import numpy as np
import numpy.typing as npt


def json_numbers(values: npt.NDArray[np.float32]) -> str:
    """Finite float32 of any shape, flattened, as JSON numbers between commas; nine digits give each back exactly."""
    return ",".join([f"{value:.9g}" for value in values.ravel().tolist()])
