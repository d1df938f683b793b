"""Wait for a condition, with a deadline that suits a busy machine."""

import time
from collections.abc import Callable

PATIENCE_S = 60.0


def wait_until(condition: Callable[[], bool], *, within_s: float = PATIENCE_S, every_s: float = 0.01) -> None:
    """Poll until a condition holds. Raises AssertionError at the deadline."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"it did not come true within {within_s:g} s"
        time.sleep(every_s)
