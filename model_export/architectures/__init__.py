"""Model architectures: the modules, and :func:`build`, which makes one from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model_export.architectures.clip import ClipModel
from model_export.architectures.config import ClipConfig

__all__ = ["ClipConfig", "ClipModel", "build"]


def build(config: ClipConfig | Mapping[str, Any]) -> ClipModel:
    """Build a CLIP model with freshly initialised weights.

    Args:
        config: a :class:`ClipConfig`, or its JSON form as a training run's ``config.json`` holds it.

    Raises:
        pydantic.ValidationError: the configuration has an unknown key, or values that do not fit together.
    """
    return ClipModel(config if isinstance(config, ClipConfig) else ClipConfig.model_validate(config))
