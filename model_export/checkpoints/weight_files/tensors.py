"""Reads tensors by name from a weights file, without executing anything in it.

The first bytes decide the format, not the name: safetensors; a zip file of ``torch.save``, read with
``weights_only=True``; one of ``torch.jit.save``, which that refuses and `script_archive` reads; or a pickle of torch
before 1.6, read with ``weights_only=True`` too.
"""

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from model_export.checkpoints.layouts import WeightsFormat, weights_format
from model_export.checkpoints.weight_files.inert_pickle import instructions
from model_export.checkpoints.weight_files.script_archive import read_script_archive
from model_export.checkpoints.weight_files.zip_records import MAX_PICKLE, ZipRecords
from model_export.errors import SourceError, first_line

SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin")
"""Suffixes of published weights, the safest first."""

WRAPPERS: Final = ("module.", "_orig_mod.")
"""Prefixes that ``DistributedDataParallel`` and ``torch.compile`` add to every name."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a weights file, in the dtype it was saved in, on the CPU.

    A training checkpoint's ``state_dict`` is unwrapped, and wrappers' prefixes are removed. Tensors may be mapped from
    the file, which must not change while they are in use.

    Raises:
        SourceError: the file is missing, no weights file, truncated, holds other values than tensors, or wants to run
            code.
    """
    kind = weights_format(path)
    if kind is None:
        raise SourceError(f"{path}: is no weights file, neither safetensors nor torch's; {_advice(path)}")
    return _unwrapped(_READERS[kind](path), path)


def is_script_archive(path: Path) -> bool:
    """Return whether a file is a TorchScript archive; False if it cannot be read."""
    try:
        if weights_format(path) is not WeightsFormat.ZIP:
            return False
        with ZipRecords(path) as records:
            return records.is_script
    except SourceError:
        return False


def peek_names(path: Path) -> frozenset[str]:
    """Return the names in a weights file without reading its tensors; none if they cannot be read.

    They are the tensors' full names; of a TorchScript archive, which stores names in parts, all parts.
    """
    try:
        kind = weights_format(path)
        names = _PEEKERS[kind](path) if kind else []
    except (SourceError, OSError, ValueError, RecursionError):
        return frozenset()
    return frozenset(_bare(name) for name in names)


def _header_names(path: Path) -> list[str]:
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return list(header) if isinstance(header, dict) else []


def _zip_names(path: Path) -> list[str]:
    with ZipRecords(path) as records:
        return _strings(bytes(records.read("data.pkl", limit=MAX_PICKLE)))


def _pickle_names(path: Path) -> list[str]:
    with path.open("rb") as stream:
        start = BytesIO(stream.read(MAX_PICKLE))
    # Three small pickles come before the weights: a magic number, the protocol, the machine.
    return [name for _ in range(4) for name in _strings(start)]


def _strings(pickle: bytes | BytesIO) -> list[str]:
    return [argument for _, argument in instructions(pickle) if isinstance(argument, str)]


_PEEKERS: Final[Mapping[WeightsFormat, Callable[[Path], list[str]]]] = {
    WeightsFormat.SAFETENSORS: _header_names,
    WeightsFormat.ZIP: _zip_names,
    WeightsFormat.PICKLE: _pickle_names,
}


def _bare(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except Exception as exc:  # SafetensorError, but also torch's errors about sizes and dtypes
        raise SourceError(f"{path}: is not a readable safetensors file ({first_line(exc)}); download it again") from exc


def _read_zip(path: Path) -> object:
    with ZipRecords(path) as records:
        if records.is_script:
            return read_script_archive(path)
        records.require_stored()
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as exc:  # the library raises nearly everything
        try:
            unsafe = sorted(get_unsafe_globals_in_checkpoint(path))
        except Exception:  # noqa: BLE001 - the first error is the one to report
            unsafe = []
        if unsafe:
            raise SourceError(
                f"{path}: was refused: its pickle uses {', '.join(unsafe[:3])}, which could run code; none of it was "
                "run; save the weights alone, best as safetensors"
            ) from exc
        raise _unreadable(path, exc) from exc


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # the library raises nearly everything
        raise _unreadable(path, exc) from exc


_READERS: Final[Mapping[WeightsFormat, Callable[[Path], object]]] = {
    WeightsFormat.SAFETENSORS: _read_safetensors,
    WeightsFormat.ZIP: _read_zip,
    WeightsFormat.PICKLE: _read_pickle,
}


def _unreadable(path: Path, exc: Exception) -> SourceError:
    return SourceError(
        f"{path}: is damaged, or holds more than tensors, which could run code; none of it was run; download it again, "
        f"or save the weights alone ({first_line(exc)})"
    )


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise SourceError(f"{path}: holds no weights by name")
    for wrapper in WRAPPERS:
        if all(isinstance(name, str) and name.startswith(wrapper) for name in content):
            content = {name.removeprefix(wrapper): value for name, value in content.items()}
    return {str(name): _plain(value, str(name), path) for name, value in content.items()}


def _plain(value: object, name: str, path: Path) -> Tensor:
    if type(value) not in {Tensor, nn.Parameter} or not isinstance(value, Tensor):
        raise SourceError(f"{path}: {name} is not a tensor but {type(value).__name__}")
    value = value.detach()
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        raise SourceError(f"{path}: {name} is not a plain tensor (sparse, quantised or without data)")
    # A weight never repeats its elements; one that does could grow without bound when it is copied.
    if value.numel() * value.itemsize > value.untyped_storage().nbytes():
        raise SourceError(f"{path}: {name} has shape {list(value.shape)}, more than its stored numbers fill")
    return value


def _advice(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: run `git lfs pull`"
    return "download it again" if start else "it is empty"
