"""MetaCLIP 2's row: CLIP's towers, trained on texts of all languages (Chuang et al. 2025)."""

from __future__ import annotations

from typing import Final

from model_export.families.clip.config import ClipConfig
from model_export.families.clip.family import CLIP
from model_export.families.family import HuggingFaceKind
from model_export.families.metaclip_2.hugging_face import HUGGING_FACE

METACLIP_2: Final[HuggingFaceKind[ClipConfig]] = HuggingFaceKind(
    name="metaclip_2",
    title="MetaCLIP 2",
    config=ClipConfig,
    build=CLIP.build,
    padding=CLIP.padding,
    has_bias=CLIP.has_bias,
    images=CLIP.images,
    hugging_face=HUGGING_FACE,
)
