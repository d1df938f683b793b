"""Labels of many scripts, from text to logits: as transformers and open_clip compute them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel, DistilBertModel, MetaClip2Model, Siglip2Model, Siglip2Tokenizer
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from model_export.checkpoints.at_hand import at_hand
from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import SourceError
from model_export.export.console import Narrator
from model_export.export.convert import Conversion, convert
from model_export.training.recipe import read_recipe
from model_export.training.starts import open_start
from service.model.engine.engine import OnnxEngine
from service.model.loading import load_bundle
from service.model.manifest import SigmoidScoring
from service.model.tokenizer import Tokenizer
from tests.support.http_server import http_server
from tests.support.hub_server import Hub, hub_client
from tests.support.pictures import encode, noise
from tests.support.places import ROOT
from tests.support.tiny_hugging_face import write_tiny_clip
from tests.support.tiny_multilingual import LABELS, write_metaclip_2, write_naflex, write_text_model

ATOL = 1e-4

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub without models, with a cache of its own."""
    with hub_client(tmp_path / "home", monkeypatch) as running:
        yield running


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a repository with this folder's content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def served(model_id: str, bundle: Path) -> tuple[Tensor, Tensor]:
    """Export a model of the hub, and return noise as bytes ``[3, height, width, 3]`` with the logits of the labels."""
    convert(Conversion(model_id, SourceOptions()), bundle, narrator=Narrator(Console(quiet=True)))
    opened = load_bundle(bundle)
    section, scoring = opened.manifest.image, opened.manifest.scoring
    pixels = np.random.default_rng(0).integers(0, 256, (3, section.height, section.width, 3), np.uint8)
    engine = OnnxEngine.load(opened, "cpu", threads=1)
    texts = engine.encode_texts(Tokenizer.from_bundle(opened).encode(LABELS))
    logits = scoring.logit_scale * engine.encode_images(pixels) @ texts.T
    engine.close()
    bias = scoring.logit_bias if isinstance(scoring, SigmoidScoring) else 0.0
    assert np.ptp(logits, axis=1).min() > 100 * ATOL  # labels differ, so that agreement says something
    return torch.from_numpy(pixels), torch.from_numpy(logits) + bias


def assert_answers_in_korean(bundle: Path, folder: Path) -> None:
    """Classify a picture over HTTP."""
    labels = ["고양이", "강아지 사진"]
    with http_server(bundle, folder) as server:
        answer = httpx.post(
            f"{server.url}/v1/classify",
            files={"image": ("noise.png", encode(noise(80, 60), "PNG"))},
            data={"labels": labels},
            timeout=60,
        )
    assert 200 == answer.status_code, answer.text
    scores = {each["label"]: each["score"] for each in answer.json()["predictions"]}
    assert set(labels) == scores.keys()
    assert scores[labels[0]] != scores[labels[1]]
    assert "warnings" not in answer.json()


def normalised(pixels: Tensor, bundle: Path) -> Tensor:
    """Return bytes as a tower of transformers takes them, ``[3, 3, height, width]``."""
    section = load_bundle(bundle).manifest.image
    return ((pixels / 255 - torch.tensor(section.mean)) / torch.tensor(section.std)).permute(0, 3, 1, 2)


def test_metaclip_2_is_transformers(hub: Hub, tmp_path: Path) -> None:
    """CLIP's towers with XLM-V's tokens; padding behind the end of a text changes nothing."""
    folder, bundle = write_metaclip_2(tmp_path / "model"), tmp_path / "bundle"
    hub.add("acme/metaclip-2", files_of(folder))
    pixels, logits = served("acme/metaclip-2", bundle)
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = MetaClip2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        said = model(**theirs(list(LABELS), padding=True, return_tensors="pt"), pixel_values=normalised(pixels, bundle))
    torch.testing.assert_close(logits, said.logits_per_image, atol=ATOL, rtol=0)
    text = load_bundle(bundle).manifest.text
    assert ("longest", 1, 2) == (text.padding, text.pad_id, text.end_of_text_id)
    assert_answers_in_korean(bundle, tmp_path)


def test_another_end_of_text_is_refused(tmp_path: Path) -> None:
    """The tower reads at the id of the configuration, which must be the tokenizer's."""
    folder = write_metaclip_2(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"eos_token_id is 5, which is not the tokenizer's </s>"):
        load_model(folder, SourceOptions())


def test_naflex_with_a_fixed_grid_is_transformers(hub: Hub, tmp_path: Path) -> None:
    """Of square pictures the published preprocessing makes the same patches."""
    folder, bundle = write_naflex(tmp_path / "model"), tmp_path / "bundle"
    hub.add("acme/naflex", files_of(folder))
    pixels, logits = served("acme/naflex", bundle)
    manifest = load_bundle(bundle).manifest
    assert (32, 32, "squash", "bilinear") == (
        manifest.image.height,
        manifest.image.width,
        manifest.image.resize,
        manifest.image.interpolation,
    )
    recipe: Any = manifest.provenance.recipe
    assert "a fixed grid of patches" in recipe["preparation"]
    theirs: Any = Siglip2Tokenizer.from_pretrained(folder)
    ids = theirs(list(LABELS), padding="max_length", max_length=32, return_tensors="pt")["input_ids"]
    model: Any = Siglip2Model.from_pretrained(folder).eval()
    processor = Siglip2ImageProcessorPil.from_pretrained(folder)
    pictures = processor([each.numpy() for each in pixels], return_tensors="pt")
    with torch.no_grad():
        said = model(input_ids=ids, **pictures)
    torch.testing.assert_close(logits, said.logits_per_image, atol=ATOL, rtol=0)
    assert_answers_in_korean(bundle, tmp_path)


