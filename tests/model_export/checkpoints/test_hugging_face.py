import json
import math
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from model_export.checkpoints.hugging_face import load
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.errors import SourceError
from model_export.export.from_weights import export_model
from model_export.families.clip.hugging_face import read_clip
from model_export.families.siglip.hugging_face import read_siglip
from service.images.decoding import decode
from service.model.arrays import Vectors
from service.model.engine.engine import OnnxEngine
from service.model.engine.providers import resolve
from service.model.loading import load_bundle
from service.model.manifest import FileEntry, Manifest, SigmoidScoring, SoftmaxScoring
from service.model.scoring import cosines
from service.model.tokenizer import Tokenizer
from tests.model_export.conftest import Heard
from tests.model_export.families.test_tokenizers import canonical
from tests.support.pictures import noise
from tests.support.places import ROOT
from tests.support.tiny_hugging_face import (
    SIGLIP_CONTEXT,
    siglip_tokenizer,
    write_gemma_tokenizer,
    write_tiny_clip,
    write_tiny_siglip,
)

Weights = dict[str, torch.Tensor]

ATOL = 1e-4
DISTINCT = 100 * ATOL
"""How far logits must differ from text to text, or agreement would say nothing."""
EXAMPLES = sorted((ROOT / "examples").glob("*.jpg"))
ODD_SIZES = [(1, 1), (33, 32), (37, 32), (7, 50), (301, 199)]
TEXTS = ["a photo of a cat.", "A rocket!", "a cup of tea and a very old oak tree", "Zürich, 1848", "犬"]

# An export takes some seconds, on a machine that is busy training many more.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def pristine_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a good CLIP folder, to be copied."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny_CLIP")


@pytest.fixture(scope="module")
def pristine_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a good SigLIP folder, to be copied."""
    return write_tiny_siglip(tmp_path_factory.mktemp("siglip") / "tiny-siglip")


@pytest.fixture
def clip(pristine_clip: Path, tmp_path: Path) -> Path:
    """Return a copy of the good CLIP folder, to be spoilt."""
    return Path(shutil.copytree(pristine_clip, tmp_path / pristine_clip.name))


@pytest.fixture
def siglip(pristine_siglip: Path, tmp_path: Path) -> Path:
    """Return a copy of the good SigLIP folder, to be spoilt."""
    return Path(shutil.copytree(pristine_siglip, tmp_path / pristine_siglip.name))


@pytest.fixture(scope="module")
def clip_bundle(pristine_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the CLIP folder's bundle. Not to be written to."""
    bundle = tmp_path_factory.mktemp("bundle") / "clip"
    export(pristine_clip, bundle)
    return bundle


