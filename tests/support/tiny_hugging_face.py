"""Write folders of tiny random models as transformers does, with tokenizers trained on a few words."""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from model_export.families.clip.bpe import END_OF_TEXT, START_OF_TEXT
from model_export.training.tokenizer import train_tokenizer
from tests.support.tiny_run import CORPUS

CLIP_SIZE = 32
SIGLIP_SIZE = 36
"""Not a multiple of the patch size 8, like So400m/14 at 384."""
SIGLIP_CONTEXT = 64

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def write_tiny_clip(path: Path) -> Path:
    """Write a CLIP with a ViT: transformers saves configuration, weights, preprocessing and tokenizer."""
    vocabulary, merges = clip_vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    end = vocabulary[END_OF_TEXT]
    ids = {"bos_token_id": vocabulary[START_OF_TEXT], "eos_token_id": end, "pad_token_id": end}
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 24, **ids}
    config = CLIPConfig(
        text_config={**TOWER, **text, "hidden_act": "gelu"},
        # An MLP width other than four times the tower's, and another activation, so that no default passes by chance.
        vision_config={**TOWER, "intermediate_size": 96, "image_size": CLIP_SIZE, "patch_size": 8},
        projection_dim=24,
    )
    model: Any = randomised(CLIPModel, config)
    nn.init.constant_(model.logit_scale, math.log(20))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": CLIP_SIZE}, crop_size=CLIP_SIZE).save_pretrained(path)
    return path


def write_tiny_siglip(path: Path) -> Path:
    """Write a SigLIP; its tokenizer's files leave canonicalising to the program, like some on the hub."""
    tokenizer = siglip_tokenizer()
    config = SiglipConfig(
        text_config={**TOWER, "vocab_size": tokenizer.get_vocab_size(), "bos_token_id": None, "eos_token_id": 1},
        vision_config={**TOWER, "image_size": SIGLIP_SIZE, "patch_size": 8},
    )
    model: Any = randomised(SiglipModel, config)
    nn.init.constant_(model.logit_scale, math.log(40))  # texts differ by a multiple of what tests tolerate
    nn.init.constant_(model.logit_bias, -9.5)
    model.save_pretrained(path)
    SiglipImageProcessorPil(size={"height": SIGLIP_SIZE, "width": SIGLIP_SIZE}).save_pretrained(path)
    write_siglip_tokenizer(path, tokenizer)
    return path


def randomised(model_class: Callable[[Any], nn.Module], config: object, seed: int = 0) -> nn.Module:
    """Give every parameter its own noise by seed, so that exchanging any two changes the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class(config)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train a byte-level BPE; the special tokens have the highest ids, as CLIP's own."""
    content = json.loads(train_tokenizer(CORPUS, 600).to_str())["model"]
    ids: dict[str, int] = content["vocab"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(left, right) for left, right in content["merges"]]
    known = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *map("".join, merges), START_OF_TEXT, END_OF_TEXT]
    assert sorted(known) == sorted(ids)
    return {token: number for number, token in enumerate(known)}, merges


def siglip_tokenizer() -> Tokenizer:
    """Make a tokenizer in SigLIP's form, a Unigram model: padding 0, end of text 1."""
    return Tokenizer.from_str(_siglip_tokenizer_json())


@cache  # the trainer breaks ties by a hash map's order, so another training would give other ids
def _siglip_tokenizer_json() -> str:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, *map(str.upper, CORPUS)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer.to_str()


def write_siglip_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Save SigLIP's tokenizer with padding and truncation in its file, like some on the hub."""
    tokenizer.enable_padding(length=SIGLIP_CONTEXT, pad_id=1, pad_token="</s>")
    tokenizer.enable_truncation(SIGLIP_CONTEXT)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "eos_token": "</s>", "pad_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def write_gemma_tokenizer(path: Path, **settings: object) -> None:
    """Save a tokenizer in the form of SigLIP 2's: padding 0, end of text 1, case preserved."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, *map(str.upper, CORPUS)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "GemmaTokenizer", "eos_token": "<eos>", "pad_token": {"content": "<pad>"}, **settings}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
