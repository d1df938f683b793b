"""Measures for how long code holds the interpreter's lock: the longest time between two calls."""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class LongestStep:
    """The longest step so far. Attribute `seconds`: processor time of the thread."""

    def __init__(self) -> None:
        self.seconds = 0.0


@contextmanager
def longest_step() -> Iterator[LongestStep]:
    """Watch the current thread. Between two calls other threads can run; one call to C code may keep them waiting.

    The garbage collector passes over what exists by now, as in a running service. Slows the code down very much.
    """
    step, begun = LongestStep(), time.thread_time()

    def event(_: FrameType, kind: str, __: object) -> None:
        nonlocal begun
        if kind != "call":
            step.seconds = max(step.seconds, time.thread_time() - begun)
        begun = time.thread_time()

    gc.collect()
    gc.freeze()
    begun = time.thread_time()
    sys.setprofile(event)
    try:
        yield step
    finally:
        sys.setprofile(None)
        gc.unfreeze()
