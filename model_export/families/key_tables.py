"""Tables that map a public checkpoint's names of parameters to ours. torch is imported when one is applied.

In a table's names ``#`` stands for a number, ``*`` for ``weight`` or ``bias``, and ``@`` for a batch norm's tensors.
A row with several names on the right splits the tensor along its first dimension, in equal parts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from model_export.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor

Rows = Mapping[str, tuple[str, ...]]

_WILDCARDS: Final = {
    "#": r"\d+",
    "*": "weight|bias",
    "@": "weight|bias|running_mean|running_var|num_batches_tracked",
}

_UNUSED: Final = ".num_batches_tracked"
"""Counted in training, never read again, and absent from older checkpoints."""


class KeyTable:
    """The names of one public layout, each with ours."""

    def __init__(self, rows: Rows) -> None:
        self._to_ours = [(_pattern(theirs), ours) for theirs, ours in rows.items()]
        self._to_theirs = [(_pattern(name), theirs) for theirs, ours in rows.items() for name in ours]

    def convert(self, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """Rename weights, and split the fused ones.

        Args:
            weights: by the file's names.
            wanted: the model's state dict; only its names and shapes are read.

        Returns:
            The weights by our names, in their own dtype.

        Raises:
            SourceError: a weight is unknown, missing, mis-shaped or not finite; the message has the file's name of it.
        """
        import torch

        origins = {name: ours for name in weights if (ours := self._ours(name)) and set(ours) <= wanted.keys()}
        _refuse(path, "has unknown", weights.keys() - origins.keys())
        given = {name for ours in origins.values() for name in ours}
        missing = {name for name in wanted.keys() - given if not name.endswith(_UNUSED)}
        _refuse(path, "lacks", {self._theirs(name) for name in missing})
        converted = {name: torch.zeros_like(wanted[name], device="cpu") for name in wanted if name.endswith(_UNUSED)}
        for name, ours in origins.items():
            tensor = weights[name]
            shape = list(wanted[ours[0]].shape)
            if len(ours) > 1:
                shape[0] *= len(ours)
            if list(tensor.shape) != shape:
                raise SourceError(f"{path}: {name} has shape {list(tensor.shape)}, the model has {shape}")
            if not torch.isfinite(tensor).all():
                raise SourceError(f"{path}: {name} holds NaN or infinity")
            converted.update(zip(ours, tensor.chunk(len(ours)) if len(ours) > 1 else (tensor,), strict=True))
        return converted

    def _ours(self, name: str) -> tuple[str, ...]:
        for pattern, templates in self._to_ours:
            if found := pattern.fullmatch(name):
                return tuple(_filled(template, found) for template in templates)
        return ()

    def _theirs(self, name: str) -> str:
        for pattern, template in self._to_theirs:
            if found := pattern.fullmatch(name):
                return _filled(template, found)
        return name


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("".join(f"({_WILDCARDS[c]})" if c in _WILDCARDS else re.escape(c) for c in template))


def _filled(template: str, found: re.Match[str]) -> str:
    values = iter(found.groups())
    return "".join(next(values) if c in _WILDCARDS else c for c in template)


def _refuse(path: Path, what: str, names: set[str]) -> None:
    if names:
        raise SourceError(f"{path}: {what} {shown(names)}")


def shown(names: Collection[str]) -> str:
    """Return the first three names in alphabetical order, and the number of the others."""
    first = ", ".join(sorted(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


def under(prefix_theirs: str, prefix_ours: str, rows: Rows) -> Rows:
    """Return the rows with a prefix before the names of each side."""
    return {prefix_theirs + theirs: tuple(prefix_ours + name for name in ours) for theirs, ours in rows.items()}


def same(*names: str) -> Rows:
    """Return rows for names that are ours too."""
    return {name: (name,) for name in names}


RESBLOCK: Final[Rows] = {
    **same("ln_1.*", "attn.out_proj.*", "ln_2.*", "mlp.c_fc.*", "mlp.c_proj.*"),
    "attn.in_proj_*": ("attn.q_proj.*", "attn.k_proj.*", "attn.v_proj.*"),
}
"""One block of an OpenAI or open_clip transformer."""

_SCALARS: Final = ("logit_scale", "logit_bias")


def with_flat_scalars(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the scale and the bias of shape []; some programs write [1]."""
    return {
        name: tensor.reshape(()) if name in _SCALARS and tensor.numel() == 1 else tensor
        for name, tensor in weights.items()
    }