def export(source: Path, bundle: Path, options: SourceOptions | None = None) -> Manifest:
    """Export a folder."""
    return export_model(load(source, options or SourceOptions()), bundle, listener=Heard())


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(folder: Path, change: Callable[[Weights], object]) -> None:
    """Change a folder's model.safetensors."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def refusal(folder: Path, options: SourceOptions | None = None) -> str:
    """Return the one line that a folder is refused with."""
    with pytest.raises(SourceError) as caught:
        load(folder, options or SourceOptions())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_weights(first: ModelSource, second: ModelSource) -> bool:
    """Whether two sources have equal models."""
    a, b = first.model.state_dict(), second.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


# --- parity with transformers ----------------------------------------------------------------------------------------


def pictures() -> list[bytes]:
    """Return real photos, and odd sizes of noise."""
    encoded = [photo.read_bytes() for photo in EXAMPLES]
    for size in ODD_SIZES:
        buffer = BytesIO()
        noise(*size).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def served(bundle_path: Path) -> Vectors:
    """Compute the logits of every picture and text with the code that serves: float32 `[pictures, texts]`."""
    bundle = load_bundle(bundle_path)
    manifest = bundle.manifest
    engine = OnnxEngine.load(bundle, resolve("cpu"))
    try:
        images = engine.encode_images(np.stack([decode(data, manifest.image) for data in pictures()]))
        texts = engine.encode_texts(Tokenizer.from_bundle(bundle).encode(TEXTS))
    finally:
        engine.close()
    bias = manifest.scoring.logit_bias if isinstance(manifest.scoring, SigmoidScoring) else 0.0
    scaled: Vectors = np.float32(manifest.scoring.logit_scale) * cosines(images, texts) + np.float32(bias)
    return scaled


def clip_pixels(folder: Path) -> torch.Tensor:
    """Prepare every picture with transformers, but for the crop, which is CLIP's reference's."""
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    edge = processor.crop_size["height"]
    cropped = []
    for data in pictures():
        image = Image.open(BytesIO(data)).convert("RGB")
        (resized,) = processor(image, do_center_crop=False, do_rescale=False, do_normalize=False)["pixel_values"]
        top, left = (round((length - edge) / 2) for length in resized.shape[1:])
        cropped.append(np.asarray(resized)[:, top : top + edge, left : left + edge].astype(np.uint8))
    pixels: torch.Tensor = processor(
        cropped, do_resize=False, do_center_crop=False, input_data_format="channels_first", return_tensors="pt"
    )["pixel_values"]
    return pixels


@torch.no_grad()
def test_clips_logits_are_those_of_transformers(pristine_clip: Path, clip_bundle: Path) -> None:
    """From encoded photos, odd sizes and texts to logits, through the bundle and through `CLIPModel`."""
    tokens = CLIPTokenizer.from_pretrained(pristine_clip)(TEXTS, padding=True, return_tensors="pt")
    model = CLIPModel.from_pretrained(pristine_clip).eval()
    theirs = model(**tokens, pixel_values=clip_pixels(pristine_clip)).logits_per_image.numpy()

    assert (len(EXAMPLES) + len(ODD_SIZES), len(TEXTS)) == theirs.shape
    assert theirs.std(axis=1).min() > DISTINCT
    np.testing.assert_allclose(served(clip_bundle), theirs, rtol=0, atol=ATOL)


@torch.no_grad()
def test_siglips_logits_are_those_of_transformers(pristine_siglip: Path, tmp_path: Path) -> None:
    """The same of `SiglipModel`, which gets texts in canonical form, padded to the context."""
    export(pristine_siglip, tmp_path / "bundle")

    rows = [siglip_tokenizer().encode(canonical(text)).ids for text in TEXTS]
    ids = torch.tensor([row + [1] * (SIGLIP_CONTEXT - len(row)) for row in rows])
    images = [Image.open(BytesIO(data)).convert("RGB") for data in pictures()]
    pixels = SiglipImageProcessorPil.from_pretrained(pristine_siglip)(images, return_tensors="pt")["pixel_values"]
    model = SiglipModel.from_pretrained(pristine_siglip).eval()
    theirs = model(input_ids=ids, pixel_values=pixels).logits_per_image.numpy()

    assert theirs.std(axis=1).min() > DISTINCT
    np.testing.assert_allclose(served(tmp_path / "bundle"), theirs, rtol=0, atol=ATOL)


def test_the_bundle_says_what_the_folder_says(pristine_clip: Path, pristine_siglip: Path) -> None:
    """Scale, bias, preprocessing and padding are those of the files; the model is ready to be exported."""
    clip, siglip = load(pristine_clip, SourceOptions()), load(pristine_siglip, SourceOptions())

    assert ("clip/vit", 24, "longest", 24) == (clip.architecture, clip.dim, clip.text.padding, clip.text.max_length)
    assert ["none", "none"] == [clip.text.cleaning, siglip.text.cleaning]
    assert isinstance(clip.scoring, SoftmaxScoring)
    assert clip.scoring.logit_scale == pytest.approx(20)
    assert ("siglip/vit", 32, "fixed", 64) == (
        siglip.architecture,
        siglip.dim,
        siglip.text.padding,
        siglip.text.max_length,
    )
    assert isinstance(siglip.scoring, SigmoidScoring)
    assert siglip.scoring.logit_scale == pytest.approx(40)
    assert siglip.scoring.logit_bias == -9.5
    assert ("shortest", "squash") == (clip.image.resize, siglip.image.resize)
    assert not clip.model.training
    assert not any(parameter.requires_grad for parameter in siglip.model.parameters())
    assert clip.provenance.source_sha256 == FileEntry.of(pristine_clip / "model.safetensors").sha256
    recipe = clip.provenance.recipe
    assert recipe is not None
    assert "gelu" == recipe["model"]["text"]["activation"]  # type: ignore[index, call-overload]


def test_names_follow_from_what_is_known(clip: Path) -> None:
    """The folder's name, else the hub id's, else what the user says; the hub id is an alias without its revision."""
    options = SourceOptions(source_id="Owner/ViT_B-32@0123abc", licence="MIT")
    said = SourceOptions(source_id="Owner/ViT_B-32", name="My Own")
    sources = [load(clip, given) for given in (SourceOptions(), options, said)]

    assert ["tiny_clip", "vit_b-32", "my-own"] == [source.name for source in sources]
    assert [(), ("Owner/ViT_B-32",), ("Owner/ViT_B-32",)] == [source.aliases for source in sources]
    assert ["tiny_CLIP", "Owner/ViT_B-32@0123abc", "Owner/ViT_B-32"] == [s.provenance.source for s in sources]
    assert "MIT" == sources[1].provenance.licence
    assert "no name can be made of it" in refusal(clip, SourceOptions(name="犬"))


# --- the same weights in other files ---------------------------------------------------------------------------------


def as_shards(folder: Path) -> list[Path]:
    """Save a folder's weights again, split over several files."""
    CLIPModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return sorted(folder.glob("model-*.safetensors"))


