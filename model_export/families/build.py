"""Builds a module from a configuration.

Configurations need no torch, so it is imported only to build.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

from model_export.families.clip.config import ClipConfig
from model_export.families.siglip.config import SiglipConfig

if TYPE_CHECKING:
    from model_export.families.clip.model import ClipModel
    from model_export.families.siglip.model import SiglipModel


@overload
def build(config: ClipConfig | Mapping[str, Any]) -> ClipModel: ...


@overload
def build(config: SiglipConfig) -> SiglipModel: ...


def build(config: ClipConfig | SiglipConfig | Mapping[str, Any]) -> ClipModel | SiglipModel:
    """Build a model with freshly initialised weights.

    Args:
        config: a :class:`ClipConfig`, or its JSON form as a training run's ``config.json`` holds it; or a
            :class:`SiglipConfig`.

    Raises:
        pydantic.ValidationError: the configuration has an unknown key, or values that do not fit together.
    """
    from model_export.families.clip.model import ClipModel
    from model_export.families.siglip.model import SiglipModel

    if isinstance(config, SiglipConfig):
        return SiglipModel(config)
    return ClipModel(config if isinstance(config, ClipConfig) else ClipConfig.model_validate(config))
