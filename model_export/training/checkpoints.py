"""Checkpoints from which a run continues exactly: their folders, and how they are checked and read.

A checkpoint is a folder that `torch.distributed.checkpoint` wrote: a file of tensors from each rank, and ``.metadata``
with the place of each part of each tensor, so it is read on any number of ranks. ``state.json`` has the rest of the
state, and ``SHA256SUMS`` the digests of all these files.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from model_export.errors import TrainingError, first_line
from model_export.files import Section, sha256_of
from model_export.training.ranks import Ranks

FOLDER = "checkpoints"
PATTERN = "step-????????"
OLD_PATTERN = "step-*.pt"
"""Files of versions before this format."""
KEEP = 2
ROOT = "run"
"""Holds all tensors: torch logs each name at the top, which would take the training's thread longer than the rest."""
METADATA, STATE, SUMS = ".metadata", "state.json", "SHA256SUMS"

# torch warns of each save and load without a process group, in which it is right.
_NO_GROUP = r"torch\.distributed is disabled, unavailable or uninitialized"


class State(Section):
    """State of a run between two steps, but for its tensors; ``step`` is the next one to run."""

    step: int
    recipe_digest: str
    data_digests: tuple[str, ...]
    seconds: float
    tally: dict[str, int]
    scaler: dict[str, int | float] = Field(default={})
    """Of the loss; empty if it is not scaled."""
    teacher_digest: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have the digests that were written with them."""

    path: Path
    state: State
    sizes: Mapping[str, torch.Size]
    """The shape of each tensor by its name."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors by their names, each rank for itself: of a tensor that is divided among ranks, its part.

        Raises:
            TrainingError: a tensor is not there, or has another shape.
        """
        for name, tensor in tensors.items():
            if (size := self.sizes.get(name)) != tensor.shape:
                there = "is missing" if size is None else f"has the shape {tuple(size)}, not {tuple(tensor.shape)}"
                msg = f"{self.path}: {name} {there}; this checkpoint is of another model"
                raise TrainingError(msg)
        silence_torch()
        try:
            load({ROOT: dict(tensors)}, storage_reader=_Reader(self.path), no_dist=True)
        except (CheckpointException, OSError) as exc:
            msg = f"{self.path}: cannot be read ({reason(exc)})"
            raise TrainingError(msg) from exc


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint by its name; None if a run has none.

    Raises:
        TrainingError: the checkpoints are those of an older version.
    """
    if old := next(folder.glob(OLD_PATTERN), None):
        msg = (
            f"{old}: is a checkpoint of an older version, which this one cannot resume; finish the run with that "
            "version, or begin a new one in another folder with --out"
        )
        raise TrainingError(msg)
    return max((step_of(path) for path in folder.glob(PATTERN)), default=None)


def step_of(path: Path) -> int:
    """Return the step of a checkpoint by its name."""
    return int(path.name.removeprefix("step-"))


def open_newest(folder: Path, ranks: Ranks, say: Callable[[str], None]) -> Checkpoint:
    """Open the newest checkpoint that is whole; the ranks check its files together.

    Raises:
        TrainingError: none is whole; the message says why.
    """
    problem = "no checkpoint"
    for path in sorted(folder.glob(PATTERN), reverse=True):
        checked = _check(path, ranks)
        if isinstance(checked, Checkpoint):
            return checked
        problem = f"{path}: {checked}"
        say(f"note: {problem}: it is passed over for the one before")
    msg = f"{folder}: no checkpoint is whole ({problem}); begin a new run in another folder with --out"
    raise TrainingError(msg)


def _check(path: Path, ranks: Ranks) -> Checkpoint | str:
    """Return a checkpoint, or the first thing that is wrong with it."""
    sums = ranks.of_leader(_read_sums(path) if ranks.leads else {})
    own = [name for i, name in enumerate(sorted(sums)) if i % ranks.size == ranks.rank]
    problems = ranks.gather_objects(_first_problem(path, own, sums))
    if not {METADATA, STATE} <= sums.keys():
        return f"{SUMS} is missing or corrupt"
    if problem := next(filter(None, problems), None):
        return problem
    try:
        checkpoint = Checkpoint(path, State.model_validate_json((path / STATE).read_bytes()), _read_sizes(path))
    except (OSError, ValidationError, pickle.UnpicklingError) as exc:
        return f"is not one of this version ({first_line(exc)})"
    return checkpoint


def _read_sizes(path: Path) -> dict[str, torch.Size]:
    """Return the shape of each tensor."""
    sizes = {}
    for name, stored in _Reader(path).read_metadata().state_dict_metadata.items():
        if not isinstance(stored, TensorStorageMetadata):
            msg = f"{METADATA} has {name}, which is no tensor"  # torch would execute it
            raise pickle.UnpicklingError(msg)
        sizes[name.removeprefix(f"{ROOT}.")] = stored.size
    return sizes


def _read_sums(path: Path) -> dict[str, str]:
    """Return the digest of each file by its name; of a corrupt list, those that can be read."""
    try:
        lines = (path / SUMS).read_bytes().decode("ascii", "replace").splitlines()
    except OSError:
        return {}
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _first_problem(path: Path, names: Iterable[str], sums: Mapping[str, str]) -> str | None:
    for name in names:
        try:
            if sha256_of(path / name) != sums[name]:
                return f"{name} is corrupt (its digest is not the one in {SUMS})"
        except (OSError, ValueError) as exc:
            return f"{name} cannot be read ({getattr(exc, 'strerror', None) or first_line(exc)})"
    return None


def reason(exc: BaseException) -> str:
    """Return the first line of the error behind an exception, which `torch.distributed.checkpoint` may have wrapped."""
    if isinstance(exc, CheckpointException) and exc.failures:
        exc = next(iter(exc.failures.values()))[0]
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return next(iter(str(exc).splitlines()), type(exc).__name__)


def silence_torch() -> None:
    """Ignore torch's warning that one process saves and loads alone."""
    warnings.filterwarnings("ignore", message=_NO_GROUP, category=UserWarning)


class _Reader(FileSystemReader):
    """Reads the metadata without executing anything that it holds."""

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:  # noqa: ANN401 - as in torch
        with (Path(self.path) / METADATA).open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            msg = f"{METADATA} holds no metadata"
            raise pickle.UnpicklingError(msg)
        return metadata


class _Unpickler(pickle.Unpickler):
    _KNOWN = frozenset(
        (f"torch.distributed.checkpoint.{module}", name)
        for module, names in (
            (
                "metadata",
                (
                    "Metadata",
                    "MetadataIndex",
                    "TensorStorageMetadata",
                    "TensorProperties",
                    "ChunkStorageMetadata",
                    "BytesStorageMetadata",
                    "_MEM_FORMAT_ENCODING",
                ),
            ),
            ("filesystem", ("_StorageInfo",)),
        )
        for name in names
    ) | {("torch", "Size"), ("torch.serialization", "_get_layout")}

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as in pickle
        if (module, name) in self._KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        msg = f"{METADATA} names {module}.{name}, which no checkpoint does"
        raise pickle.UnpicklingError(msg)
