"""The model families, one row each."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from model_export.families.clip.family import CLIP
from model_export.families.family import Family, HuggingFaceKind, ModelConfig
from model_export.families.metaclip_2.family import METACLIP_2
from model_export.families.siglip.family import SIGLIP
from model_export.families.siglip.naflex import NAFLEX, NAFLEX_WITH_ASPECT

FAMILIES: Final[Mapping[str, Family[Any]]] = MappingProxyType({family.name: family for family in (CLIP, SIGLIP)})
"""By ``model_type``. Another family is another folder, and its row here."""

HUGGING_FACE_KINDS: Final[Mapping[str, HuggingFaceKind[Any]]] = MappingProxyType(
    {**FAMILIES, **{kind.name: kind for kind in (METACLIP_2, NAFLEX)}}
)
"""By ``model_type``: the families, and kinds that transformers alone publishes."""

KEEPING_ASPECT: Final[Mapping[str, HuggingFaceKind[Any]]] = MappingProxyType({NAFLEX.name: NAFLEX_WITH_ASPECT})
"""By ``model_type``: the same kind with pictures that keep their aspect."""

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