def as_pickles(folder: Path) -> None:
    """Save a folder's weights again as torch does, split over two files."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    places: dict[str, str] = {}
    for part, chosen in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-0000{part}-of-00002.bin"
        torch.save({name: weights[name] for name in chosen}, folder / file)
        places |= dict.fromkeys(chosen, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()


def test_weights_in_several_files_give_the_same_revision(clip: Path, clip_bundle: Path, tmp_path: Path) -> None:
    """Only the provenance differs: its digest is over those of all files."""
    whole = load_bundle(clip_bundle).manifest
    shards = as_shards(clip)
    assert len(shards) > 2

    split = export(clip, tmp_path / "bundle")

    assert whole.revision == split.revision
    assert whole.provenance.source_sha256 != split.provenance.source_sha256
    shards[0].rename(clip / "moved.safetensors")
    assert refusal(clip) == f"{shards[0]}: is missing; model.safetensors.index.json names it: download it again"


def test_weights_saved_by_torch_are_the_same(clip: Path, pristine_clip: Path) -> None:
    """One file or several; safetensors are taken where both are there."""
    expected = load(pristine_clip, SourceOptions())
    weights = load_file(clip / "model.safetensors")
    as_pickles(clip)
    assert same_weights(expected, load(clip, SourceOptions()))

    (clip / "pytorch_model.bin.index.json").unlink()
    torch.save(weights, clip / "pytorch_model.bin")
    assert same_weights(expected, load(clip, SourceOptions()))

    (clip / "pytorch_model.bin").write_bytes(b"not looked at")
    save_file(weights, clip / "model.safetensors")
    assert same_weights(expected, load(clip, SourceOptions()))


def test_half_precision_is_computed_with_in_float32(clip: Path) -> None:
    """The values are those of the file."""
    edit_weights(clip, lambda w: w.update({name: tensor.half() for name, tensor in w.items()}))
    loaded = load(clip, SourceOptions()).model.state_dict()

    assert {torch.float32} == {tensor.dtype for tensor in loaded.values()}
    expected = load_file(clip / "model.safetensors")["text_projection.weight"]
    assert torch.equal(expected.float().T, loaded["text.text_projection"])


def test_buffers_of_older_checkpoints_are_left_out(clip: Path, siglip: Path) -> None:
    """Both towers once carried their position ids, and CLIP's scale was of shape [1] in some."""
    for folder in (clip, siglip):
        expected = load(folder, SourceOptions())
        for tower in ("text_model", "vision_model"):
            name = f"{tower}.embeddings.position_ids"
            edit_weights(folder, partial(dict.update, **{name: torch.arange(9)[None]}))
        edit_weights(folder, lambda w: w.update(logit_scale=w["logit_scale"].reshape(1)))
        assert same_weights(expected, load(folder, SourceOptions()))


# --- configurations of every age -------------------------------------------------------------------------------------


def test_what_a_configuration_leaves_out_has_the_published_default() -> None:
    """Every default of ours is that of transformers' configuration classes."""
    for ours, theirs in (
        (read_clip({}, Path("config.json")), CLIPConfig()),
        (read_siglip({"text_config": None}, Path("config.json")), SiglipConfig()),
    ):
        published = theirs.to_dict()
        for name, value in ours.model_dump().items():
            if isinstance(value, dict):
                # transformers fills SigLIP's projection in from the width; here it is left open.
                known = {**published[name], "projection_size": None}
                assert value == {field: known[field] for field in value}
            else:
                assert published[name] == value


