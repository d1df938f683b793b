"""Write checkpoints while training goes on; each rank writes its part."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future as TorchFuture

from model_export.files import sha256_of, sync
from model_export.training.checkpoints import (
    KEEP,
    METADATA,
    PATTERN,
    ROOT,
    STATE,
    SUMS,
    State,
    newest_step,
    reason,
    silence_torch,
    step_of,
)
from model_export.training.ranks import Ranks

_DIGEST = ".sha256"
_LONG_S = 1.0
"""A wait that is worth a line."""


class CheckpointWriter:
    """Copies the state of a run in the background, and writes the copy in the background too.

    `torch.distributed.checkpoint` does both. The weights must not change before :meth:`copied` returns. One checkpoint
    is written at a time; one that fails is reported and leaves those before it.
    """

    def __init__(self, folder: Path, ranks: Ranks, say: Callable[[str], None]) -> None:
        """Prepare; on all ranks at once.

        Args:
            folder: of the run's checkpoints.
            ranks: that write together.
            say: prints a line for the user.
        """
        self._folder = folder
        self._ranks = ranks
        self._say = say
        # Exchanges of the background must not get between those of the training.
        self._group = dist.new_group(backend="gloo") if ranks.size > 1 else None
        on_gpu = ranks.device.type == "cuda"
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_gpu, use_shared_memory=False, use_async_staging=True, use_non_blocking_copy=on_gpu
            )
        )
        self._copying: Future[None] | None = None
        self._writing: Future[None] | None = None
        self._step = 0
        self._said_long = False

    def begin(self, state: State, tensors: Mapping[str, Tensor]) -> None:
        """Begin to write a checkpoint; on all ranks. Waits for the one before, if that is still being written.

        Args:
            state: of the run, the same on all ranks.
            tensors: by names that are the same on all ranks. Plain ones are equal on all of them, and each rank writes
                some of these; of those that are divided it writes its part.
        """
        started = time.monotonic()
        self.finish()
        waited = time.monotonic() - started
        if waited > _LONG_S and not self._said_long:
            self._said_long = True
            self._say(
                f"note: step {state.step:,} waited {waited:.0f} s, because the checkpoint of step {self._step:,} was "
                "still being written; raise checkpoint_every"
            )
        self._step = state.step
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize(self._ranks.device)  # the copy is made on a stream of its own
        silence_torch()
        response = async_save(
            {ROOT: _own(tensors, self._ranks)},
            storage_writer=_Writer(self._folder, state),
            process_group=self._group,
            async_stager=self._stager,
        )
        assert isinstance(response, AsyncSaveResponse)  # noqa: S101 - tells the type checker
        self._copying, self._writing = response.staging_completion, response.upload_completion

    @property
    def is_writing(self) -> bool:
        """Return whether a checkpoint is being written."""
        return self._writing is not None and not self._writing.done()

    def copied(self) -> None:
        """Wait until the state is copied; it may change from then on."""
        if self._copying is not None:
            # An error is reported with that of the writing.
            self._copying.exception()
            self._copying = None

    def report(self) -> None:
        """Report a checkpoint that could not be written, if it has just failed."""
        if not self.is_writing:
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint is written, or has failed, and report that."""
        self.copied()
        if self._writing is None:
            return
        error = self._writing.exception()
        self._writing = None
        if error is None:
            return
        if self._ranks.leads:
            shutil.rmtree(_partial(self._folder, self._step), ignore_errors=True)
        kept = newest_step(self._folder)
        self._say(
            f"note: the checkpoint of step {self._step:,} could not be written ({reason(error)}); training goes on, "
            + ("without any checkpoint yet" if kept is None else f"and the one of step {kept:,} is kept")
        )

    def close(self) -> None:
        """Finish, and free the memory of the copy."""
        self.finish()
        self._stager.close()


def _own(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Return the tensors that a rank copies and writes: all that are divided, and its share of the others.

    torch would divide the others too, but only after each rank has copied all of them.
    """
    loads = [0] * ranks.size
    own: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].numel(), item[0])):
        if isinstance(tensor, DTensor):
            own[name] = tensor
            continue
        rank = loads.index(min(loads))
        loads[rank] += tensor.nbytes
        if rank == ranks.rank:
            own[name] = tensor
    return own


def _partial(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.partial"


class _Writer(FileSystemWriter):
    """Writes a folder with a name of its own, adds state and digests, and then renames it.

    The first rank makes the folder and renames it, when all have written; each computes the digest of its own file.
    """

    def __init__(self, folder: Path, state: State) -> None:
        self._folder, self._state = folder, state
        super().__init__(_partial(folder, state.step))

    def storage_meta(self) -> None:
        """Return nothing: the folder's name is not kept."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leave the folder to the first rank."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder, on the first rank before any writes; a kill may have left one."""
        shutil.rmtree(self.path, ignore_errors=True)
        Path(self.path).mkdir(parents=True)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[list[WriteResult]]:
        """Write this rank's file, and its digest beside it."""
        try:
            written = super().write_data(plan, planner)
            written.wait()
            for file in Path(self.path).glob(f"{plan.storage_data.prefix}*"):
                file.with_name(file.name + _DIGEST).write_text(sha256_of(file), "ascii")
        except Exception as exc:
            raise _behind(exc) from exc
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the rest, rename the folder, and delete older checkpoints; on the first rank, when all have written."""
        super().finish(metadata, results)
        folder = Path(self.path)
        _write(folder / STATE, self._state.model_dump_json(indent=2) + "\n")
        sums = {name: sha256_of(folder / name) for name in (METADATA, STATE)}
        for file in folder.glob(f"*{_DIGEST}"):
            sums[file.name.removesuffix(_DIGEST)] = file.read_text("ascii")
            file.unlink()
        _write(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
        sync(folder)
        whole = folder.with_suffix("")
        if whole.exists():
            shutil.rmtree(whole)  # a corrupt one, before which the run went on
        folder.rename(whole)
        sync(self._folder)
        _prune(self._folder, self._state.step)


def _prune(folder: Path, step: int) -> None:
    """Keep a new checkpoint and the one before. Later ones are corrupt: the run would have gone on from them."""
    paths = sorted(folder.glob(PATTERN))
    until = [path for path in paths if step_of(path) <= step]
    for path in set(paths) - set(until[-KEEP:]):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"{PATTERN}.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _behind(exc: Exception) -> Exception:
    """Return the error of the system behind an exception: torch's zip writer hides it behind one of its own."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return exc


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync(path)
