"""Imports ``open_clip_torch``, of which only the modules of towers are used: no weights, no downloads."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Final

import torch

_TORCHVISION: Final = "torchvision"

_OPERATORS: Final = ("nms", "qnms")
"""Of torchvision, whose names its import needs."""

_SIGNATURE: Final = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_kept: list[torch.library.Library] = []
"""Names of operators are forgotten with the object that defines them."""


def open_clip_models() -> ModuleType:
    """Return ``open_clip.model``.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    import_torchvision()
    return importlib.import_module("open_clip.model")


def import_torchvision() -> None:
    """Import torchvision, also where its operators are compiled for another build of PyTorch.

    open_clip and timm import it for transforms, which are plain Python. Its compiled operators, for boxes, belong to
    one build of PyTorch: those of a CUDA build cannot be loaded beside a CPU build, and then the import ends with an
    error, because two operators have no names.
    """
    try:
        importlib.import_module(_TORCHVISION)
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == _TORCHVISION]:
            del sys.modules[name]
        library = torch.library.Library(_TORCHVISION, "DEF")  # type: ignore[no-untyped-call]
        for operator in _OPERATORS:
            library.define(operator + _SIGNATURE)  # type: ignore[no-untyped-call]
        _kept.append(library)
        importlib.import_module(_TORCHVISION)