def test_a_configuration_that_leaves_defaults_out_is_read(clip: Path) -> None:
    """As transformers writes it, where only what differs is said."""
    expected = load(clip, SourceOptions())
    edit_json(clip / "config.json", lambda c: [c["text_config"].pop(n) for n in ("layer_norm_eps", "model_type")])
    edit_json(clip / "config.json", lambda c: c["vision_config"].pop("hidden_act"))
    edit_json(clip / "config.json", lambda c: c["vision_config"].update(image_size=[32, 32], num_channels=None))
    edit_json(clip / "config.json", lambda c: c["text_config"].update(eos_token_id=[c["text_config"]["eos_token_id"]]))

    assert same_weights(expected, load(clip, SourceOptions()))


def test_of_a_tower_that_is_said_twice_the_second_counts(clip: Path) -> None:
    """Older files have text_config_dict beside text_config; transformers takes it, and so do we."""
    edit_json(clip / "config.json", lambda c: c.update(text_config_dict=dict(c["text_config"])))
    edit_json(clip / "config.json", lambda c: c["text_config"].update(num_hidden_layers=7, hidden_act="quick_gelu"))
    theirs = CLIPConfig.from_pretrained(clip).text_config

    recipe = load(clip, SourceOptions()).provenance.recipe
    assert recipe is not None
    text: Any = recipe["model"]["text"]  # type: ignore[index, call-overload]
    assert (theirs.num_hidden_layers, theirs.hidden_act) == (text["layers"], text["activation"]) == (2, "gelu")


@torch.no_grad()
def test_an_end_of_text_of_2_is_the_tokenizers(clip: Path) -> None:
    """Older configurations say eos_token_id 2, whatever the tokenizer's is; the feature is read where it should be."""
    edit_json(clip / "config.json", lambda c: c["text_config"].update(eos_token_id=2))
    source = load(clip, SourceOptions())
    ids = CLIPTokenizer.from_pretrained(clip)(TEXTS, padding=True, return_tensors="pt").input_ids
    theirs = CLIPModel.from_pretrained(clip).eval().get_text_features(input_ids=ids).pooler_output

    assert source.text.end_of_text_id == ids.max() != 2
    np.testing.assert_allclose(source.model.encode_text(ids).numpy(), theirs.numpy(), atol=1e-5)


@pytest.mark.parametrize("hidden_act", ["gelu", "quick_gelu"])
def test_the_activation_comes_from_the_configuration(clip: Path, hidden_act: str) -> None:
    """Of each tower by itself; what the user says may not contradict it."""
    edit_json(clip / "config.json", lambda c: c["vision_config"].update(hidden_act=hidden_act))
    recipe = load(clip, SourceOptions()).provenance.recipe
    assert recipe is not None
    model: Any = recipe["model"]
    assert (hidden_act, "gelu") == (model["image"]["activation"], model["text"]["activation"])
    assert "states the activation, which is not gelu_tanh" in refusal(clip, SourceOptions(activation="gelu_tanh"))