TEXT_MODEL = "sentence-transformers/clip-ViT-B-32-multilingual-v1"
IMAGE_MODEL = "sentence-transformers/clip-ViT-B-32"


def test_a_text_model_is_served_with_its_image_model(hub: Hub, tmp_path: Path) -> None:
    """Two repositories become one bundle: DistilBERT, masked mean and dense layer beside CLIP's image tower."""
    clip = write_tiny_clip(tmp_path / "clip")
    folder, bundle = write_text_model(tmp_path / "text", 24), tmp_path / "bundle"
    modules = [{"path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    inner = {f"0_CLIPModel/{name}": content for name, content in files_of(clip).items()}
    commit = hub.add(IMAGE_MODEL, {**inner, "modules.json": json.dumps(modules).encode()})
    hub.add(TEXT_MODEL, files_of(folder))
    pixels, logits = served(TEXT_MODEL, bundle)
    manifest = load_bundle(bundle).manifest
    assert ("clip-vit-b-32-multilingual-v1", "longest", 24) == (
        manifest.name,
        manifest.text.padding,
        manifest.text.max_length,
    )
    recipe: Any = manifest.provenance.recipe
    assert f"{IMAGE_MODEL}@{commit}" == recipe["image_model"]
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    batch = theirs(list(LABELS), padding=True, return_tensors="pt")
    text: Any = DistilBertModel.from_pretrained(folder).eval()
    image: Any = CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        states = text(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        dense = load_file(folder / "2_Dense/model.safetensors")["linear.weight"]
        vectors = (states * mask).sum(1) / mask.sum(1) @ dense.T
        pictures = image.get_image_features(pixel_values=normalised(pixels, bundle)).pooler_output
        scale = image.logit_scale.exp()
    wanted = scale * functional.normalize(pictures) @ functional.normalize(vectors).T
    torch.testing.assert_close(logits, wanted, atol=ATOL, rtol=0)
    assert_answers_in_korean(bundle, tmp_path)


def test_a_text_model_without_its_image_model_is_refused(hub: Hub, tmp_path: Path) -> None:
    """Before weights are downloaded: no name of an image model, or one with other vectors."""
    clip = files_of(write_tiny_clip(tmp_path / "clip"))
    hub.add("acme/clip", clip)
    hub.add("acme/text", files_of(write_text_model(tmp_path / "text", 20)))
    for options, message in (
        (SourceOptions(), "acme/text: is a text model alone; name the model .* such as --image-model sentence-"),
        (SourceOptions(image_model="acme/clip"), "acme/clip: is no model with vectors of 20"),
        (SourceOptions(image_model=str(tmp_path / "none")), "none: is no folder and no hub id"),
    ):
        with pytest.raises(SourceError, match=message):
            at_hand("acme/text", options)
    assert not [sent for sent in hub.sent if sent.name.endswith(".safetensors")]


def test_a_run_cannot_start_from_a_text_model(hub: Hub, tmp_path: Path) -> None:
    """Its towers are of two models: one line says so and names the one to start from, before any weights."""
    hub.add(IMAGE_MODEL, files_of(write_tiny_clip(tmp_path / "clip")))
    hub.add(TEXT_MODEL, files_of(write_text_model(tmp_path / "text", 24)))
    recipe = read_recipe(ROOT / "model_export/recipes/fine-tune.toml")
    message = f"is a text model onto the vectors of {IMAGE_MODEL}; .* such as {IMAGE_MODEL}$"
    with pytest.raises(SourceError, match=message):
        open_start(TEXT_MODEL, None, recipe, Console(quiet=True))
    assert not [sent for sent in hub.sent if sent.name.endswith(".safetensors")]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"model_type": "bert"}, "model_type is bert; of the text models .* only DistilBERT is read"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by mean_tokens, max_tokens; one of"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"}, "without an activation"),
        ("sentence_bert_config.json", {"max_seq_length": 41}, "up to 41 tokens, the tower has 40 positions"),
    ],
)
def test_what_a_text_model_may_not_say_is_refused(
    name: str, change: dict[str, object], message: str, tmp_path: Path
) -> None:
    """Each file states what decides a vector."""
    folder = write_text_model(tmp_path / "text", 20)
    (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **change}))
    with pytest.raises(SourceError, match=message):
        at_hand(str(folder), SourceOptions(image_model="acme/clip"))


def test_positions_that_make_no_square_are_refused(tmp_path: Path) -> None:
    """No square picture has as many patches."""
    folder = write_naflex(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_patches"] = 15
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="15 is not a square"):
        load_model(folder, SourceOptions())
