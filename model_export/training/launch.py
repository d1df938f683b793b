"""Start the processes of a training on this machine, as torchrun does; torchrun itself is for several machines."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Collection, Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from model_export.errors import LostRankError
from model_export.training.joining import RESTARTS

SIGNALLED = 128
"""Exit code of a program that a signal ended, without the signal's number."""


def launch(
    arguments: Sequence[str],
    *,
    processes: int,
    restarts: int = 0,
    final: Collection[int] = (),
    threads: int | None = None,
) -> int:
    """Run ``anyclass-export`` in several processes that train together; return the exit code.

    A process that fails has given its reason on stderr.

    Args:
        arguments: of the command.
        processes: their number.
        restarts: times to start all again, from the newest checkpoint, after one has failed.
        final: exit codes after which all would fail alike, so that they are not started again.
        threads: of torch in each; by default its share of the cores.

    Raises:
        LostRankError: a process was killed.
    """
    # torch reports each failure in forty lines, and a rank gives its reason itself.
    log = logging.getLogger("torch.distributed.elastic")
    log.handlers, log.propagate = [logging.NullHandler()], False
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(threads or max(1, cores // processes)))
    try:
        # torch's own restarts know no exit codes.
        failed = _failure(arguments, processes, 0)
        for restart in range(1, restarts + 1):
            if failed is None or failed[1].exitcode in final:
                break
            failed = _failure(arguments, processes, restart)
    except SignalException as exc:
        return SIGNALLED + int(exc.sigval)
    if failed is None:
        return 0
    rank, failure = failed
    if failure.exitcode > 0:
        return failure.exitcode
    raise LostRankError(
        f"rank {rank} of {processes} was killed by {failure.signal_name()}"
        f"{' (out of memory?)' if failure.exitcode == -signal.SIGKILL else ''}; the last checkpoint is kept: "
        "continue with --resume, or let --restarts do it"
    )


def _failure(arguments: Sequence[str], processes: int, restart: int) -> tuple[int, ProcessFailure] | None:
    """Run the processes to their end; return the first that failed, by its rank, or None."""
    os.environ[RESTARTS] = str(restart)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        shutdown_timeout=_SHUTDOWN_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "model_export", *arguments)
    except ChildFailedError as exc:
        return exc.get_first_failure()
    return None


_SHUTDOWN_S = 3
"""Time in which a process can end by itself before it is killed."""
