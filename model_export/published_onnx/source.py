"""A folder with published ONNX encoders, read and checked file by file before anything is computed. No torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, JsonValue, PositiveInt

from model_export.checkpoints.json_files import checked, read_object
from model_export.checkpoints.layouts import has_onnx_towers
from model_export.checkpoints.model_source import TEMPLATES, SourceOptions, text_section
from model_export.checkpoints.naming import bundle_aliases, bundle_name
from model_export.checkpoints.preprocessing import image_section
from model_export.errors import SourceError
from model_export.families.clip.bpe import END_OF_TEXT
from model_export.families.clip.tokenizer import TokenizerSettings, open_tokenizer
from model_export.families.siglip.tokenizer import read_siglip_tokenizer
from model_export.published_onnx import layout
from model_export.published_onnx.graph_files import data_files, read_graph
from model_export.published_onnx.layout import FAMILIES, IMAGE_GRAPH, TEXT_GRAPH, VARIANTS, Encoder, Family
from model_export.published_onnx.scoring import read_scoring
from service.model.manifest import (
    FileEntry,
    ImageSection,
    Precision,
    Provenance,
    SigmoidScoring,
    SoftmaxScoring,
    TextSection,
)

CONFIG: Final = "config.json"


@dataclass(frozen=True)
class OnnxOptions:
    """What the user says of a source because its files cannot; none overrides what a file says.

    Attributes:
        source: name, id, licence, and a tokenizer for a source that carries none.
        logit_scale: what cosines are multiplied by, such as 100: already exponentiated.
        logit_bias: what is added to them then; SigLIP's alone.
    """

    source: SourceOptions = field(default_factory=SourceOptions)
    logit_scale: float | None = None
    logit_bias: float | None = None


@dataclass(frozen=True)
class OnnxSource:
    """Published encoders that passed every check.

    Attributes:
        name: the bundle's name, a slug.
        aliases: other names the service answers to, such as a hub id.
        architecture: for people, as ``clip/vit``.
        precision: what the graphs compute in.
        dim: of the joint space.
        image: how a picture is prepared; mean and std go into the graph.
        text: how a text is prepared; with padding ``longest`` still to be tried.
        scoring: how cosines become scores, the scale already exponentiated.
        templates: named prompt-template sets, one of them ``default``.
        tokenizer: the bytes of a ``tokenizer.json`` that neither pads nor truncates and adds the special tokens.
        provenance: source, digest of the graphs, licence.
        image_path: the image graph.
        text_path: the text graph.
        image_encoder: what the image graph takes and gives.
        text_encoder: what the text graph takes and gives.
    """

    name: str
    aliases: tuple[str, ...]
    architecture: str
    precision: Precision
    dim: int
    image: ImageSection
    text: TextSection
    scoring: SoftmaxScoring | SigmoidScoring
    templates: dict[str, tuple[str, ...]]
    tokenizer: bytes
    provenance: Provenance
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
    """What is needed of a ``config.json``; the graphs say the rest themselves."""

    model_type: str
    projection_dim: PositiveInt | None = None
    text_config: _Text = _Text()
    vision_config: _Vision = _Vision()


def recognises(folder: Path) -> bool:
    """Tell from names alone whether a folder holds both encoders as ONNX graphs, in whatever variant."""
    return has_onnx_towers(folder)


def load(folder: Path, options: OnnxOptions | None = None, variant: str = "fp32") -> OnnxSource:
    """Read a folder in the split layout of optimum and transformers.js.

    Args:
        folder: holds ``onnx/``, ``config.json``, ``preprocessor_config.json`` and a tokenizer.
        options: what its files cannot say.
        variant: which of the published graphs to take, one of `layout.VARIANTS`.

    Raises:
        SourceError: a file is missing, corrupt, or does not fit the others; it names the file.
    """
    options = options or OnnxOptions()
    image_path, text_path = _paths(folder, variant)
    config_path = folder / CONFIG
    fields = read_object(config_path, hint="it says what kind of model this is; take it from where the graphs are from")
    config = checked(_Config, {name: value for name, value in fields.items() if value is not None}, config_path)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise SourceError(f"{config_path}: model_type {config.model_type!r} is not known; {', '.join(FAMILIES)} are")
    size = config.vision_config.image_size or family.image_size
    image = image_section(folder, model_type=family.model_type, image_size=size)
    image_graph, text_graph = read_graph(image_path), read_graph(text_path)
    image_encoder = layout.image_encoder(image_graph, image_path, family, height=image.height, width=image.width)
    text_encoder = layout.text_encoder(text_graph, text_path, family)
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
        architecture=family.architecture,
        precision=VARIANTS[variant].precision,
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
        raise SourceError(f"there is no variant {variant!r}; the names are {', '.join(VARIANTS)}")
    paths = layout.graph_path(folder, IMAGE_GRAPH, variant), layout.graph_path(folder, TEXT_GRAPH, variant)
    if absent := [path for path in paths if not path.exists()]:
        there = ", ".join(layout.variants(folder)) or "none of them whole"
        raise SourceError(f"{absent[0]}: is not there; variants of which both encoders are: {there}")
    return paths


def _dim(image: Encoder, text: Encoder, config: _Config, text_path: Path) -> int:
    if image.dim is not None and text.dim is not None and image.dim != text.dim:
        raise SourceError(
            f"{text_path}: gives vectors of {text.dim}, the image graph of {image.dim}; are both of one model?"
        )
    dim = image.dim or text.dim or config.projection_dim or config.vision_config.hidden_size
    if dim is None:
        raise SourceError(f"{text_path}: does not say how long its vectors are, and {CONFIG} has no projection_dim")
    return dim


def _text(
    folder: Path, options: SourceOptions, config: _Config, family: Family, encoder: Encoder
) -> tuple[TextSection, bytes]:
    vocab_size = config.text_config.vocab_size or family.vocab_size
    if family.model_type == "siglip":
        siglip = read_siglip_tokenizer(folder, tokenizer=options.tokenizer, vocab_size=vocab_size)
        content, end_of_text_id, pad_id = siglip.content, siglip.end_of_text_id, siglip.pad_id
    else:
        opened = open_tokenizer(options.tokenizer or folder, vocab_size=vocab_size)
        settings = TokenizerSettings.read(folder)
        # The graph decides itself where it reads; configurations often state a 2 that was never true.
        end = settings.token("eos_token", END_OF_TEXT)
        end_of_text_id = opened.token_id(end, "end of text")
        pad_id = opened.token_id(settings.token("pad_token", end), "padding")
        content = opened.to_json(vocab_size=vocab_size, end_of_text_id=end_of_text_id)
    context = encoder.length or config.text_config.max_position_embeddings or family.context_length
    fixed = family.padding == "fixed" or encoder.length is not None
    section = text_section(context_length=context, pad_id=pad_id, end_of_text_id=end_of_text_id, fixed=fixed)
    return section, content


def _provenance(folder: Path, files: list[Path], options: SourceOptions, recipe: Mapping[str, JsonValue]) -> Provenance:
    digests = {path.relative_to(folder).as_posix(): FileEntry.of(path).sha256 for path in files}
    joined = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return Provenance(
        source=options.source_id or folder.resolve().name,
        source_sha256=hashlib.sha256(joined.encode()).hexdigest(),
        licence=options.licence,
        recipe={**recipe, "graphs": dict(sorted(digests.items()))},
    )
