"""Join the processes that torchrun started; end all of them with one message if one fails.

torchrun starts the same command in each process, with its rank in environment variables, and ends the others if one
fails. A command without torchrun runs in one process, without a process group.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from model_export.errors import LostRankError, OtherRankError, TrainingError
from model_export.training.ranks import Ranks

_TIMEOUT = timedelta(hours=1)
"""Of one exchange. A rank that ended is noticed at once; this bounds what rank 0 does alone, such as evaluation."""

_ENDED_WITHIN_S = 3.0
"""Time in which torchrun ends a rank after another one has failed."""

_FAILED = "anyclass/failed"

RESTARTS = "ANYCLASS_EXPORT_RESTARTS"
"""Variable with the number of times that `launch` started all processes again."""


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Yield this process's place among those that train together; alone, if torchrun did not start it.

    If the block fails on several ranks, the first one's exception is raised, and :class:`OtherRankError` on the others.

    Args:
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA if available.

    Raises:
        TrainingError: the device does not exist.
        LostRankError: another rank ended without a message.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield Ranks(device=_device(device))
        return
    store, rank, size = next(iter(rendezvous("env://")))
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # torchrun keeps its store through restarts, with the addresses of the dead. Of several machines each counts
        # its own failures, so this number is not common to all; see docs/training.md for them.
        store = PrefixStore(f"restart-{restarts}", store)
    try:
        place = _device(device, local_rank=int(os.environ["LOCAL_RANK"]))
        on_gpu = place.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(place)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=_TIMEOUT,
            device_id=place if on_gpu else None,
        )
        most = torch.tensor(restarts + int(os.environ.get(RESTARTS, "0")), device=place)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        yield Ranks(rank, size, place, restarts=int(most))
        # A rank that left early would be taken for a lost one.
        dist.barrier()
    except Exception as exc:
        if not _is_lost_connection(exc) and _is_first(store):
            raise
        # The rank that failed still has to report; if this one ended first, torchrun would stop it before its report.
        time.sleep(_ENDED_WITHIN_S)
        if _is_lost_connection(exc) and _is_first(store):
            msg = (
                "lost the connection to another rank, which was killed or whose machine is gone; "
                "the last checkpoint is kept: continue with --resume"
            )
            raise LostRankError(msg) from exc
        raise OtherRankError("another rank failed, and gave the reason") from exc
    except KeyboardInterrupt as exc:
        if rank == 0:
            raise
        raise OtherRankError("stopped, as rank 0") from exc
    dist.destroy_process_group()


def _device(name: str, *, local_rank: int | None = None) -> torch.device:
    """Return the device of a process; ``local_rank`` numbers those of one machine, None if it is alone."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        msg = "torch finds no GPU for --device cuda; install a CUDA build of torch, or use --device cpu"
        raise TrainingError(msg)
    if name not in ("auto", "cpu", "cuda"):
        msg = f"unknown device {name!r}; use cpu, cuda or auto"
        raise TrainingError(msg)
    if name == "cpu" or not available:
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda")
    if local_rank >= torch.cuda.device_count():
        processes = os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1)
        msg = (
            f"{processes} processes on this machine, but torch finds {torch.cuda.device_count()} GPUs: one is for each"
        )
        raise TrainingError(msg)
    return torch.device("cuda", local_rank)


def _is_lost_connection(exc: BaseException) -> bool:
    """Return whether an exchange failed because the other side is gone. gloo raises a plain RuntimeError."""
    return isinstance(exc, dist.DistError) or (isinstance(exc, RuntimeError) and "gloo" in str(exc))


def _is_first(store: Store) -> bool:
    """Return whether this rank is the first to fail with a reason of its own."""
    try:
        return int(store.add(_FAILED, 1)) == 1
    except RuntimeError:
        # The store's host is gone, and it has said why.
        return False
