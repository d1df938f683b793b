"""Write a small training run: every file of a real run, random weights, a tokenizer trained on a few words."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

from model_export.families.clip.config import ClipConfig
from model_export.families.clip.model import ClipModel

START, END = "<|startoftext|>", "<|endoftext|>"
TEMPLATES = {"default": ["a photo of a {}.", "a {}."], "none": ["{}"]}
CORPUS = ["a photo of a cat.", "a picture of a motorcycle.", "a rocket, a cup of tea and a very old oak tree"]

TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 2},
    "modified_resnet": {"kind": "modified_resnet", "image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    "residual_conv": {"kind": "residual_conv", "image_size": 32, "stem_width": 8, "widths": [16, 24]},
    # as in the demo model
    "whitening": {
        "kind": "residual_conv",
        "image_size": 32,
        "stem": "whitening",
        "stem_width": 24,
        "widths": [16, 24],
        "mirror": True,
        "shifts": [[1, 1], [-1, -1]],
    },
}


def write_tiny_run(path: Path, tower: str = "residual_conv", *, context_length: int = 24, seed: int = 0) -> Path:
    """Write a run with one of the `TOWERS` to a new folder; the same arguments give the same files."""
    path.mkdir(parents=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(path / "tokenizer.json"))
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "context_length": context_length,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "end_of_text_id": tokenizer.token_to_id(END),
        "pad_id": 0,
    }
    model = {"embed_dim": 24, "image": TOWERS[tower], "text": text}
    size = TOWERS[tower]["image_size"]
    config = {
        "name": f"tiny-{tower.replace('_', '-')}",
        "model": model,
        "image": {
            "height": size,
            "width": size,
            "resize": "shortest",
            "interpolation": "bicubic",
            "crop": "center",
            "mean": [0.5, 0.48, 0.44],
            "std": [0.26, 0.25, 0.27],
        },
        "templates": TEMPLATES,
        "provenance": {"source": "random weights", "licence": "CC0-1.0"},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "recipe.toml").write_text('name = "tiny"\nseed = 0\n\n[optim]\nlr = 1e-3\n')
    (path / "card.md").write_text("# Tiny\n\nRandom weights; for tests.\n")
    (path / "metrics.jsonl").write_text("")
    save_file(tiny_model(model, seed).state_dict(), path / "model.safetensors")
    return path


def tiny_model(config: dict[str, Any], seed: int) -> ClipModel:
    """Build a model whose batch norms look trained: statistics and gains away from 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ClipModel(ClipConfig.model_validate(config))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            elif isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, 1.0, 0.1)
                nn.init.normal_(module.bias, std=0.1)
        return model


def tiny_tokenizer() -> Tokenizer:
    """Train a lower-casing byte-level BPE that puts each text between the two special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)],
    )
    return tokenizer
