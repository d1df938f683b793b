"""The files of a Hugging Face CLIP beside its weights, as bytes and without torch: configuration, pixels, tokenizer."""

import gzip
import json
from typing import Any

_TOWER = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}

CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 32,
    "text_config": {**_TOWER, "vocab_size": 600, "max_position_embeddings": 32, "eos_token_id": 599},
    "vision_config": {**_TOWER, "image_size": 32, "patch_size": 8},
}
"""The ViT of `tests.support.reference_clip`."""

PREPROCESSOR = {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32}


def vocabulary() -> bytes:
    """Return a file in the format of the reference tokenizer's, with merges for more than 600 tokens."""
    letters = "abcdefghij"
    merges = [f"{left} {right}{end}" for left in letters for right in letters for end in ("", "</w>")]
    return "\n".join(['"bpe_simple_vocab"', *merges]).encode()


def companions(**changed: Any) -> dict[str, bytes]:
    """Return the files by name; ``changed`` fields of ``config.json`` replace the good ones."""
    return {
        "config.json": json.dumps({**CONFIG, **changed}).encode(),
        "preprocessor_config.json": json.dumps(PREPROCESSOR).encode(),
        "bpe_simple_vocab_16e6.txt.gz": gzip.compress(vocabulary(), mtime=0),
    }
