"""Run a function in several processes that belong together, as torchrun starts them but faster."""

from __future__ import annotations

import functools
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

_CONTEXT = multiprocessing.get_context("forkserver")
# Imported once, by the process from which all ranks are forked: each import of torch takes seconds.
_CONTEXT.set_forkserver_preload(["model_export.training.run", "torch._dynamo", "pytest"])
_PATIENCE_S = 100.0


class RankError(AssertionError):
    """A rank raised; the message is its traceback."""


def on_ranks(size: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """Call an importable function on ``size`` ranks of gloo; return their results in the order of ranks.

    Raises:
        RankError: it raised on a rank, or a process ended; all others are ended too.
    """
    outcomes = outcomes_on_ranks(size, function, *args, **kwargs)
    failures = [f"rank {rank} of {size}: {result}" for rank, (fine, result) in enumerate(outcomes) if not fine]
    if failures:
        # The other ranks only noticed.
        raise RankError(min(failures, key=lambda text: "OtherRankError" in text))
    return [result for _, result in outcomes]


def outcomes_on_ranks(size: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[tuple[bool, Any]]:
    """Do as `on_ranks`, but let each rank end by itself: return True and its result, or False and its traceback."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes, processes = [], []
    for rank in range(size):
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        call = functools.partial(function, *args, **kwargs)
        process = _CONTEXT.Process(target=_run, args=(theirs, rank, size, store.port, call))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return [_outcome(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _outcome(pipe: Connection) -> tuple[bool, Any]:
    if not wait([pipe], timeout=_PATIENCE_S):
        return False, f"no answer within {_PATIENCE_S:g} s"
    try:
        result: tuple[bool, Any] = pipe.recv()
    except EOFError:
        return False, "the process ended without an answer"
    return result


def _run(pipe: Connection, rank: int, size: int, port: int, call: Callable[[], Any]) -> None:
    import torch

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    try:
        pipe.send((True, call()))
    except BaseException:  # noqa: BLE001 - reported by the parent
        pipe.send((False, traceback.format_exc()))
