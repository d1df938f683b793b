"""Published families of image–text models: how each is read, or why it is not. `docs/models.md` has the same table.

Licences are those of the best-known weights, as their cards or repositories say; a bundle's manifest has the card's
own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

NON_COMMERCIAL: Final = re.compile(r"(^|-)nc(-|$)|amlr|research|non-?commercial", re.IGNORECASE)
"""In the name of a licence that forbids commercial use."""


@dataclass(frozen=True)
class Read:
    """A family that is read.

    Attributes:
        layouts: in which it is published and read.
        tokens: of texts.
        scoring: of pairs.
        pixels: how a picture becomes a square.
        test: that compares it with its reference, below ``tests/model_export``.
    """

    name: str
    layouts: str
    tokens: str
    scoring: str
    pixels: str
    licence: str
    test: str


@dataclass(frozen=True)
class Refused:
    """A family that is not read.

    Attributes:
        pattern: a regular expression for the hub ids of its models, in lower case.
        reason: and what is read instead.
    """

    name: str
    pattern: str
    licence: str
    reason: str


_HF: Final = "checkpoints/test_hugging_face.py"
_OPEN_CLIP: Final = "families/test_open_clip_torch.py"
_MANY: Final = "families/test_multilingual.py"

READ: Final = (
    Read("CLIP", "OpenAI, Hugging Face, open_clip, ONNX", "CLIP", "softmax", "crop", "mit", _HF),
    Read("MetaCLIP", "Hugging Face, open_clip", "CLIP", "softmax", "crop", "cc-by-nc-4.0", _HF),
    Read("MetaCLIP 2", "Hugging Face, open_clip", "XLM-V", "softmax", "crop", "cc-by-nc-4.0", _MANY),
    Read("SigLIP", "Hugging Face, open_clip, ONNX", "SentencePiece", "sigmoid", "squash", "apache-2.0", _HF),
    Read(
        "SigLIP 2", "Hugging Face, open_clip", "Gemma", "sigmoid", "squash", "apache-2.0", "checkpoints/test_siglip2.py"
    ),
    Read(
        "SigLIP 2 NaFlex",
        "Hugging Face",
        "Gemma",
        "sigmoid",
        "squash, or aspect kept",
        "apache-2.0",
        "families/test_naflex.py",
    ),
    Read("clip-ViT-B-32-multilingual-v1", "sentence-transformers", "BERT", "softmax", "crop", "apache-2.0", _MANY),
    Read("MobileCLIP, MobileCLIP2", "open_clip", "CLIP", "softmax", "crop", "apple-amlr", _OPEN_CLIP),
    Read("PE-Core", "open_clip", "CLIP", "softmax", "squash", "apache-2.0", _OPEN_CLIP),
    Read("ConvNeXt, CoCa", "open_clip", "CLIP", "softmax", "crop", "mit", _OPEN_CLIP),
    Read("EVA01, EVA02, ViTamin", "open_clip", "CLIP", "softmax", "crop", "mit", _OPEN_CLIP),
    Read("CLIPA", "open_clip", "BERT", "softmax", "squash", "apache-2.0", _OPEN_CLIP),
    Read("XLM-RoBERTa, mT5 in open_clip", "open_clip", "SentencePiece", "softmax", "crop", "mit", _OPEN_CLIP),
    Read("NLLB-CLIP", "open_clip", "NLLB", "either", "crop, squash", "cc-by-nc-4.0", _OPEN_CLIP),
    Read("BiomedCLIP", "open_clip", "BERT", "softmax", "crop", "mit", _OPEN_CLIP),
)

_INSTEAD: Final = (
    "for labels in other languages than English facebook/metaclip-2-worldwide-huge-quickgelu and "
    "google/siglip2-base-patch16-224 are read"
)

_OWN_CODE: Final = "its towers are code of the repository, which is never run"

REFUSED: Final = (
    Refused("Chinese-CLIP", "chinese-clip", "mit (code)", f"its text tower is a BERT beside CLIP's; {_INSTEAD}"),
    Refused(
        "AltCLIP", "altclip", "creativeml-openrail-m", f"its text tower is an XLM-RoBERTa beside CLIP's; {_INSTEAD}"
    ),
    Refused(
        "M-CLIP",
        "m-clip/",
        "mit (code)",
        f"its text and image towers are in two repositories of two formats; {_INSTEAD}",
    ),
    Refused("jina-clip v1", "jina-clip-v1", "apache-2.0", _OWN_CODE),
    Refused("jina-clip v2", "jina-clip-v2", "cc-by-nc-4.0", _OWN_CODE),
    Refused(
        "nomic-embed-vision",
        "nomic-embed-vision",
        "apache-2.0 (v1.5)",
        "it and nomic-embed-text are one model in two repositories, whose towers are code of them, which is never run",
    ),
    Refused(
        "TIPS v2",
        "/tips",
        "apache-2.0 (code), cc-by-4.0",
        "its towers are transformers' `Tipsv2Model`, an image tower with two class tokens and a text tower that takes "
        "the mean of a text, which have no modules here",
    ),
    Refused("FG-CLIP 2", "fg-clip", "apache-2.0", _OWN_CODE),
    Refused(
        "Immich's graphs",
        "immich-app/",
        "of the model",
        "its graphs take a batch of one picture; the model that they were made from is read from its weights",
    ),
    Refused(
        "vision-language embedders (Qwen3-VL-Embedding, e5-v)",
        "qwen3-vl-embedding|/e5-v$",
        "of the model",
        "a language model that sees pictures needs other machinery, and is out of scope",
    ),
)


def refusal(model_id: str) -> str | None:
    """Return the reason why a model of the hub is not read, by its name; None if no name is known."""
    name = model_id.partition("@")[0].lower()
    found = next((each for each in REFUSED if re.search(each.pattern, name)), None)
    return None if found is None else f"no {found.name} is read: {found.reason}"


def forbids_commerce(licence: str | None) -> bool:
    """Return whether a licence's name says that its weights may not be used commercially."""
    return licence is not None and NON_COMMERCIAL.search(licence) is not None
