"""Exchange between the processes that train one model together: one a rank, each with its part of every batch.

A rank alone exchanges nothing, so the trainer reads the same for one process and for many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model_export.errors import RecipeError, TrainingError

_Object = TypeVar("_Object")

_BUCKET_BYTES = 25 * 2**20
"""Gradients that travel together, as in DistributedDataParallel."""


@dataclass(frozen=True)
class Ranks:
    """One process among those that train.

    Attributes:
        rank: its number, from 0. Rank 0 leads: it alone writes and reports.
        size: the number of processes.
        device: holds its model.
        restarts: times that torchrun started all processes again after a failure.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    restarts: int = 0

    @property
    def leads(self) -> bool:
        """Return whether this process writes and reports."""
        return self.rank == 0

    def part(self, batch_size: int) -> tuple[int, int]:
        """Return the positions of this rank's rows within each batch: the first, and the one after the last.

        Raises:
            RecipeError: ``batch_size`` is not divisible by the number of ranks.
        """
        rows, rest = divmod(batch_size, self.size)
        if rest:
            msg = (
                f"optim.batch_size {batch_size} cannot be divided among {self.size} processes; "
                f"{max(self.size, batch_size - rest)} and {batch_size - rest + self.size} can"
            )
            raise RecipeError(msg)
        return self.rank * rows, (self.rank + 1) * rows

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, ``[batch, ...]`` from ``[batch / size, ...]``, in the order of ranks.

        A gradient goes back to the rank that a row came from, summed over all ranks.
        """
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self.size)  # type: ignore[no-untyped-call]
        return gathered

    def gather_objects(self, own: _Object) -> list[_Object]:
        """Return an object of each rank, in their order."""
        if self.size == 1:
            return [own]
        objects = [own] * self.size
        dist.all_gather_object(objects, own)
        return objects

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set each gradient to its mean over all ranks, the same bits on each.

        The order of additions depends on the parameters alone, so a resumed run adds as an undisturbed one does.
        """
        if self.size == 1:
            return
        sent = []
        for bucket in _buckets(p.grad for p in parameters if p.grad is not None):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in sent:
            assert work is not None  # noqa: S101 - tells the type checker
            work.wait()
            parts = torch.split(flat.div_(self.size), [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a value over all ranks, without its graph."""
        value = value.detach()
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def spread(self, module: nn.Module) -> None:
        """Give all ranks the parameters and buffers of the leader's module."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                # A convolution's kernel may have its channels last, and a model to be divided is still on the CPU.
                sent = tensor.to(self.device).contiguous()
                dist.broadcast(sent, 0)
                tensor.copy_(sent)

    def check_same(self, facts: Mapping[str, object]) -> None:
        """Check that all ranks know the same facts.

        Raises:
            TrainingError: a rank differs from rank 0; the message names the fact and both values.
        """
        if self.size == 1:
            return
        known = self.gather_objects(dict(facts))
        for rank, others in enumerate(known):
            for name, value in known[0].items():
                if others[name] != value:
                    msg = f"rank {rank} has another {name} than rank 0: {others[name]}, not {value}"
                    raise TrainingError(msg)

    def of_leader(self, own: _Object) -> _Object:
        """Return the leader's object."""
        if self.size == 1:
            return own
        objects = [own]
        dist.broadcast_object_list(objects, 0)
        return objects[0]

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let the other ranks enter this block when the leader has left it."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


class _Gather(torch.autograd.Function):
    """All-gather with a gradient. torch deprecates its own; the private successor loads the compiler, for a second."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, size: int) -> Tensor:  # noqa: ANN401 - torch's context has no type
        ctx.size = size
        gathered = rows.new_empty(size * len(rows), *rows.shape[1:])
        dist.all_gather_single(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        own = gradient.new_empty(len(gradient) // ctx.size, *gradient.shape[1:])
        dist.reduce_scatter_single(own, gradient.contiguous())
        return own, None


ALONE = Ranks()


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients of one type in groups of about the bucket's size."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size >= _BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
