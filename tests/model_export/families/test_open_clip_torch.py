"""Models that open_clip's own code builds: read, exported, and encoded by the engine that serves."""

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor

from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.checkpoints.open_clip_config import model_config
from model_export.cli import app, main
from model_export.errors import SourceError
from model_export.export.from_weights import export_model, served_encoders
from model_export.families.clip.tokenizer import installed_vocabulary, tokenizer_json
from model_export.families.open_clip_torch import config as configs
from model_export.families.open_clip_torch import model as built_models
from model_export.families.open_clip_torch.text_towers import TEXT_TOWERS, TextTower
from model_export.training.recipe import read_recipe
from model_export.training.starts import open_start
from service.model.engine.engine import OnnxEngine
from service.model.loading import load_bundle
from service.model.manifest import SigmoidScoring, SoftmaxScoring
from service.model.probes import probe_pictures
from service.model.tokenizer import Tokenizer
from tests.model_export.conftest import Heard
from tests.support.http_server import http_server
from tests.support.pictures import encode, noise
from tests.support.places import ROOT
from tests.support.reference_clip import write_vocabulary

if importlib.util.find_spec("open_clip") is None:
    pytest.skip("the extra open-clip is not installed", allow_module_level=True)

from tests.support.tiny_multilingual import LABELS as LABELS_OF_MANY_SCRIPTS
from tests.support.tiny_multilingual import write_bert_tokenizer, write_mt5_tokenizer, write_xlm_r_tokenizer
from tests.support.tiny_open_clip import PREPROCESSING, built, small_config, small_towers, write

pytestmark = pytest.mark.slow

VOCABULARY = 600
LABELS = ("a photo of a cat.", "two  DOGS &amp;")
WORDS = ("a", "photo", "of", "cat", "two", "old", "dogs", "rain", ".", "&", ",", "!", "DOGS")


@pytest.fixture(autouse=True)
def _small_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    small_towers(monkeypatch)


def with_clip_tokenizer(folder: Path) -> Path:
    """Add CLIP's tokenizer with a small vocabulary, as folders on the hub have it."""
    merges = write_vocabulary(folder / "bpe.txt")
    content = tokenizer_json(merges, vocab_size=VOCABULARY, end_of_text_id=VOCABULARY - 1)
    merges.unlink()
    (folder / "tokenizer.json").write_bytes(content)
    return folder


