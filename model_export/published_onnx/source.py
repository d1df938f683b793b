"""Reads a folder of published ONNX encoders, and checks each file before anything is computed. Needs no torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, JsonValue, PositiveInt

from model_export.bundles.writer import BundleSource
from model_export.checkpoints.model_source import TEMPLATES, SourceOptions, text_section
from model_export.checkpoints.naming import bundle_aliases, bundle_name
from model_export.checkpoints.preprocessing import image_section
from model_export.errors import SourceError
from model_export.families.family import Family
from model_export.families.table import FAMILIES
from model_export.files import checked, read_object
from model_export.published_onnx import layout
from model_export.published_onnx.graph_files import data_files, read_graph
from model_export.published_onnx.layout import IMAGE_GRAPH, TEXT_GRAPH, VARIANTS, Encoder
from model_export.published_onnx.scoring import read_scoring
from service.model.manifest import FileEntry, Precision, Provenance, TextSection

CONFIG: Final = "config.json"


@dataclass(frozen=True)
class OnnxOptions:
    """Facts that the user states because a source's files do not; none overrides a file.

    Attributes:
        source: name, id, licence, and a tokenizer for a source that carries none.
        logit_scale: factor of the cosines, such as 100: already exponentiated.
        logit_bias: added after it, in families whose scores have a bias.
    """

    source: SourceOptions = field(default_factory=SourceOptions)
    logit_scale: float | None = None
    logit_bias: float | None = None


@dataclass(frozen=True)
class OnnxSource(BundleSource):
    """Published encoders, one graph for images and one for texts; padding ``longest`` is still to be verified."""

    precision: Precision
    image_path: Path
    text_path: Path
    image_encoder: Encoder
    text_encoder: Encoder


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class _Text(_Section):
    max_position_embeddings: PositiveInt | None = None
    vocab_size: PositiveInt | None = None


class _Vision(_Section):
    image_size: PositiveInt | None = None
    hidden_size: PositiveInt | None = None


class _Config(_Section):
    """The fields of a ``config.json`` that are read; the graphs state the rest."""

    model_type: str
    projection_dim: PositiveInt | None = None
    text_config: _Text = _Text()
    vision_config: _Vision = _Vision()


def read_published(folder: Path, options: OnnxOptions | None = None, variant: str = "fp32") -> OnnxSource:
    """Read a folder in the split layout of optimum and transformers.js.

    Args:
        folder: holds ``onnx/``, ``config.json``, ``preprocessor_config.json`` and a tokenizer.
        variant: of the published graphs, one of `layout.VARIANTS`.

    Raises:
        SourceError: a file is missing, corrupt, or does not fit the others; the message names the file.
    """
    options = options or OnnxOptions()
    image_path, text_path = _paths(folder, variant)
    config_path = folder / CONFIG
    fields = read_object(config_path, hint="it states the kind of model; take it from the graphs' source")
    config = checked(_Config, {name: value for name, value in fields.items() if value is not None}, config_path)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise SourceError(f"{config_path}: model_type {config.model_type!r} is not known; {', '.join(FAMILIES)} are")
    size = config.vision_config.image_size or family.default.image.image_size
    image = image_section(folder, family=family, image_size=size)
    image_graph, text_graph = read_graph(image_path), read_graph(text_path)
    image_encoder = layout.image_encoder(image_graph, image_path, family.onnx, height=image.height, width=image.width)
    text_encoder = layout.text_encoder(text_graph, text_path, family.onnx)
    dim = _dim(image_encoder, text_encoder, config, text_path)
    files = [
        *(image_path, *data_files(image_graph, image_path)),
        *(text_path, *data_files(text_graph, text_path)),
    ]
    text, tokenizer = _text(folder, options.source, config, family, text_encoder)
    scoring, said = read_scoring(folder, family, logit_scale=options.logit_scale, logit_bias=options.logit_bias)
    return OnnxSource(
        name=bundle_name(folder, options.source),
        aliases=bundle_aliases(options.source),
        architecture=family.onnx.architecture,
        precision=VARIANTS[variant],
        dim=dim,
        image=image,
        text=text,
        scoring=scoring,
        templates=dict(TEMPLATES),
        tokenizer=tokenizer,
        provenance=_provenance(folder, files, options.source, {"variant": variant, "logit_scale": said}),
        image_path=image_path,
        text_path=text_path,
        image_encoder=image_encoder,
        text_encoder=text_encoder,
    )


def _paths(folder: Path, variant: str) -> tuple[Path, Path]:
    if variant not in VARIANTS:
        raise SourceError(f"unknown variant {variant!r}; the names are {', '.join(VARIANTS)}")
    paths = layout.graph_path(folder, IMAGE_GRAPH, variant), layout.graph_path(folder, TEXT_GRAPH, variant)
    if absent := [path for path in paths if not path.exists()]:
        there = ", ".join(layout.variants(folder)) or "none"
        raise SourceError(f"{absent[0]}: is missing; complete variants: {there}")
    return paths


def _dim(image: Encoder, text: Encoder, config: _Config, text_path: Path) -> int:
    if image.dim is not None and text.dim is not None and image.dim != text.dim:
        raise SourceError(
            f"{text_path}: gives vectors of {text.dim}, the image graph of {image.dim}; are both of one model?"
        )
    dim = image.dim or text.dim or config.projection_dim or config.vision_config.hidden_size
    if dim is None:
        raise SourceError(f"{text_path}: does not state the length of its vectors, and {CONFIG} has no projection_dim")
    return dim


def _text(
    folder: Path, options: SourceOptions, config: _Config, family: Family[Any], encoder: Encoder
) -> tuple[TextSection, bytes]:
    default = family.default.text
    tokens = family.onnx.read_tokenizer(folder, options.tokenizer, config.text_config.vocab_size or default.vocab_size)
    section = text_section(
        context_length=encoder.length or config.text_config.max_position_embeddings or default.context_length,
        pad_id=tokens.pad_id,
        end_of_text_id=tokens.end_of_text_id,
        fixed=family.padding == "fixed" or encoder.length is not None,
    )
    return section, tokens.content


def _provenance(folder: Path, files: list[Path], options: SourceOptions, recipe: Mapping[str, JsonValue]) -> Provenance:
    digests = {path.relative_to(folder).as_posix(): FileEntry.of(path).sha256 for path in files}
    joined = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return Provenance(
        source=options.source_id or folder.resolve().name,
        source_sha256=hashlib.sha256(joined.encode()).hexdigest(),
        licence=options.licence,
        recipe={**recipe, "graphs": dict(sorted(digests.items()))},
    )
