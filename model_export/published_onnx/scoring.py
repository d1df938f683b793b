"""Finds the scoring of published encoders: stated by their full graph, or by the user."""

import math
from pathlib import Path
from typing import Any, Final

from model_export.errors import SourceError
from model_export.families.family import Family
from model_export.published_onnx.layout import FULL_GRAPH, VARIANTS, graph_path
from model_export.published_onnx.logit_scale import LOGITS, Scale, read_scale
from service.model.manifest import SigmoidScoring, SoftmaxScoring

STATED: Final = "stated by the user"

_TOLERANCE: Final = 1e-3
"""Relative difference allowed between a statement and the graph: people write 100 for 99.99."""


def read_scoring(
    folder: Path, family: Family[Any], *, logit_scale: float | None, logit_bias: float | None
) -> tuple[SoftmaxScoring | SigmoidScoring, str]:
    """Find the logit scale, and the bias if the scores have one.

    Args:
        logit_scale: stated by the user, already exponentiated; it counts only if no full graph can be read.
        logit_bias: likewise.

    Returns:
        The scoring, and its origin: a file of the source, or `STATED`.

    Raises:
        SourceError: the scale is stated nowhere, or the user contradicts the full graph.
    """
    stated = None if logit_scale is None else Scale(logit_scale, logit_bias)
    full = [path for variant in VARIANTS if (path := graph_path(folder, FULL_GRAPH, variant)).exists()]
    found, said = _read(full[0], family, stated) if full else (None, STATED)
    if found is None:
        found = stated
    elif stated is not None and not _same(stated, found):
        raise SourceError(f"{full[0]}: has {_text(found)}, stated is {_text(stated)}; leave {_flags(family)} out")
    if found is None:
        raise SourceError(
            f"{graph_path(folder, FULL_GRAPH, 'fp32')}: is missing, and only the full graph knows the logit scale; "
            f"download it too, or state {_flags(family)} (config.json only has its value before training)"
        )
    if found.bias is None and family.has_bias:
        raise SourceError(f"{folder}: scores of {family.onnx.architecture} need a bias too; state {_flags(family)}")
    if not math.isfinite(found.scale) or found.scale <= 0 or not math.isfinite(found.bias or 0.0):
        raise SourceError(f"{folder}: {_text(found)} ({said}) is not a scale; it must be above 0, such as 100")
    if found.bias is None:
        return SoftmaxScoring(logit_scale=found.scale), said
    return SigmoidScoring(logit_scale=found.scale, logit_bias=found.bias), said


def _read(path: Path, family: Family[Any], stated: Scale | None) -> tuple[Scale | None, str]:
    """Read a full graph; if it does not tell, the user's statement counts."""
    try:
        found = read_scale(path)
        if found.bias is None and family.has_bias:
            raise SourceError(f"{path}: adds no bias to {LOGITS[0]}")  # noqa: TRY301 - the two are handled alike
    except SourceError as exc:
        if stated is None:
            raise SourceError(f"{exc}; state {_flags(family)}") from exc
        return None, STATED
    return found, f"{path.parent.name}/{path.name}"


def _flags(family: Family[Any]) -> str:
    return "--logit-scale and --logit-bias" if family.has_bias else "--logit-scale"


def _same(stated: Scale, found: Scale) -> bool:
    pairs = ((stated.scale, found.scale), (stated.bias or 0.0, found.bias or 0.0))
    return all(math.isclose(one, other, rel_tol=_TOLERANCE) for one, other in pairs)


def _text(scale: Scale) -> str:
    bias = "" if scale.bias is None else f" with bias {scale.bias:.6g}"
    return f"logit scale {scale.scale:.6g}{bias}"
