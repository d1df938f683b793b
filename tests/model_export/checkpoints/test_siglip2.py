"""SigLIP 2 in both layouts: pictures and texts are prepared as in training, whatever the layout's own program does."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer
from transformers import Siglip2Tokenizer

from model_export.checkpoints import hugging_face_config, open_clip_config
from model_export.checkpoints.at_hand import at_hand
from model_export.checkpoints.description import Description, disagreement
from model_export.checkpoints.model_source import SourceOptions
from tests.model_export.checkpoints.test_open_clip import siglip_said
from tests.support.tiny_hugging_face import write_gemma_tokenizer

TEXTS = ("A photo, of a CAT.", "a photo of a cat", "It's an oak-tree!", "A_cup  of tea")
PUBLISHED = SourceOptions(as_published=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write what both layouts say of google/siglip2-base-patch16-224, with few tokens, and no weights."""
    write_gemma_tokenizer(tmp_path, padding_side="right", pad_token="<pad>")
    text = {"vocab_size": 256_000, "hidden_size": 768, "projection_size": 768, "max_position_embeddings": 64}
    config = {"model_type": "siglip", "text_config": text, "vision_config": {"image_size": 224, "patch_size": 16}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    half = [0.5, 0.5, 0.5]
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "image_mean": half,
        "image_std": half,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    said = siglip_said()
    said["text_cfg"]["vocab_size"] = 256_000
    preprocessing = {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": said, "preprocess_cfg": preprocessing}))
    return tmp_path


def both(folder: Path, options: SourceOptions) -> tuple[Description, Description]:
    """Read the folder as transformers' layout, and as open_clip's."""
    theirs = open_clip_config.describe(folder / "open_clip_model.safetensors", options)
    return hugging_face_config.describe(folder, options), theirs


def ids(description: Description, text: str) -> list[int]:
    """Tokenise as the service does, but for the manifest's cleaning."""
    found: list[int] = Tokenizer.from_str(description.tokens.content.decode()).encode(text).ids
    return found


def test_both_layouts_are_prepared_as_in_training(folder: Path) -> None:
    """Lower case with punctuation, and bilinear, as transformers' class for SigLIP 2; each says what its files do."""
    hugging_face, open_clip = both(folder, SourceOptions())

    assert hugging_face.image == open_clip.image
    assert hugging_face.image.interpolation == "bilinear"
    assert disagreement(hugging_face, open_clip) is None
    assert hugging_face.tokens.content == open_clip.tokens.content
    assert hugging_face.tokens.cleaning == open_clip.tokens.cleaning == "none"
    assert "the files keep capitals" in str(hugging_face.tokens.note)
    assert "open_clip strips punctuation and resizes by bicubic" in str(open_clip.tokens.note)
    trained: Any = Siglip2Tokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ids(open_clip, text) == trained(text, padding=False)["input_ids"]


def test_the_sources_own_ways_can_be_asked_for(folder: Path) -> None:
    """open_clip strips punctuation and takes bicubic; the files for transformers keep capitals."""
    trained, _ = both(folder, SourceOptions())
    hugging_face, open_clip = both(folder, PUBLISHED)

    assert "bicubic" == open_clip.image.interpolation
    assert "clip" == open_clip.tokens.cleaning
    assert ids(open_clip, "A photo, of a CAT.") == ids(trained, "a photo of a cat")
    assert ids(hugging_face, "A cat.") == Tokenizer.from_file(str(folder / "tokenizer.json")).encode("A cat.").ids
    assert ids(hugging_face, "A cat.") != ids(hugging_face, "a cat.")
    assert hugging_face.tokens.note is open_clip.tokens.note is None


def test_the_first_siglip_is_read_as_published(folder: Path) -> None:
    """Of its training no other preparation is known; only SigLIP 2 has Gemma's vocabulary."""
    said = json.loads((folder / "open_clip_config.json").read_text())
    said["model_cfg"]["text_cfg"]["vocab_size"] = 32_000
    (folder / "open_clip_config.json").write_text(json.dumps(said))

    read = open_clip_config.describe(folder / "open_clip_model.safetensors", SourceOptions())

    assert "bicubic" == read.image.interpolation
    assert read.tokens.note is None


def test_a_line_says_what_differs_from_the_files(folder: Path) -> None:
    """It is printed when the source is opened."""
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "open_clip_model.safetensors").write_bytes(b"")
    for layout, said in (("hugging_face", "put into lower case"), ("open_clip", "keep their punctuation")):
        console = Console(record=True, width=200)
        at_hand(str(folder), SourceOptions(layout=layout), console=console)  # type: ignore[arg-type]
        assert f"note: texts {said}" in console.export_text().replace("are put", "put")
