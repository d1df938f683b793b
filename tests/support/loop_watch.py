"""Measures for how long callbacks keep an event loop busy, in processor time of its thread."""

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class LoopWatch:
    """The longest callback so far.

    Attributes:
        longest_s: its processor time, in seconds, which other processes on the machine do not change.
        callback: its description.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.callback = ""


@contextmanager
def loop_watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopWatch]:
    """Watch the callbacks of every event loop of the current thread.

    A coverage measurement pauses: its tracer would cost more than the code.
    """
    watch, thread, run = LoopWatch(), threading.get_ident(), asyncio.Handle._run

    def watched(handle: asyncio.Handle) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        begun = time.thread_time()
        try:
            result = run(handle)
        finally:
            spent = time.thread_time() - begun
            sys.settrace(tracer)
        if threading.get_ident() == thread and spent > watch.longest_s:
            watch.longest_s, watch.callback = spent, repr(handle)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", watched)
        yield watch


@contextmanager
def older_objects_frozen() -> Iterator[None]:
    """Let the garbage collector pass over what exists by now, as in a running service: a test process has a lot."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
