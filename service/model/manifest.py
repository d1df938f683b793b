"""The schema of a bundle's manifest. A bundle is all that passes from `model_export` to `service`.

A bundle is a directory with two ONNX graphs, a tokenizer, template sets and `manifest.json`. The manifest states how
images and texts are prepared, how scores are computed, and the digest of every file. `load_bundle` refuses a bundle
that does not match, and names the file.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

SCHEMA_VERSION: Final = 1

MANIFEST: Final = "manifest.json"
IMAGE_ENCODER: Final = "image_encoder.onnx"
TEXT_ENCODER: Final = "text_encoder.onnx"
TOKENIZER: Final = "tokenizer.json"
TEMPLATES: Final = "templates.json"
REQUIRED_FILES: Final = (IMAGE_ENCODER, TEXT_ENCODER, TOKENIZER, TEMPLATES)

DEFAULT_TEMPLATES: Final = "default"
"""The template set that every bundle has."""

DEMO_BUNDLE: Final = Path(__file__).parents[1] / "bundles" / "demo"
"""The small trained bundle that is package data."""

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=128)]
Alias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/@:-]*$", max_length=256)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PositiveInt = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0)]
Rgb = tuple[float, float, float]
MAX_PATCHES: Final = 256
"""A picture's grid of patches is stated in bytes, less 1."""
Cosine = Annotated[float, Field(ge=-1, le=1.001)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageSection(_Section):
    """Preprocessing of a picture to the image encoder's input, uint8 `[batch, height, width, 3]`.

    `mean` and `std` are in units of 0..1 and informative only: the graph itself normalises.

    With `resize` `aspect` a picture keeps its aspect and becomes a grid of square patches, as many as fit a budget. The
    encoder's input then has a row for each patch, the patch's pixels from the upper left, line by line; patches are in
    the same order. `height` is the budget plus 1, `width` the pixels of a patch. The first row states the grid: its
    first pixel is the number of rows of patches minus 1, the number of columns minus 1, and 0.
    """

    height: PositiveInt
    width: PositiveInt
    resize: Literal["shortest", "squash", "aspect"]
    interpolation: Literal["bicubic", "bilinear", "lanczos"]
    crop: Literal["center", "none"]
    mean: Rgb
    std: Rgb

    @model_validator(mode="after")
    def _must_fill_the_input(self) -> Self:
        if self.resize == "shortest" and self.crop == "none":
            msg = "resize 'shortest' leaves a size that depends on the picture; it needs crop 'center'"
            raise ValueError(msg)
        if self.resize == "aspect":
            if self.crop != "none" or self.patch_size**2 != self.width:
                msg = "resize 'aspect' needs crop 'none' and a width of as many pixels as a square patch has"
                raise ValueError(msg)
            if not 1 <= self.patches <= MAX_PATCHES:
                msg = f"resize 'aspect' takes 1 to {MAX_PATCHES} patches, not {self.patches}"
                raise ValueError(msg)
        return self

    @property
    def patches(self) -> int:
        """Budget of patches, if `resize` is `aspect`."""
        return self.height - 1

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels, if `resize` is `aspect`."""
        return math.isqrt(self.width)


Cleaning = Literal["none", "clip"]
"""`clip`: as OpenAI's CLIP and open_clip clean texts."""


class TextSection(_Section):
    """Tokenisation of texts to the text encoder's input, int64 `[batch, length]`; lengths are in tokens.

    With padding `longest` the length is that of the longest text, at least `min_length`; with `fixed` it is always
    `max_length`, the encoder's context. `cleaning` is applied to a text before the tokenizer: see
    `service.model.text_cleaning`.
    """

    padding: Literal["longest", "fixed"]
    min_length: PositiveInt
    max_length: PositiveInt
    pad_id: TokenId
    end_of_text_id: TokenId
    canonicalization: Literal["tokenizer"]
    cleaning: Cleaning = "none"
    overflow: Literal["refuse"]

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Leave out a field that older manifests lack, so that their digests, the revisions, stay."""
        fields: dict[str, JsonValue] = serialise(self)
        if self.cleaning == "none":
            fields.pop("cleaning", None)
        return fields

    @model_validator(mode="after")
    def _lengths_must_be_ordered(self) -> Self:
        if self.min_length > self.max_length:
            msg = f"min_length {self.min_length} is above max_length {self.max_length}"
            raise ValueError(msg)
        return self


class SoftmaxScoring(_Section):
    """Scores compete: softmax over `logit_scale` (already exponentiated) times the cosines."""

    kind: Literal["softmax"] = "softmax"
    logit_scale: Annotated[float, Field(gt=0)]


class SigmoidScoring(_Section):
    """Scores stand alone: sigmoid of `logit_scale` (already exponentiated) · cosine + `logit_bias`."""

    kind: Literal["sigmoid"] = "sigmoid"
    logit_scale: Annotated[float, Field(gt=0)]
    logit_bias: float


Scoring = Annotated[SoftmaxScoring | SigmoidScoring, Field(discriminator="kind")]
Precision = Literal["fp32", "fp16", "int8", "int4", "fp16-stored"]
"""`fp16-stored`: the graph stores weights as fp16, casts them to fp32 and computes in fp32. `int4`: it stores weights
in 4 bits, in blocks with a scale each, and computes in fp16 or fp32."""


class FileEntry(_Section):
    """Digest and size of one file of the bundle."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]

    @classmethod
    def of(cls, path: Path) -> Self:
        """Measure a file. Raises OSError if it cannot be read."""
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return cls(sha256=digest, bytes=stream.tell())


class Parity(_Section):
    """Deviation of the graphs from the reference they were exported from."""

    reference: str
    max_abs_difference: Annotated[float, Field(ge=0)]
    min_cosine: Cosine


class Agreement(_Section):
    """Comparison of a reduced precision with its fp32 bundle, both run by the code that serves.

    `top1` is the share of images with the same best label; `data` names the images and labels.
    """

    data: str
    images: PositiveInt
    labels: PositiveInt
    top1: Annotated[float, Field(ge=0, le=1)]
    mean_image_cosine: Cosine
    min_image_cosine: Cosine
    mean_text_cosine: Cosine
    min_text_cosine: Cosine


class Provenance(_Section):
    """Origin of the weights; `data` has the digests of the curated data sets that they were trained on."""

    source: str
    source_sha256: Sha256 | None = None
    data: tuple[Sha256, ...] | None = None
    licence: str | None = None
    recipe: dict[str, JsonValue] | None = None
    card: str | None = None


class Manifest(_Section):
    """Describes a model to `service`.

    `revision` identifies everything that decides an answer, `text_revision` everything that decides a text's vector.
    Both are sha256 in hexadecimal over canonical JSON; `build` computes them.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Slug
    aliases: tuple[Alias, ...] = ()
    architecture: Annotated[str, Field(min_length=1)]
    dim: PositiveInt
    image: ImageSection
    text: TextSection
    scoring: Scoring
    precision: Precision
    files: dict[str, FileEntry]
    parity: Parity | None = None
    agreement: Agreement | None = None
    provenance: Provenance
    revision: Sha256
    text_revision: Sha256

    @model_validator(mode="after")
    def _must_list_every_required_file(self) -> Self:
        absent = [name for name in REQUIRED_FILES if name not in self.files]
        if absent:
            msg = f"files lacks {', '.join(absent)}"
            raise ValueError(msg)
        return self

    @classmethod
    def build(cls, **fields: Any) -> Self:  # noqa: ANN401 - validated
        """Create a manifest with both revisions filled in, from all other fields.

        Raises pydantic's ValidationError for an invalid value.
        """
        draft = cls(**fields, revision="0" * 64, text_revision="0" * 64)
        with_text = draft.model_copy(update={"text_revision": draft.compute_text_revision()})
        return with_text.model_copy(update={"revision": with_text.compute_revision()})

    def compute_revision(self) -> str:
        """Hash all but the revision itself and the informative `parity`, `agreement` and `provenance`."""
        return _digest(self.model_dump(mode="json", exclude={"revision", "parity", "agreement", "provenance"}))

    def compute_text_revision(self) -> str:
        """Hash all that decides a text's vector: text graph with its external data, tokenizer, text section."""
        files: dict[str, JsonValue] = {
            name: entry.model_dump(mode="json")
            for name, entry in self.files.items()
            if name == TOKENIZER or name.startswith(TEXT_ENCODER)
        }
        return _digest({"files": files, "text": self.text.model_dump(mode="json")})

    def to_json(self) -> str:
        """Return canonical JSON, equal for equal manifests: sorted, indented, with a final newline."""
        fields = self.model_dump(mode="json")
        return json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _digest(fields: dict[str, JsonValue]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
