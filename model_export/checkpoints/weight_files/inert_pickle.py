"""Reads the pickle of a TorchScript archive without running any of it.

A pickle is a program for a small stack machine, two of whose instructions call named functions. This is that machine
with a closed list: the instructions that torch's own writer uses (torch/csrc/jit/serialization/pickler.h), and nine
names that rebuild tensors and plain containers. Those are implemented here; no name is looked up or called. A script
module becomes an inert `ScriptObject`. Any other name or instruction ends the reading.
"""

import pickletools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from model_export.errors import SourceError, first_line

STORAGES: Final[Mapping[str, torch.dtype]] = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}

SCRIPT_CLASSES: Final = "__torch__."
"""Prefix of the classes of TorchScript's modules."""

MAX_DIMENSIONS: Final = 8

_LONGEST: Final = 200
"""Characters of a message about a pickle; a name in it may have millions."""

Storage = Callable[[str, torch.dtype, int], Tensor]
"""Returns a storage's elements, one-dimensional, by its key, dtype and number of elements."""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names. It is never looked up."""

    full: str


@dataclass(eq=False)
class ScriptObject:
    """A script module: its attributes by name, without any behaviour."""

    attributes: dict[Any, object] = field(default_factory=dict)


class _WrongError(Exception):
    """The pickle holds what torch's writer never writes."""


def read_pickle(content: bytes, storage: Storage, path: Path) -> object:
    """Build the objects that a pickle describes.

    Args:
        storage: returns the elements of a storage that the pickle refers to.

    Returns:
        Script modules as `ScriptObject`, tensors, and Python's numbers, strings, tuples, lists and dicts.

    Raises:
        SourceError: the pickle uses a name or instruction that is not on the list, or it is damaged.
    """
    machine = _Machine(storage)
    try:
        for instruction, argument in instructions(content):
            machine.step(instruction, argument)
        return machine.stack.pop()
    except _WrongError as exc:
        raise SourceError(
            f"{path}: was refused: its pickle uses {_shown(exc)}, which could run code; none of it was run"
        ) from exc
    except (IndexError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as exc:
        # The pickle pops from an empty stack, or passes values of other types or shapes.
        raise SourceError(f"{path}: its pickle is damaged ({_shown(exc)}); download it again") from exc


def instructions(pickle: bytes | BytesIO) -> Iterator[tuple[str, object]]:
    """Yield the instructions of a pickle with their arguments, by pickletools' names, without executing them.

    Raises:
        ValueError: the pickle is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that no pickle should have
        for opcode, argument, _ in pickletools.genops(pickle):
            yield opcode.name, argument


class _Machine:
    def __init__(self, storage: Storage) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.storage = storage

    def step(self, instruction: str, argument: object) -> None:
        act = _INSTRUCTIONS.get(instruction)
        if act is None:
            raise _WrongError(f"the instruction {instruction}")
        act(self, argument)

    def since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken

    def take(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError("nothing is left to take")
        taken = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return taken

    def name(self, argument: str) -> None:
        full = argument.replace(" ", ".", 1)
        if full not in _CALLS and full not in STORAGES and not full.startswith(SCRIPT_CLASSES):
            raise _WrongError(full)
        self.stack.append(Name(full))

    def call(self, _: object) -> None:
        function, arguments = self.take(2)
        if not isinstance(function, Name) or function.full not in _CALLS:
            raise _WrongError(f"a call of {_kind(function)}")
        if not isinstance(arguments, tuple):
            raise TypeError("a call without a tuple of arguments")
        self.stack.append(_CALLS[function.full](*arguments))

    def new_object(self, _: object) -> None:
        kind, arguments = self.take(2)
        if not isinstance(kind, Name) or not kind.full.startswith(SCRIPT_CLASSES) or arguments != ():
            raise _WrongError(f"an object of {_kind(kind)}")
        self.stack.append(ScriptObject())

    def fill_object(self, _: object) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, ScriptObject) or not isinstance(state, dict):
            raise _WrongError(f"a state for {_kind(target)}")
        target.attributes = state

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise TypeError("items for a value that is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):  # the hash of nested tuples can take forever
                raise TypeError(f"a key that is {_kind(key)}")
            target[key] = value

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError("values for a value that is no list")
        target.extend(values)

    def storage_of(self, _: object) -> None:
        what, kind, key, _device, count = self.stack.pop()
        if what != "storage" or not isinstance(kind, Name) or not isinstance(key, str) or type(count) is not int:
            raise TypeError("a storage without type, key and size")
        self.stack.append(self.storage(key, STORAGES[kind.full], count))


def _push(machine: _Machine, value: object) -> None:
    machine.stack.append(value)


_INSTRUCTIONS: Final[Mapping[str, Callable[[_Machine, Any], None]]] = {
    "PROTO": lambda _machine, _version: None,
    "STOP": lambda _machine, _: None,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "BINUNICODE8"), _push),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.stack.append(machine.take(1)),
    "TUPLE2": lambda machine, _: machine.stack.append(machine.take(2)),
    "TUPLE3": lambda machine, _: machine.stack.append(machine.take(3)),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.take(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    **dict.fromkeys(
        ("BINPUT", "LONG_BINPUT"), lambda machine, index: machine.memo.__setitem__(index, machine.stack[-1])
    ),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.stack.append(machine.memo[index])),
    "GLOBAL": _Machine.name,
    "BINPERSID": _Machine.storage_of,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.fill_object,
}


def _tensor(elements: object, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    if not isinstance(elements, Tensor) or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise TypeError("a tensor without storage, size and strides")
    if not len(size) == len(stride) <= MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(size)} dimensions")
    # A weight never repeats its elements; one that does could grow without bound when it is copied.
    if prod(size) > elements.numel():
        raise ValueError(f"a tensor of shape {list(size)} over {elements.numel()} elements")
    return elements.as_strided(size, stride, offset)


def _empty_dict() -> dict[Any, object]:
    return {}


def _list(values: list[object]) -> list[object]:
    return list(values)


def _first(value: object, *_: object) -> object:
    return value


_CALLS: Final[Mapping[str, Callable[..., object]]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "collections.OrderedDict": _empty_dict,
    "torch.device": _first,
    "torch.jit._pickle.build_intlist": _list,
    "torch.jit._pickle.build_doublelist": _list,
    "torch.jit._pickle.build_boollist": _list,
    "torch.jit._pickle.build_tensorlist": _list,
    "torch.jit._pickle.restore_type_tag": _first,
}


def _kind(value: object) -> str:
    return value.full if isinstance(value, Name) else f"a {type(value).__name__}"


def _shown(exc: Exception) -> str:
    return first_line(exc)[:_LONGEST]
