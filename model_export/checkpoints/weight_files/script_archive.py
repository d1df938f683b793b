"""Reads the weights of a TorchScript archive, such as those OpenAI published, but never its code.

An archive is a zip file: ``data.pkl`` describes a tree of modules, ``data/0``, ``data/1``, … hold the numbers, and
``code/`` the program. ``torch.load(weights_only=True)`` refuses it, and ``torch.jit.load`` would compile the program.
"""

from pathlib import Path

import torch
from torch import Tensor

from model_export.checkpoints.weight_files.inert_pickle import ScriptObject, read_pickle
from model_export.checkpoints.weight_files.zip_records import MAX_PICKLE, ZipRecords
from model_export.errors import SourceError

MAX_DEPTH = 32
"""Modules inside modules; CLIP has seven."""

MAX_ATTRIBUTES = 1_000_000
"""Of all modules. A hostile tree could repeat one module until its names fill the memory."""

MAX_NAME = 256


def read_script_archive(path: Path) -> dict[str, Tensor]:
    """Read every tensor of an archive, in the dtype it was saved in, on the CPU.

    Returns:
        Tensors by their full names, as ``visual.conv1.weight``.

    Raises:
        SourceError: the file is truncated or damaged, or its pickle uses names that only code needs.
    """
    with ZipRecords(path) as records:
        if "byteorder" in records and records.read("byteorder", limit=64) != b"little":
            raise SourceError(f"{path}: was written on a big-endian machine; save it again on another")
        storages: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in storages:
                storages[key] = _storage(records, path, key, dtype, count)
            if (storages[key].dtype, storages[key].numel()) != (dtype, count):
                raise SourceError(f"{path}: uses its record data/{key} with two types; download it again")
            return storages[key]

        content = read_pickle(bytes(records.read("data.pkl", limit=MAX_PICKLE)), storage, path)
    if not isinstance(content, ScriptObject):
        raise SourceError(f"{path}: holds no module")
    return _tensors(content, path)


def _storage(records: ZipRecords, path: Path, key: str, dtype: torch.dtype, count: int) -> Tensor:
    record = f"data/{key}"
    if records.size(record) != count * dtype.itemsize:
        raise SourceError(f"{path}: its record {record} has {records.size(record)} bytes instead of {count} {dtype}")
    if count == 0:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(records.read(record), dtype=dtype)


def _tensors(root: ScriptObject, path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    waiting: list[tuple[tuple[str, ...], ScriptObject]] = [((), root)]
    seen = 0
    while waiting:
        place, module = waiting.pop()
        seen += len(module.attributes)
        if len(place) > MAX_DEPTH or seen > MAX_ATTRIBUTES:
            raise SourceError(f"{path}: its modules are nested too deep")
        for name, value in module.attributes.items():
            if not isinstance(name, str) or len(name) > MAX_NAME:
                raise SourceError(f"{path}: one of its modules has an attribute without a proper name")
            if isinstance(value, ScriptObject):
                waiting.append(((*place, name), value))
            elif isinstance(value, Tensor):
                found[".".join((*place, name))] = value
    return found
