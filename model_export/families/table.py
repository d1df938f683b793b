"""The model families, one row each."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from model_export.families.clip.family import CLIP
from model_export.families.family import Family, ModelConfig
from model_export.families.siglip.family import SIGLIP

FAMILIES: Final[Mapping[str, Family[Any]]] = MappingProxyType({family.name: family for family in (CLIP, SIGLIP)})
"""By ``model_type``. Another family is another folder, and its row here."""

TITLES: Final = " and ".join(family.title for family in FAMILIES.values())
"""For messages."""


def family_of(config: ModelConfig) -> Family[Any]:
    """Return the family of a configuration.

    Raises:
        LookupError: the configuration's class is in no row.
    """
    for family in FAMILIES.values():
        if isinstance(config, family.config):
            return family
    raise LookupError(f"{type(config).__name__} is of no model family")
