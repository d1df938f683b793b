"""Write small models with tokenizers of many scripts, as transformers does, with random weights."""

import json
import math
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, processors
from torch import nn
from transformers import (
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    MetaClip2Config,
    MetaClip2Model,
    Siglip2Config,
    Siglip2Model,
    T5Tokenizer,
    XLMRobertaTokenizer,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from tests.support.tiny_hugging_face import TOWER, randomised

LABELS: Final = ("고양이", "강아지 사진", "猫の写真", "ねこ", "قطة", "🐈🚀", "a cat", "Zürich, 1848")
"""Korean, Japanese, Arabic, emoji and two of the Latin script."""

XLM_R: Final = ("<s>", "<pad>", "</s>", "<unk>")
MT5: Final = ("<pad>", "</s>", "<unk>")
BYTES: Final = tuple(f"<0x{value:02X}>" for value in range(256))


def pieces(special: tuple[str, ...], *more: str) -> list[tuple[str, float]]:
    """Return a vocabulary of the labels' words and characters, the longer the likelier."""
    words = [f"▁{word}" for label in LABELS for word in label.split()]
    characters = sorted({character for label in LABELS for character in label if character != " "})
    tokens = dict.fromkeys([*special, *more, "▁", *words, *characters])
    return [(token, 0.0 if token in special else -8.0 / len(token)) for token in tokens]


def write_metaclip_2(path: Path) -> Path:
    """Write a MetaCLIP 2 in the form of ``facebook/metaclip-2-worldwide-huge-quickgelu``."""
    vocabulary = pieces(XLM_R)
    tokenizer = XLMRobertaTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)])
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = MetaClip2Config(
        text_config={**TOWER, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "projection_dim": 24},
        vision_config={**TOWER, "image_size": 32, "patch_size": 8, "projection_dim": 24},
        projection_dim=24,
    )
    model: Any = randomised(MetaClip2Model, config)
    nn.init.constant_(model.logit_scale, math.log(20))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(path)
    return path


def write_naflex(path: Path) -> Path:
    """Write a SigLIP 2 in the form of ``google/siglip2-base-patch16-naflex``, with a grid of 4x4 patches."""
    write_gemma(path)
    config = Siglip2Config(
        text_config={**TOWER, "vocab_size": 400, "max_position_embeddings": 32, "projection_size": 32},
        vision_config={**TOWER, "num_patches": 16, "patch_size": 8},
    )
    model: Any = randomised(Siglip2Model, config)
    nn.init.constant_(model.logit_scale, math.log(10))
    nn.init.constant_(model.logit_bias, -9.5)
    model.save_pretrained(path)
    Siglip2ImageProcessorPil(max_num_patches=16, patch_size=8).save_pretrained(path)
    return path


def write_gemma(path: Path) -> None:
    """Write a tokenizer in the form of SigLIP 2's: characters it does not know become bytes."""
    path.mkdir(parents=True, exist_ok=True)
    tokens = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", *BYTES, "▁", *(c for c, _ in pieces(()))])
    backend = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    backend.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "padding_side": "right",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def write_mt5_tokenizer(path: Path) -> Any:
    """Write mT5's tokenizer, and return it."""
    tokenizer = T5Tokenizer(vocab=pieces(MT5), extra_ids=0)
    tokenizer.save_pretrained(path)
    return tokenizer


def write_xlm_r_tokenizer(path: Path) -> Any:
    """Write XLM-RoBERTa's tokenizer, and return it."""
    tokenizer = XLMRobertaTokenizer(vocab=[*pieces(XLM_R), ("<mask>", 0.0)])
    tokenizer.save_pretrained(path)
    return tokenizer


def write_bert_tokenizer(path: Path) -> Any:
    """Write BERT's tokenizer with a word for each word of the labels, and return it."""
    words = [word for label in LABELS for word in label.replace(",", " ,").split()]
    tokens = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=False)
    tokenizer.save_pretrained(path)
    return tokenizer


def write_text_model(path: Path, width: int) -> Path:
    """Write a text model in the form of ``sentence-transformers/clip-ViT-B-32-multilingual-v1``."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = write_bert_tokenizer(path)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, hidden_dim=48, n_layers=2, n_heads=2, max_position_embeddings=40
    )
    model: Any = randomised(DistilBertModel, config)
    model.save_pretrained(path)
    kinds = ("Transformer", "Pooling", "Dense")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    identity = "torch.nn.modules.linear.Identity"
    dense = {"in_features": 32, "out_features": width, "bias": False, "activation_function": identity}
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    contents: dict[str, object] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 24, "do_lower_case": False},
        "1_Pooling/config.json": pooling,
        "2_Dense/config.json": dense,
    }
    for name, content in contents.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(json.dumps(content))
    weight: Any = torch.randn((width, 32), generator=torch.Generator().manual_seed(0))
    save_file({"linear.weight": weight}, path / "2_Dense/model.safetensors")
    return path
