"""Repositories of the hub in miniature: true names of files, true kinds of configurations, small random weights."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from model_export.families.clip.tokenizer import tokenizer_json
from tests.support.clip_files import open_clip_config
from tests.support.companions import companions, vocabulary
from tests.support.layouts import hugging_face_weights
from tests.support.reference_clip import ReferenceClip, reference

Files = dict[str, bytes]

CARD = b"---\nlicense: apache-2.0\n---\n# Tiny\n"
NO_WEIGHTS = b"never read" * 1000
"""Weights of a repository that is refused by its configurations."""

MARQO: dict[str, Any] = {
    "_name_or_path": "Marqo/marqo-fashionCLIP",
    "architectures": ["MarqoFashionCLIP"],
    "auto_map": {"AutoConfig": "marqo_fashionCLIP.MarqoFashionCLIPConfig", "AutoModel": "marqo_fashionCLIP.Model"},
    "model_type": "clip",
    "open_clip_model_name": "hf-hub:Marqo/marqo-fashionCLIP",
    "torch_dtype": "float32",
}
"""The ``config.json`` of a wrapper around open_clip's model, which wants its own code to be run."""

TIMM = {"architecture": "vit_base_patch32_clip_224", "num_classes": 512, "pretrained_cfg": {"input_size": [3, 32, 32]}}
"""timm's ``config.json`` of an image tower."""

MODULES = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
"""``modules.json`` of ``sentence-transformers/clip-ViT-B-32``."""


def as_json(content: object) -> bytes:
    """Return a JSON file."""
    return json.dumps(content).encode()


def reference_model() -> ReferenceClip:
    """Return the model whose weights the repositories hold."""
    return reference("vit")[1]


def hugging_face(folder: Path) -> Files:
    """Return the files of a `CLIPModel`; ``folder`` is for work files."""
    weights = hugging_face_weights(reference_model().state_dict())
    own = {name: content for name, content in companions().items() if not name.endswith(".gz")}
    return {**own, **_tokenizer(folder), "model.safetensors": _saved(weights)}


def open_clip(folder: Path, *, tokenizer: bool = True) -> Files:
    """Return the files of the same model as open_clip publishes it."""
    config, model = reference("vit")
    files = {
        "README.md": CARD,
        "open_clip_config.json": as_json(open_clip_config(config)),
        "open_clip_model.safetensors": _saved(model.state_dict()),
    }
    return {**files, **_tokenizer(folder)} if tokenizer else files


def marqo(folder: Path) -> Files:
    """Return open_clip's files beside a stub of a configuration, and weights for its own code."""
    wrapped = {f"model.{name}": tensor for name, tensor in reference_model().state_dict().items()}
    return {
        **open_clip(folder),
        "config.json": as_json(MARQO),
        "model.safetensors": _saved(wrapped),
        "marqo_fashionCLIP.py": b"raise SystemExit",
        "preprocessor_config.json": as_json({"auto_map": {"AutoProcessor": "x.Y"}, "size": 224}),
    }


def marqo_siglip(folder: Path) -> Files:
    """Return the same beside a stub and a preprocessor that are a SigLIP's, as of ``Marqo/marqo-fashionSigLIP``."""
    stub = {**MARQO, "architectures": ["MarqoFashionSigLIP"], "model_type": "siglip"}
    preprocessor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 224, "width": 224}}
    return {
        **marqo(folder),
        "config.json": as_json(stub),
        "preprocessor_config.json": as_json(preprocessor),
        "model.safetensors": NO_WEIGHTS,
    }


def timm(folder: Path) -> Files:
    """Return open_clip's files beside timm's of the image tower, with pickles of both."""
    image = {name: tensor for name, tensor in reference_model().state_dict().items() if name.startswith("visual.")}
    return {
        **open_clip(folder),
        "config.json": as_json(TIMM),
        "model.safetensors": _saved(image),
        "pytorch_model.bin": NO_WEIGHTS,
        "open_clip_pytorch_model.bin": NO_WEIGHTS,
    }


def laion(folder: Path) -> Files:
    """Return the same model in both layouts, each of them whole."""
    return {**open_clip(folder), **hugging_face(folder), "open_clip_pytorch_model.bin": NO_WEIGHTS}


def sentence_transformers(folder: Path) -> Files:
    """Return a `CLIPModel` in the folder of a module."""
    inner = {f"0_CLIPModel/{name}": content for name, content in hugging_face(folder).items()}
    settings = as_json({"__version__": {"sentence_transformers": "2.0.0"}})
    return {
        **inner,
        "0_CLIPModel/pytorch_model.bin": NO_WEIGHTS,
        "README.md": CARD,
        "config_sentence_transformers.json": settings,
        "modules.json": as_json(MODULES),
    }


def _tokenizer(folder: Path) -> Files:
    place = folder / "bpe.txt"
    place.write_bytes(vocabulary())
    return {"tokenizer.json": tokenizer_json(place, vocab_size=600, end_of_text_id=599)}


def _saved(weights: dict[str, Tensor]) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in weights.items()}, {"format": "pt"})
