"""Reads folders as transformers' ``save_pretrained`` writes them and the hub carries them, of any family.

All that decides a vector is in the folder: configuration, preprocessing, tokenizer, weights. The weights are read last,
after every other check.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from model_export.checkpoints.assembly import loaded, model_source, prepared
from model_export.checkpoints.description import Description
from model_export.checkpoints.hugging_face_config import describe
from model_export.checkpoints.layouts import HF_INDEX, HF_WEIGHTS
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.checkpoints.weight_files.tensors import read_tensors
from model_export.errors import SourceError
from model_export.files import read_object
from service.model.manifest import FileEntry, Provenance

_LARGEST_LOGARITHM: Final = 50
"""CLIP holds its scale at 100, whose logarithm is 4.6."""


@dataclass(frozen=True)
class _Weights:
    """Weights by the files' names.

    Attributes:
        tensors: by name, in the dtype they were saved in.
        path: of the file, or of the index of several; for messages.
        sha256: of the file; of several, the sha256 over the files' own, in hexadecimal, ascending, a line each.
    """

    tensors: dict[str, Tensor]
    path: Path
    sha256: str


def load(path: Path, options: SourceOptions, said: Description | None = None) -> ModelSource:
    """Read a folder.

    Args:
        path: as the user named it; the bundle's name may follow from it.
        said: what the files beside the weights say, if it was read already; the weights are beside its file.

    Raises:
        SourceError: a file is missing, corrupt, or does not fit the others, or the model is one that cannot be
            exported; the message names the file.
    """
    said = said or describe(path, options)
    weights = _read_weights(said.file.parent)
    model, converted = loaded(said.family, said.config, weights.tensors, said.convert, weights.path)
    return model_source(
        path,
        options,
        padding=said.family.padding,
        config=said.config,
        model=model,
        image=said.image,
        tokens=said.tokens,
        scale=_exponential(converted["logit_scale"], weights.path),
        bias=converted["logit_bias"].float().item() if said.family.has_bias else None,
        provenance=Provenance(
            source=options.source_id or path.resolve().name,
            source_sha256=weights.sha256,
            licence=options.licence,
            recipe={
                "layout": "hugging_face",
                **prepared(said.tokens),
                "model": said.config.model_dump(mode="json"),
            },
        ),
    )


def _read_weights(folder: Path) -> _Weights:
    """Read the weights of a folder, one file or several."""
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
    return _Weights(tensors, path, sha256)


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
            raise SourceError(f"{shard}: is missing; {index.name} names it: download it again")
        held = read_tensors(shard)
        if twice := held.keys() & tensors.keys():
            raise SourceError(f"{shard}: has {min(twice)}, which another file has too")
        tensors |= held
        digests.append(FileEntry.of(shard).sha256)
    lines = "".join(f"{digest}\n" for digest in sorted(digests))
    return tensors, hashlib.sha256(lines.encode()).hexdigest()


def _exponential(logarithm: Tensor, path: Path) -> float:
    if abs(value := logarithm.float().item()) > _LARGEST_LOGARITHM:
        raise SourceError(f"{path}: logit_scale {value:g} is no logarithm of a scale")
    return math.exp(value)
