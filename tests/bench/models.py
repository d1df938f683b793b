"""Make the measured models: random weights in the true shape, as a Hugging Face folder and as a bundle.

    python -m tests.bench.models vit-b-32 fp32

Speed and memory do not depend on the weights, so nothing is downloaded. The tokenizer is a byte-level BPE in CLIP's
form, trained on `words.CORPUS` and filled up to CLIP's 49,408 entries, so the embedding table has its true size.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.places import MODELS
from tests.support.places import ROOT

DEMO: Final = "demo"
_VOCABULARY: Final = 49_408
_LEARNT: Final = 1_500
_CONTEXT: Final = 77
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Size:
    """The towers of a CLIP with a ViT.

    Attributes:
        patch: side of a patch in pixels of the 224×224 input.
        width: width of the image tower; its MLPs are four times as wide, its heads 64 wide.
        layers: layers of the image tower.
        text_width: width of the text tower, which has 12 layers.
        dim: length of a vector.
    """

    patch: int
    width: int
    layers: int
    text_width: int
    dim: int

    @property
    def image_gflop(self) -> float:
        """Return the billions of floating-point operations for one image; a multiply-add counts as two."""
        tokens = (224 // self.patch) ** 2 + 1
        layer = 2 * tokens * 12 * self.width**2 + 4 * tokens**2 * self.width
        patches = 2 * (tokens - 1) * 3 * self.patch**2 * self.width
        return (self.layers * layer + patches + 2 * self.width * self.dim) / 1e9


SIZES: Final = {
    "vit-b-32": Size(patch=32, width=768, layers=12, text_width=512, dim=512),
    "vit-l-14": Size(patch=14, width=1_024, layers=24, text_width=768, dim=768),
}


def hugging_face_folder(name: str) -> Path:
    """Return the model as saved by transformers; make it if missing."""
    folder = MODELS / name
    if not (folder / "config.json").exists():
        _in_a_process(name, "source")
    return folder


def bundle(name: str, precision: str = "fp32") -> Path:
    """Return the model as a bundle of this precision; make it if missing. `demo` ships with the service."""
    if name == DEMO:
        from service.model.manifest import DEMO_BUNDLE

        return DEMO_BUNDLE
    folder = MODELS / f"{name}-{precision}-bundle"
    if not (folder / "manifest.json").exists():
        source = hugging_face_folder(name)
        command = [sys.executable, "-m", "model_export.cli", "export", str(source), str(folder), "--force"]
        subprocess.run([*command, "--precision", precision, "--name", f"{name}-{precision}"], check=True, cwd=ROOT)
    return folder


def _in_a_process(*arguments: str) -> None:
    """Run in another process, whose end frees torch's memory."""
    subprocess.run([sys.executable, "-m", "tests.bench.models", *arguments], check=True, cwd=ROOT)


def _write_source(name: str, folder: Path) -> None:
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    from model_export.families.clip.bpe import END_OF_TEXT, START_OF_TEXT

    size = SIZES[name]
    vocabulary, merges = _vocabulary()
    start, end = vocabulary[START_OF_TEXT], vocabulary[END_OF_TEXT]
    text_ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    image_tower = {"patch_size": size.patch, "num_hidden_layers": size.layers, **_tower(size.width)}
    torch.manual_seed(0)
    config: Any = CLIPConfig(
        text_config={"vocab_size": _VOCABULARY, "projection_dim": size.dim, **_tower(size.text_width), **text_ids},
        vision_config={"image_size": 224, "projection_dim": size.dim, **image_tower},
        projection_dim=size.dim,
    )
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    CLIPModel(config).eval().save_pretrained(partial)
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=_CONTEXT).save_pretrained(partial)
    # OpenAI's published form, which every release of transformers reads; the newest writes another class.
    preprocessing = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": 224,
        "do_center_crop": True,
        "crop_size": 224,
        "do_normalize": True,
        "resample": 3,
        "image_mean": _MEAN,
        "image_std": _STD,
    }
    (partial / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _tower(width: int) -> dict[str, int]:
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return entries by number, and merges; special entries have the highest numbers, as in CLIP."""
    from tokenizers import pre_tokenizers

    from model_export.families.clip.bpe import END_OF_TEXT, START_OF_TEXT
    from model_export.training.tokenizer import train_tokenizer
    from tests.bench.words import CORPUS

    content = json.loads(train_tokenizer(list(CORPUS), _LEARNT).to_str())["model"]
    merges = [(left, right) for left, right in content["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learnt = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *map("".join, merges)]
    filling = [f"<|unused{number}|>" for number in range(_VOCABULARY - len(learnt) - 2)]
    return {token: n for n, token in enumerate([*learnt, *filling, START_OF_TEXT, END_OF_TEXT])}, merges


def main() -> None:
    """Make one model: its source, or its bundle in a precision."""
    name, what = sys.argv[1:]
    if what == "source":
        MODELS.mkdir(parents=True, exist_ok=True)
        _write_source(name, MODELS / name)
    else:
        sys.stdout.write(f"{bundle(name, what)}\n")


if __name__ == "__main__":
    main()
