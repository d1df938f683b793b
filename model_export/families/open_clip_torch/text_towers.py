"""Text towers of transformers by the hub id that open_clip's configurations name, as their ``config.json`` has them.

open_clip would ask the hub for that file. Its values never change, and an export needs no second repository. The file
of the weights is checked against the shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final


@dataclass(frozen=True)
class TextTower:
    """A text tower of transformers; for an encoder with a decoder, the encoder.

    Attributes:
        config: ``config.json``, as far as it decides a vector.
    """

    vocab_size: int
    width: int
    layers: int
    pad_id: int
    config: Mapping[str, Any]


def _roberta(model_type: str, *, vocab_size: int, width: int, layers: int, heads: int) -> TextTower:
    return TextTower(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        pad_id=1,
        config={
            "model_type": model_type,
            "vocab_size": vocab_size,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
    )


def _nllb(*, layers: int, mlp_width: int) -> TextTower:
    return TextTower(
        vocab_size=256_206,
        width=1024,
        layers=layers,
        pad_id=1,
        config={
            "model_type": "m2m_100",
            "vocab_size": 256_206,
            "d_model": 1024,
            "encoder_layers": layers,
            "encoder_attention_heads": 16,
            "encoder_ffn_dim": mlp_width,
            # open_clip makes the decoder, and throws it away.
            "decoder_layers": 1,
            "decoder_attention_heads": 16,
            "decoder_ffn_dim": 1,
            "max_position_embeddings": 1024,
            "activation_function": "relu",
            "scale_embedding": True,
            "is_encoder_decoder": True,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
    )


def _mt5(*, width: int, layers: int, heads: int, mlp_width: int) -> TextTower:
    return TextTower(
        vocab_size=250_112,
        width=width,
        layers=layers,
        pad_id=0,
        config={
            "model_type": "mt5",
            "vocab_size": 250_112,
            "d_model": width,
            "d_kv": 64,
            "d_ff": mlp_width,
            "num_layers": layers,
            "num_heads": heads,
            # open_clip makes the decoder, and throws it away.
            "num_decoder_layers": 1,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6,
            "feed_forward_proj": "gated-gelu",
            "is_encoder_decoder": True,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        },
    )


_BIOMED_BERT: Final = TextTower(
    vocab_size=30_522,
    width=768,
    layers=12,
    pad_id=0,
    config={
        "model_type": "bert",
        "vocab_size": 30_522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    },
)

TEXT_TOWERS: Final[Mapping[str, TextTower]] = MappingProxyType(
    {
        "roberta-base": _roberta("roberta", vocab_size=50_265, width=768, layers=12, heads=12),
        "xlm-roberta-base": _roberta("xlm-roberta", vocab_size=250_002, width=768, layers=12, heads=12),
        "xlm-roberta-large": _roberta("xlm-roberta", vocab_size=250_002, width=1024, layers=24, heads=16),
        "facebook/nllb-200-distilled-600M": _nllb(layers=12, mlp_width=4096),
        "facebook/nllb-200-distilled-1.3B": _nllb(layers=24, mlp_width=8192),
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract": _BIOMED_BERT,
        "google/mt5-base": _mt5(width=768, layers=12, heads=12, mlp_width=2048),
        "google/mt5-xl": _mt5(width=2048, layers=24, heads=32, mlp_width=5120),
    }
)
