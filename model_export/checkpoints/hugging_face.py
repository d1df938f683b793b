"""Folders as transformers' ``save_pretrained`` writes them and as the hub carries them: `CLIPModel`, `SiglipModel`.

All that decides a vector is read from the folder: configuration, preprocessing, tokenizer, weights. What can be checked
is checked before the weights are read.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from model_export.checkpoints.json_files import read_object
from model_export.checkpoints.layouts import HF_CONFIG, HF_INDEX, HF_WEIGHTS
from model_export.checkpoints.model_source import TEMPLATES, ModelSource, SourceOptions, load_weights, text_section
from model_export.checkpoints.naming import bundle_aliases, bundle_name
from model_export.checkpoints.preprocessing import image_section
from model_export.checkpoints.weight_files.tensors import read_tensors
from model_export.errors import SourceError
from model_export.families import hugging_face as hf_keys
from model_export.families.clip.bpe import END_OF_TEXT
from model_export.families.clip.hugging_face import (
    LEGACY_END_OF_TEXT,
    clip_config,
    read_clip,
    read_siglip,
    siglip_config,
)
from model_export.families.clip.model import ClipModel
from model_export.families.clip.tokenizer import (
    OpenTokenizer,
    TokenizerSettings,
    has_tokenizer,
    open_tokenizer,
)
from model_export.families.key_tables import KeyTable
from model_export.families.siglip.model import SiglipModel
from model_export.families.siglip.tokenizer import read_siglip_tokenizer
from service.model.manifest import FileEntry, Provenance, SigmoidScoring, SoftmaxScoring

_LARGEST_LOGARITHM: Final = 50
"""CLIP holds its scale at 100, whose logarithm is 4.6."""


@dataclass(frozen=True)
class Weights:
    """Weights as the files call them.

    Attributes:
        tensors: by name, in the dtype they were saved in.
        path: of the file, or of the index of several; for what is said of them.
        sha256: of the file; of several, the sha256 over their own in ascending order, in hexadecimal, a line each.
    """

    tensors: dict[str, Tensor]
    path: Path
    sha256: str


def load(path: Path, options: SourceOptions) -> ModelSource:
    """Read a folder.

    Raises:
        SourceError: a file is missing, corrupt, or does not fit the others, or the model is one that cannot be
            exported; it names the file.
    """
    if not path.is_dir():
        raise SourceError(f"{path}: is not a folder with a {HF_CONFIG}")
    config = path / HF_CONFIG
    fields = read_object(config, hint="is this the folder of a Hugging Face model?")
    model_type = str(fields.get("model_type"))
    if model_type not in _READERS:
        raise SourceError(f"{config}: model_type is {model_type}; {' and '.join(_READERS)} can be exported")
    if options.arch is not None:
        raise SourceError(f"{config}: says the architecture; leave --arch out")
    return _READERS[model_type](path, fields, options)


def _load_clip(path: Path, fields: Mapping[str, Any], options: SourceOptions) -> ModelSource:
    said = read_clip(fields, path / HF_CONFIG)
    image = image_section(path, model_type="clip", image_size=said.vision_config.image_size)
    tokenizer = open_tokenizer(_tokenizer_path(path, options), vocab_size=said.text_config.vocab_size)
    config = clip_config(
        said, path / HF_CONFIG, end_of_text_id=_end_of_text_id(said.text_config.eos_token_id, tokenizer)
    )
    text = config.text
    content = tokenizer.to_json(vocab_size=text.vocab_size, end_of_text_id=text.end_of_text_id)
    _check_activation(options, {text.activation, getattr(config.image, "activation", None)}, path / HF_CONFIG)
    with torch.device("meta"):
        wanted = ClipModel(config).state_dict()
    weights = _read_weights(path, hf_keys.CLIP, wanted)
    model = ClipModel(config)
    load_weights(model, weights.tensors, weights.path)
    return ModelSource(
        name=bundle_name(path, options),
        aliases=bundle_aliases(options),
        architecture="clip/vit",
        model=model,
        dim=config.embed_dim,
        image=image,
        text=text_section(context_length=text.context_length, pad_id=text.pad_id, end_of_text_id=text.end_of_text_id),
        scoring=SoftmaxScoring(logit_scale=_exponential(model.logit_scale, weights.path)),
        templates=dict(TEMPLATES),
        tokenizer=content,
        provenance=_provenance(path, options, weights, config.model_dump(mode="json")),
    )


def _load_siglip(path: Path, fields: Mapping[str, Any], options: SourceOptions) -> ModelSource:
    said = read_siglip(fields, path / HF_CONFIG)
    image = image_section(path, model_type="siglip", image_size=said.vision_config.image_size)
    tokenizer = read_siglip_tokenizer(
        path,
        tokenizer=_tokenizer_path(path, options) if options.tokenizer else None,
        vocab_size=said.text_config.vocab_size,
    )
    config = siglip_config(said, path / HF_CONFIG, pad_id=tokenizer.pad_id)
    _check_activation(options, {config.activation}, path / HF_CONFIG)
    with torch.device("meta"):
        wanted = SiglipModel(config).state_dict()
    weights = _read_weights(path, hf_keys.SIGLIP, wanted)
    model = SiglipModel(config)
    load_weights(model, weights.tensors, weights.path)
    context = config.text.context_length
    return ModelSource(
        name=bundle_name(path, options),
        aliases=bundle_aliases(options),
        architecture="siglip/vit",
        model=model,
        dim=config.embed_dim,
        image=image,
        text=text_section(
            context_length=context, pad_id=tokenizer.pad_id, end_of_text_id=tokenizer.end_of_text_id, fixed=True
        ),
        scoring=SigmoidScoring(
            logit_scale=_exponential(model.logit_scale, weights.path), logit_bias=model.logit_bias.item()
        ),
        templates=dict(TEMPLATES),
        tokenizer=tokenizer.content,
        provenance=_provenance(path, options, weights, config.model_dump(mode="json")),
    )


_READERS: Final[Mapping[str, Callable[[Path, Mapping[str, Any], SourceOptions], ModelSource]]] = {
    "clip": _load_clip,
    "siglip": _load_siglip,
}
"""By ``model_type``."""


def _tokenizer_path(path: Path, options: SourceOptions) -> Path:
    """Say where the tokenizer is: in the folder, or else where the user says."""
    if options.tokenizer is None:
        return path
    if has_tokenizer(path):
        raise SourceError(f"{path}: brings its own tokenizer; leave --tokenizer out, or take its tokenizer files away")
    return options.tokenizer


def _end_of_text_id(said: int, tokenizer: OpenTokenizer) -> int:
    if said != LEGACY_END_OF_TEXT:
        return said
    token = TokenizerSettings.read(tokenizer.path.parent).token("eos_token", END_OF_TEXT)
    return tokenizer.token_id(token, "end of text")


def _check_activation(options: SourceOptions, said: set[object], config: Path) -> None:
    if options.activation is not None and said != {options.activation}:
        raise SourceError(f"{config}: says the activation, and not {options.activation}; leave --activation out")


def _read_weights(folder: Path, table: KeyTable, wanted: Mapping[str, Tensor]) -> Weights:
    """Read the weights of a folder, one file or several, and rename them."""
    for name in HF_WEIGHTS:
        if (folder / name).exists():
            path = folder / name
            tensors, sha256 = read_tensors(path), FileEntry.of(path).sha256
            break
        if (folder / f"{name}{HF_INDEX}").exists():
            path = folder / f"{name}{HF_INDEX}"
            tensors, sha256 = _read_shards(path)
            break
    else:
        raise SourceError(f"{folder}: holds no weights ({' or '.join(HF_WEIGHTS)}, or an index of several files)")
    return Weights(hf_keys.convert(table, tensors, wanted, path), path, sha256)


def _read_shards(index: Path) -> tuple[dict[str, Tensor], str]:
    """Read all files that an index names; return the tensors, and the digest over the files' own."""
    places = read_object(index, hint="").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise SourceError(f"{index}: has no weight_map")
    tensors: dict[str, Tensor] = {}
    digests = []
    for name in sorted({str(place) for place in places.values()}):
        if Path(name).name != name:
            raise SourceError(f"{index}: names {name!r}, which is not a file beside it")
        shard = index.parent / name
        if not shard.exists():
            raise SourceError(f"{shard}: is not there; {index.name} names it: download it again")
        held = read_tensors(shard)
        if twice := held.keys() & tensors.keys():
            raise SourceError(f"{shard}: has {min(twice)}, which another file has too")
        tensors |= held
        digests.append(FileEntry.of(shard).sha256)
    lines = "".join(f"{digest}\n" for digest in sorted(digests))
    return tensors, hashlib.sha256(lines.encode()).hexdigest()


def _exponential(logarithm: Tensor, path: Path) -> float:
    if abs(value := logarithm.item()) > _LARGEST_LOGARITHM:
        raise SourceError(f"{path}: logit_scale {value:g} is no logarithm of a scale")
    return math.exp(value)


def _provenance(path: Path, options: SourceOptions, weights: Weights, config: dict[str, Any]) -> Provenance:
    return Provenance(
        source=options.source_id or path.resolve().name,
        source_sha256=weights.sha256,
        licence=options.licence,
        recipe={"layout": "hugging_face", "model": config},
    )