def test_siglip_2_is_read_with_its_own_tokenizer(siglip: Path) -> None:
    """Its texts are padded with the tokenizer's 0, whatever default the configuration has for the first generation."""
    write_gemma_tokenizer(siglip)
    size = Backend.from_file(str(siglip / "tokenizer.json")).get_vocab_size()
    edit_json(siglip / "config.json", lambda c: c["text_config"].update(vocab_size=size))
    name = "text_model.embeddings.token_embedding.weight"
    edit_weights(siglip, lambda w: w.update({name: torch.ones(size, 32)}))

    assert (0, 1) == (load(siglip, SourceOptions()).text.pad_id, load(siglip, SourceOptions()).text.end_of_text_id)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(model_type="siglip_vision_model"),
            "model_type is siglip_vision_model; clip, siglip, metaclip_2 and siglip2 can be exported; this",
        ),
        (lambda c: c.update(auto_map={"AutoModel": "x.Y"}), "wants code of the repository to be run (auto_map)"),
        (lambda c: c.pop("text_config"), "lacks text_config: it does not describe both towers of a CLIP"),
        (lambda c: c.update(vision_config=None), "lacks vision_config: it"),
        (lambda c: c.pop("model_type"), "model_type is None"),
        (lambda c: c.update(model_type=["clip"]), "model_type is ['clip']"),
        (lambda c: c["text_config"].update(layer_norm_eps=1e-12), "text_config.layer_norm_eps is 1e-12; only 1e-05"),
        (lambda c: c["vision_config"].update(layer_norm_eps=1e-6), "vision_config.layer_norm_eps is 1e-06"),
        (lambda c: c["vision_config"].update(hidden_act="relu"), "vision_config.hidden_act 'relu' is not known"),
        (lambda c: c["text_config"].update(hidden_act="gelu_new"), "text_config.hidden_act 'gelu_new' is not known"),
        (lambda c: c["vision_config"].update(num_channels=1), "vision_config.num_channels: Input should be 3"),
        (lambda c: c["vision_config"].update(image_size=[32, 16]), "vision_config.image_size: "),
        (lambda c: c["vision_config"].update(patch_size=7), "image_size 32 is not a multiple of patch_size 7"),
        (lambda c: c["text_config"].update(eos_token_id=99999), "end_of_text_id and pad_id must be below vocab_size"),
        (lambda c: c["text_config"].update(hidden_size="wide"), "text_config.hidden_size: "),
        (lambda c: c.update(text_config=[]), "text_config must be a JSON object"),
    ],
)
def test_a_clip_that_cannot_be_exported_is_refused(
    clip: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """The field at fault is named, before the weights are read."""
    (clip / "model.safetensors").write_bytes(b"not looked at")
    edit_json(clip / "config.json", change)
    said = refusal(clip)
    assert said.startswith(f"{clip / 'config.json'}: ")
    assert message in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["text_config"].update(layer_norm_eps=1e-5), "text_config.layer_norm_eps is 1e-05; only 1e-06"),
        (lambda c: c["text_config"].update(hidden_act="gelu"), "the towers' hidden_act differ"),
        (lambda c: c["vision_config"].update(vision_use_head=False), "vision_config.vision_use_head: "),
        (lambda c: c["text_config"].update(projection_size=16), "must be the same"),
    ],
)
def test_a_siglip_that_cannot_be_exported_is_refused(
    siglip: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """The field at fault is named."""
    edit_json(siglip / "config.json", change)
    said = refusal(siglip)
    assert said.startswith(f"{siglip / 'config.json'}: ")
    assert message in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("visual_projection.weight"), "lacks visual_projection.weight"),
        (lambda w: w.pop("text_model.encoder.layers.1.mlp.fc2.bias"), "lacks text_model.encoder.layers.1.mlp.fc2.bias"),
        (lambda w: w.update(logit_bias=torch.zeros(1)), "has unknown logit_bias"),
        (
            lambda w: w.update({"vision_model.encoder.layers.2.mlp.fc1.bias": torch.zeros(96)}),
            "has unknown vision_model.encoder.layers.2.mlp.fc1.bias",
        ),
        (
            lambda w: w.update({"visual_projection.weight": torch.zeros(32, 24)}),
            "visual_projection.weight has shape [32, 24], the model has [24, 32]",
        ),
        (
            lambda w: w.update({"vision_model.embeddings.position_embedding.weight": torch.zeros(50, 32)}),
            "vision_model.embeddings.position_embedding.weight has shape [50, 32], the model has [17, 32]",
        ),
        (lambda w: w.update(logit_scale=torch.zeros(2)), "logit_scale has shape [2], the model has []"),
        (lambda w: w["logit_scale"].fill_(math.nan), "logit_scale holds NaN or infinity"),
        (lambda w: w["logit_scale"].fill_(-1000), "logit_scale -1000 is no logarithm of a scale"),
        (lambda w: w.update(logit_scale=torch.tensor(4)), "logit_scale has dtype torch.int64"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    clip: Path, change: Callable[[Weights], object], message: str
) -> None:
    """A missing, unknown, mis-shaped or not finite tensor is called as the file calls it."""
    edit_weights(clip, change)
    said = refusal(clip)
    assert said.startswith(f"{clip / 'model.safetensors'}: ")
    assert message in said


