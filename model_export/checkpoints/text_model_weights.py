"""Reads a text model of sentence-transformers together with the image tower of the model that it was trained for."""

import hashlib
from pathlib import Path

import torch

from model_export.checkpoints.assembly import model_source
from model_export.checkpoints.model_source import ModelSource, SourceOptions, load_weights
from model_export.checkpoints.text_model import TextModel, weights
from model_export.checkpoints.weight_files.tensors import read_tensors
from model_export.errors import SourceError
from model_export.families.sentence_transformers.config import SentenceConfig
from model_export.families.sentence_transformers.model import SentenceModel, SentenceTextTower, converted
from service.model.manifest import FileEntry, Provenance, SoftmaxScoring


def load(path: Path, options: SourceOptions, said: TextModel, image: ModelSource) -> ModelSource:
    """Read the weights of a text model.

    Args:
        path: the source's folder.
        said: what its files beside the weights say.
        image: the model whose image tower and scale are taken.

    Raises:
        SourceError: a weight is missing, unknown, mis-shaped or not finite; the message names it.
    """
    if not isinstance(image.scoring, SoftmaxScoring) or image.dim != said.config.embed_dim:
        raise SourceError(
            f"{said.image_model}: is no CLIP with vectors of {said.config.embed_dim}, as the text model's are"
        )
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    text_file, dense_file = (path / name for name in weights(names, said.modules, str(path)))
    with torch.device("meta"):
        wanted = SentenceTextTower(said.config).state_dict()
    found = converted((read_tensors(text_file), text_file), (read_tensors(dense_file), dense_file), wanted)
    tower = SentenceTextTower(said.config)
    load_weights(tower, found, text_file)
    model = SentenceModel(image.model, tower).eval().requires_grad_(requires_grad=False)
    config = SentenceConfig(image_model=image.config, text=said.config)
    digests = [FileEntry.of(text_file).sha256, FileEntry.of(dense_file).sha256, str(image.provenance.source_sha256)]
    return model_source(
        path,
        options,
        padding="longest",
        config=config,
        model=model,
        image=image.image,
        tokens=said.tokens,
        scale=image.scoring.logit_scale,
        bias=None,
        provenance=Provenance(
            source=options.source_id or path.resolve().name,
            source_sha256=hashlib.sha256("".join(f"{each}\n" for each in digests).encode()).hexdigest(),
            licence=options.licence,
            recipe={
                "layout": "sentence_transformers",
                "image_model": image.provenance.source,
                "image_model_licence": image.provenance.licence,
                "model": {
                    "image_model": image.config.model_dump(mode="json"),
                    "text": said.config.model_dump(mode="json"),
                },
            },
        ),
    )