def with_bert_tokenizer(folder: Path) -> Path:
    """Add a tokenizer in BERT's form, with few words."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(word for word in WORDS if word.islower() or not word.isalpha())]
    backend = Backend(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.save(str(folder / "tokenizer.json"))
    return folder


def with_sentence_pieces(folder: Path, *, start: str = "<s>") -> Path:
    """Add a tokenizer in the form of XLM-RoBERTa's, or with a language in front, of NLLB's."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "eng_Latn", "▁", *(f"▁{word}" for word in WORDS), *WORDS]
    pieces = [(token, -1.0 - i / 100) for i, token in enumerate(dict.fromkeys(tokens))]
    backend = Backend(models.Unigram(pieces, unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A </s>", special_tokens=[(start, tokens.index(start)), ("</s>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    return folder


def exported(source: ModelSource, bundle: Path) -> Path:
    """Export a model; its bundle passes the comparison in float64."""
    heard = Heard()
    export_model(source, bundle, listener=heard)
    assert heard.reports[0].passed
    return bundle


def encoded(bundle: Path, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encode pictures and texts by the serving code.

    Returns:
        Normalised pixels and padded ids for open_clip's model, and the vectors of both.
    """
    opened = load_bundle(bundle)
    section = opened.manifest.image
    pictures = probe_pictures(section.height, section.width)[:3]
    ids = Tokenizer.from_bundle(opened).encode(texts)
    engine = OnnxEngine.load(opened, "cpu", threads=1)
    images, vectors = engine.encode_images(pictures), engine.encode_texts(ids)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (section.mean, section.std))
    padded = np.full((len(ids), opened.manifest.text.max_length), opened.manifest.text.pad_id)
    padded[:, : ids.shape[1]] = ids
    return (pixels - mean) / std, torch.from_numpy(padded), torch.from_numpy(images), torch.from_numpy(vectors)


def assert_encodes_as(model: Any, bundle: Path, texts: Sequence[str] = LABELS) -> Tensor:
    """Compare a bundle with open_clip's own model; return the ids of the texts."""
    pixels, ids, images, vectors = encoded(bundle, texts)
    with torch.no_grad():
        wanted, wanted_texts = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
    assert images.std(0).max() > 1e-3  # pictures differ, so the comparison means something
    torch.testing.assert_close(images, wanted, atol=2e-5, rtol=0)
    torch.testing.assert_close(vectors, wanted_texts, atol=2e-5, rtol=0)
    return ids


@pytest.mark.parametrize(
    ("name", "padding"),
    [
        ("convnext_large_d", "longest"),
        ("EVA01-g-14", "longest"),
        ("EVA02-B-16", "longest"),
        ("MobileCLIP-B", "longest"),
        ("MobileCLIP2-L-14", "fixed"),
        ("PE-Core-B-16", "longest"),
        ("ViTamin-S", "longest"),
        ("coca_ViT-B-32", "fixed"),
    ],
)
def test_a_model_with_clips_tokenizer_is_served(name: str, padding: str, tmp_path: Path) -> None:
    """The vectors are open_clip's; a text is padded only where padding counts."""
    config = small_config(name, vocab_size=VOCABULARY)
    model = built(config)
    folder = with_clip_tokenizer(write(tmp_path / name, config, model))
    source = load_model(folder, SourceOptions())
    assert padding == source.text.padding
    assert source.architecture == f"open_clip/{config['vision_cfg'].get('timm_model_name') or 'vit'}"
    ids = assert_encodes_as(model, exported(source, tmp_path / "bundle"))
    assert VOCABULARY - 1 == ids.max()
    assert config["text_cfg"]["context_length"] == ids.shape[1]


def test_clips_tokenizer_has_open_clips_ids() -> None:
    """For the vocabulary that the package carries; cleaning is of the service."""
    import open_clip

    vocabulary = installed_vocabulary()
    assert vocabulary is not None
    backend = Backend.from_str(tokenizer_json(vocabulary, vocab_size=49408, end_of_text_id=49407).decode())
    for text in ("a photo of a cat.", "Zürich, 1848: it's 30°", "犬 and 🐕", ""):
        ids = open_clip.SimpleTokenizer()(text)[0].tolist()
        assert backend.encode(text).ids == ids[: ids.index(49407) + 1]


def test_clipa_reads_at_the_last_place_of_a_text(tmp_path: Path) -> None:
    """Its tokenizer is BERT's with padding in the place of the last token, which ``strip_sep_token`` says."""
    config = small_config("ViT-L-14-CLIPA", vocab_size=40)
    model = built(config)
    source = load_model(with_bert_tokenizer(write(tmp_path / "clipa", config, model)), SourceOptions())
    assert ("fixed", 0, 0) == (source.text.padding, source.text.pad_id, source.text.end_of_text_id)
    ids = assert_encodes_as(model, exported(source, tmp_path / "bundle"))
    backend = Backend.from_file(str(tmp_path / "clipa/tokenizer.json"))
    for row, text in zip(ids.tolist(), ("a photo of a cat.", "two DOGS &"), strict=True):
        theirs = [0 if token == 3 else token for token in backend.encode(text).ids]
        assert theirs == row[: len(theirs)]
        assert not any(row[len(theirs) :])


def test_a_siglip_without_a_text_projection_scores_by_sigmoids(tmp_path: Path) -> None:
    """SO400M-i18n: texts are canonicalised, and the bias of the scores is the file's."""
    config = small_config("ViT-SO400M-16-SigLIP-i18n-256", vocab_size=250_000)
    config["embed_dim"] = config["text_cfg"]["width"] = 64
    model = built(config)
    folder = with_sentence_pieces(write(tmp_path / "siglip", config, model), start="▁")
    source = load_model(folder, SourceOptions())
    assert isinstance(source.scoring, SigmoidScoring)
    assert -10 == pytest.approx(source.scoring.logit_bias, abs=0.5)
    once = assert_encodes_as(model, exported(source, tmp_path / "bundle"), ["A photo, of a CAT!", "a photo of a cat"])
    assert once[0].equal(once[1])


HUGGING_FACE = {
    "nllb-clip-base-siglip": (
        "facebook/nllb-200-distilled-600M",
        {"d_model": 64, "encoder_ffn_dim": 64, "encoder_layers": 1},
        "eng_Latn",
    ),
}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_a_text_tower_of_transformers_is_served(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shape is known by the name in the configuration; padding is masked, so a text may be padded."""
    tower, smaller, start = HUGGING_FACE[name]
    shape = {**TEXT_TOWERS[tower].config, **smaller, "vocab_size": 64, "num_hidden_layers": 1}
    small = {tower: TextTower(vocab_size=64, width=64, layers=1, pad_id=1, config=shape)}
    monkeypatch.setattr(configs, "TEXT_TOWERS", small)
    monkeypatch.setattr(built_models, "TEXT_TOWERS", small)
    config = small_config(name, vocab_size=64)
    if config["vision_cfg"].get("timm_proj") == "none":
        config["embed_dim"] = 64
    (tmp_path / "config.json").write_text(json.dumps(shape))
    local = {**config["text_cfg"], "hf_model_name": str(tmp_path), "hf_model_pretrained": False}
    model = built({**config, "text_cfg": local, "custom_text": True})
    folder = with_sentence_pieces(write(tmp_path / "model", config, model), start=start)
    source = load_model(folder, SourceOptions())
    assert isinstance(source.scoring, SigmoidScoring if "siglip" in name else SoftmaxScoring)
    ids = assert_encodes_as(model, exported(source, tmp_path / "bundle"), ["a photo of a cat .", "two  dogs"])
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    theirs = backend.encode("a photo of a cat .").ids
    assert theirs == ids[0, : len(theirs)].tolist()


MULTILINGUAL: dict[str, tuple[str, dict[str, Any], Callable[[Path], Any]]] = {
    "xlm-roberta-base-ViT-B-32": (
        "xlm-roberta-base",
        {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1},
        write_xlm_r_tokenizer,
    ),
    "mt5-base-ViT-B-32": (
        "google/mt5-base",
        {"d_model": 64, "d_kv": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2},
        write_mt5_tokenizer,
    ),
    "BiomedCLIP": (
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1},
        write_bert_tokenizer,
    ),
}
BIOMED: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
    "text_cfg": {
        "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 24,
    },
}
"""BiomedCLIP's configuration, with small pictures and short texts."""


@pytest.mark.parametrize("name", MULTILINGUAL)
def test_labels_of_many_scripts_are_open_clips(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From text to vectors, with open_clip's own tokenizer."""
    import open_clip

    tower, smaller, write_tokenizer = MULTILINGUAL[name]
    folder = tmp_path / "model"
    vocab_size = len(write_tokenizer(folder))
    shape = {**TEXT_TOWERS[tower].config, **smaller, "vocab_size": vocab_size}
    pad_id = TEXT_TOWERS[tower].pad_id
    small = {tower: TextTower(vocab_size=vocab_size, width=64, layers=1, pad_id=pad_id, config=shape)}
    monkeypatch.setattr(configs, "TEXT_TOWERS", small)
    monkeypatch.setattr(built_models, "TEXT_TOWERS", small)
    config = small_config(name, vocab_size=vocab_size) if name != "BiomedCLIP" else BIOMED
    (tmp_path / "config.json").write_text(json.dumps(shape))
    local = {**config["text_cfg"], "hf_model_name": str(tmp_path), "hf_model_pretrained": False}
    model = built({**config, "text_cfg": local, "custom_text": True})
    theirs = open_clip.tokenizer.HFTokenizer(str(folder), context_length=24)(LABELS_OF_MANY_SCRIPTS)
    write(folder, config, model)
    ids = assert_encodes_as(
        model, exported(load_model(folder, SourceOptions()), tmp_path / "bundle"), LABELS_OF_MANY_SCRIPTS
    )
    assert theirs.equal(ids)
    with torch.no_grad():
        texts = model.encode_text(ids, normalize=True)
    assert (texts @ texts.T - torch.eye(len(texts))).max() < 1 - 1e-3  # labels differ


def test_a_mobile_clip_is_exported_verified_and_classified(tmp_path: Path) -> None:
    """The commands as a user gives them, and the service in a process of its own."""
    config = small_config("MobileCLIP2-S0", vocab_size=VOCABULARY)
    model = built(config)
    folder = with_clip_tokenizer(write(tmp_path / "MobileCLIP2-S0", config, model))
    bundle = tmp_path / "bundle"
    app(["export", str(folder), str(bundle)], standalone_mode=False)
    app(["verify", str(bundle)], standalone_mode=False)
    assert_encodes_as(model, bundle)
    manifest = load_bundle(bundle).manifest
    assert "open_clip/fastvit_mci0" == manifest.architecture
    recipe: Any = manifest.provenance.recipe
    assert config["vision_cfg"].items() <= recipe["model"]["settings"]["vision_cfg"].items()
    with http_server(bundle, tmp_path) as server:
        answer = httpx.post(
            f"{server.url}/v1/classify",
            files={"image": ("noise.png", encode(noise(80, 60), "PNG"))},
            data={"labels": ["cat", "old dogs"]},
            timeout=60,
        )
    assert 200 == answer.status_code, answer.text
    assert 1 == pytest.approx(sum(each["score"] for each in answer.json()["predictions"]), abs=1e-4)


def test_branches_become_one_convolution(tmp_path: Path) -> None:
    """MobileCLIP trains each layer as parallel branches; the export has one convolution in place of each."""
    config = small_config("MobileCLIP2-S0", vocab_size=VOCABULARY)
    folder = with_clip_tokenizer(write(tmp_path / "model", config, built(config)))
    source = load_model(folder, SourceOptions())
    image, _ = served_encoders(source, "fp32")
    kinds = ("conv_kxk", "conv_scale", "identity", "large_conv", "small_conv", "mixer.mixer")
    before = [name for name, _ in source.model.visual.named_modules() if name.endswith(kinds)]
    after = [name for name, _ in image.named_modules() if name.endswith(kinds)]
    assert len(before) > 10
    assert not after


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["vision_cfg"].update(timm_model_name="no_tower"), "cannot build no_tower: Unknown model"),
        (
            lambda m: m["vision_cfg"].update(image_size=96),
            "image_size is 96, timm's vit_pe_core_base_patch16_224 takes",
        ),
        (lambda m: m.update(embed_dim=48), "text.text_projection has shape [64, 32], the model has [64, 48]"),
        (lambda m: m["text_cfg"].update(layers=2), "lacks text.transformer.resblocks.1."),
    ],
)
def test_what_does_not_fit_is_one_line(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    """An unknown tower, another size, other weights."""
    config = small_config("PE-Core-B-16", vocab_size=VOCABULARY)
    folder = with_clip_tokenizer(write(tmp_path / "model", config, built(config)))
    change(config)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESSING}))
    with pytest.raises(SourceError) as caught:
        load_model(folder, SourceOptions())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_cannot_start_from_it(tmp_path: Path) -> None:
    """Recipes describe towers of our modules only."""
    config = small_config("PE-Core-B-16", vocab_size=VOCABULARY)
    folder = with_clip_tokenizer(write(tmp_path / "model", config, built(config)))
    with pytest.raises(SourceError, match="open_clip builds; a run starts from one of CLIP and SigLIP"):
        open_start(str(folder), None, read_recipe(ROOT / "model_export/recipes/fine-tune.toml"), Console(quiet=True))


def test_every_model_with_published_weights_is_read() -> None:
    """All pretrained tags of the installed release, of which ours compute the older ones."""
    import open_clip

    kinds = Counter(
        model_config(open_clip.get_model_config(name), None, Path("open_clip_config.json"))[0].name
        for name, _ in open_clip.list_pretrained()
    )
    assert {"clip": 101, "siglip": 25, "open_clip": 70} == kinds


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3, with which `make run` installs it."""
    config = small_config("PE-Core-B-16", vocab_size=VOCABULARY)
    folder = with_clip_tokenizer(write(tmp_path / "model", config, built(config)))
    monkeypatch.setitem(sys.modules, "open_clip.model", None)
    monkeypatch.setattr(sys, "argv", ["anyclass-export", "export", str(folder), str(tmp_path / "bundle")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert 3 == caught.value.code
    assert "open_clip is not installed; this needs the extra open-clip: " in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