def test_another_models_files_are_refused(clip: Path, siglip: Path) -> None:
    """SigLIP's configuration with CLIP's weights, and SigLIP's preprocessing with CLIP's, do not go through."""
    mixed = Path(shutil.copytree(siglip, siglip.with_name("mixed")))
    shutil.copy(clip / "model.safetensors", mixed)
    assert "model.safetensors: has unknown text_projection.weight" in refusal(mixed)

    shutil.copy(siglip / "preprocessor_config.json", clip)
    assert "prepares pictures of 36x36, the model takes 32x32" in refusal(clip)


def test_fused_attention_of_another_width_is_refused(siglip: Path) -> None:
    """The pool's q, k and v are one tensor, whose shape is said as the file has it."""
    name = "vision_model.head.attention.in_proj_weight"
    edit_weights(siglip, lambda w: w.update({name: torch.zeros(64, 32)}))
    assert f"{name} has shape [64, 32], the model has [96, 32]" in refusal(siglip)


def test_preprocessing_that_cannot_be_said_is_refused(clip: Path) -> None:
    """The file and the field are named."""
    edit_json(clip / "preprocessor_config.json", lambda c: c.update(resample=0))
    assert refusal(clip).startswith(f"{clip / 'preprocessor_config.json'}: resample 0 (nearest) is not supported")


def test_a_missing_tokenizer_is_said_and_may_be_given(clip: Path) -> None:
    """One that the user names is taken where the folder has none, and only there."""
    expected = load(clip, SourceOptions())
    given = Path(shutil.move(clip / "tokenizer.json", clip.parent / "given.json"))
    assert refusal(clip).startswith(f"{clip}: holds no tokenizer (tokenizer.json, vocab.json with merges.txt, ")

    options = SourceOptions(tokenizer=given)
    assert expected.tokenizer == load(clip, options).tokenizer

    shutil.copy(given, clip / "tokenizer.json")
    assert "brings its own tokenizer; leave --tokenizer out" in refusal(clip, options)


def test_an_architecture_is_not_to_be_said(clip: Path) -> None:
    """The configuration says it."""
    assert "states the architecture; leave --arch out" in refusal(clip, SourceOptions(arch="ViT-B-32"))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\xff{broken", b"[1, 2"])
def test_a_corrupt_file_is_named(clip: Path, name: str, content: bytes) -> None:
    """Each file that is not readable is a refusal that begins with its path."""
    (clip / name).write_bytes(content)
    assert refusal(clip).startswith(f"{clip / name}: ")


def test_what_is_no_such_folder_is_refused(clip: Path, tmp_path: Path) -> None:
    """A file, a folder without a configuration, and one without weights are told apart."""
    assert refusal(clip / "config.json") == f"{clip / 'config.json'}: is not a folder with a config.json"
    (clip / "model.safetensors").unlink()
    assert refusal(clip).startswith(f"{clip}: holds no weights (model.safetensors or pytorch_model.bin")
    (clip / "config.json").unlink()
    assert "config.json: is missing; is this the folder of a Hugging Face model?" in refusal(clip)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": []}, "has no weight_map"),
        ({"weight_map": {"logit_scale": "../model.safetensors"}}, "names '../model.safetensors', which is not a file"),
        ({"weight_map": {"logit_scale": "/etc/passwd"}}, "names '/etc/passwd', which is not a file beside it"),
        ({"weight_map": {"a": "whole.safetensors", "b": "copy.safetensors"}}, "which another file has too"),
    ],
)
def test_an_index_that_does_not_hold_is_refused(clip: Path, index: dict[str, Any], message: str) -> None:
    """It may only name files beside it, each tensor once."""
    (clip / "model.safetensors").rename(clip / "whole.safetensors")
    shutil.copy(clip / "whole.safetensors", clip / "copy.safetensors")
    (clip / "model.safetensors.index.json").write_text(json.dumps(index))
    assert message in refusal(clip)


class Runs:
    """Pickled, it would make a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_a_pickle_that_wants_to_run_code_is_refused(clip: Path, tmp_path: Path) -> None:
    """Nothing of it is run."""
    (clip / "model.safetensors").unlink()
    made = tmp_path / "made"
    torch.save({"logit_scale": Runs(made)}, clip / "pytorch_model.bin")
    assert refusal(clip).startswith(f"{clip / 'pytorch_model.bin'}: ")
    (clip / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(made), protocol=2))
    assert refusal(clip).startswith(f"{clip / 'pytorch_model.bin'}: ")
    assert not made.exists()
