import copy
import importlib.metadata
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional

from model_export.bundles.verification import verify_bundle
from model_export.checkpoints import open_clip, openai
from model_export.checkpoints.assembly import assemble
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.checkpoints.open_clip import load, recognises
from model_export.checkpoints.open_clip_config import image_section, model_config
from model_export.errors import SourceError
from model_export.export.console import Narrator
from model_export.export.convert import Conversion, convert
from model_export.export.from_weights import export_model
from model_export.families.clip.config import ClipConfig, VisionTransformerConfig
from model_export.families.clip.family import CLIP
from model_export.families.clip.model import ClipModel
from model_export.families.family import ModelConfig
from model_export.families.open_clip_torch.config import OpenClipTorchConfig
from model_export.families.siglip.config import SiglipConfig
from model_export.families.siglip.family import SIGLIP as FAMILY
from model_export.families.siglip.open_clip import KEYS
from model_export.families.siglip.open_clip_tokenizer import read_canonical_tokenizer
from model_export.families.siglip.sizes import SHAPES
from model_export.families.sizes import SIZES
from service.model.engine.engine import OnnxEngine
from service.model.loading import load_bundle
from service.model.manifest import SigmoidScoring
from tests.support.clip_files import open_clip_config, with_own_text_tower, write_archive, write_open_clip
from tests.support.hub_server import hub_client
from tests.support.places import ROOT
from tests.support.reference_clip import reference, write_vocabulary
from tests.support.repositories import MARQO, NO_WEIGHTS, as_json

Weights = dict[str, Tensor]

SAFETENSORS = "open_clip_model.safetensors"
PICKLED = "open_clip_pytorch_model.bin"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer for the tiny models."""
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "bpe.txt")


def options(vocabulary: Path, **said: Any) -> SourceOptions:
    """Say what the files do not."""
    return SourceOptions(**{"tokenizer": vocabulary, "name": "tiny", **said})


def tiny(tower: str = "vit") -> tuple[dict[str, Any], Weights]:
    """Return a configuration as open_clip writes it, and weights that fit."""
    config, model = reference(tower)
    return open_clip_config(config), model.state_dict()


def refusal(path: Path, said: SourceOptions) -> str:
    """Return the one line that a source is refused with."""
    with pytest.raises(SourceError) as caught:
        load(path, said)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(first: ModelSource, second: ModelSource) -> None:
    """Compare weight by weight, and all else that a bundle's revision depends on."""
    for field in ("name", "aliases", "architecture", "dim", "image", "text", "scoring", "templates", "tokenizer"):
        assert getattr(first, field) == getattr(second, field)
    theirs = second.model.state_dict()
    assert first.model.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in first.model.state_dict().items())


# --- CLIP ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_model_in_four_layouts_is_one_bundle(vocabulary: Path, tmp_path: Path) -> None:
    """OpenAI's archive and state dict, open_clip's pickle and safetensors: the same weights, the same revision."""
    config, model = reference()
    said = open_clip_config(config)
    weights = model.state_dict()
    archive = write_archive(tmp_path / "archive.pt", model, config)
    torch.save(weights, tmp_path / "state.pt")
    sources = [
        openai.load(archive, options(vocabulary)),
        openai.load(tmp_path / "state.pt", options(vocabulary, activation="quick_gelu")),
        load(write_open_clip(tmp_path / "pickled", weights, said, PICKLED), options(vocabulary)),
        load(write_open_clip(tmp_path / "safe", weights, said, SAFETENSORS), options(vocabulary)),
    ]
    for source in sources:
        assert_same(sources[0], source)
    # An export takes seconds: the two layouts that differ most have to do.
    narrator = Narrator(Console(quiet=True))
    revisions = [
        export_model(source, tmp_path / f"bundle{number}", listener=narrator).revision
        for number, source in enumerate((sources[0], sources[3]))
    ]
    assert revisions[0] == revisions[1]


@pytest.mark.parametrize("tower", ["vit", "modified_resnet"])
def test_a_trainers_checkpoint_is_unwrapped(tower: str, vocabulary: Path, tmp_path: Path) -> None:
    """``state_dict`` and ``module.`` are taken off; either image tower is read."""
    said, weights = tiny(tower)
    source = load(write_open_clip(tmp_path / "run", weights, said, "epoch_3.pt"), options(vocabulary))
    assert source.architecture == f"clip/{tower}"
    assert isinstance(source.model, ClipModel)
    assert reference(tower)[0] == source.model.config
    assert source.provenance.recipe is not None
    assert source.provenance.recipe["layout"] == "open_clip"


def test_a_text_tower_of_its_own_is_read(vocabulary: Path, tmp_path: Path) -> None:
    """With ``custom_text`` its keys begin with ``text.``; the scale may have one element."""
    said, weights = tiny()
    plain = load(write_open_clip(tmp_path / "plain", weights, said, SAFETENSORS), options(vocabulary))
    said["model_cfg"]["custom_text"] = True
    own = with_own_text_tower({**weights, "logit_scale": weights["logit_scale"].reshape(1)})
    assert_same(plain, load(write_open_clip(tmp_path / "own", own, said, SAFETENSORS), options(vocabulary)))


def test_a_file_is_read_by_the_configuration_beside_it(vocabulary: Path, tmp_path: Path) -> None:
    """Instead of the folder, one of several files may be named."""
    said, weights = tiny()
    folder = write_open_clip(tmp_path / "run", weights, said, "a.pt")
    save_file(weights, folder / "b.safetensors")
    assert load(folder / "a.pt", options(vocabulary, name=None)).name == "a"
    found = refusal(folder, options(vocabulary))
    assert found.endswith(
        "holds no open_clip_model.safetensors; name the file of the weights (found: a.pt, b.safetensors)"
    )


def test_a_folder_with_safetensors_and_pickle_is_read_from_the_safe_one(vocabulary: Path, tmp_path: Path) -> None:
    """Hub folders hold the same weights twice."""
    said, weights = tiny()
    folder = write_open_clip(tmp_path / "run", weights, said, SAFETENSORS)
    (folder / PICKLED).write_bytes(b"never read")
    assert load(folder, options(vocabulary)).provenance.source == SAFETENSORS
    assert load(folder / SAFETENSORS, options(vocabulary, name=None)).name == "run"


def test_a_bare_file_is_read_with_the_architectures_name(tmp_path: Path) -> None:
    """Without the name, or with one whose activation is open, the error says what to add."""
    path = tmp_path / "bare.pt"
    torch.save({"state_dict": with_own_text_tower(tiny()[1])}, path)
    assert refusal(path, SourceOptions()).startswith(f"{path}: has no open_clip_config.json beside it; add --arch")
    assert "add --activation" in refusal(path, SourceOptions(arch="ViT-B-32"))
    vocabulary = write_vocabulary(tmp_path / "bpe.txt")
    said = refusal(path, SourceOptions(arch="ViT-B-32", activation="gelu", tokenizer=vocabulary))
    assert said.startswith(f"{vocabulary}: does not hold the vocabulary of 49408 tokens")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("text.ln_final.bias"), "lacks text.ln_final.bias"),
        (lambda w: w.update({"text.cls_emb": torch.zeros(1)}), "has unknown text.cls_emb"),
        (lambda w: w.update({"transformer.x": torch.zeros(1)}), "has unknown transformer.x"),
        (
            lambda w: w.update({"text.token_embedding.weight": torch.zeros(601, 128)}),
            "text.token_embedding.weight has shape [601, 128], the model has [600, 128]",
        ),
        (lambda w: w["visual.proj"].fill_(math.inf), "visual.proj holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_named_as_the_file_names_them(
    change: Callable[[Weights], object], message: str, vocabulary: Path, tmp_path: Path
) -> None:
    """A missing, unknown, mis-shaped or non-finite weight is one line."""
    said, weights = tiny()
    weights = with_own_text_tower(copy.deepcopy(weights))
    change(weights)
    folder = write_open_clip(tmp_path / "run", weights, said, SAFETENSORS)
    assert refusal(folder, options(vocabulary)) == f"{folder / SAFETENSORS}: {message}"


def test_what_the_configuration_says_cannot_be_said_again(vocabulary: Path, tmp_path: Path) -> None:
    """Options are for what the files do not tell."""
    said, weights = tiny()
    folder = write_open_clip(tmp_path / "run", weights, said, SAFETENSORS)
    assert "leave --arch out" in refusal(folder, options(vocabulary, arch="ViT-B-32"))
    assert "states the activation, quick_gelu; leave --activation out" in refusal(
        folder, options(vocabulary, activation="gelu")
    )


# --- configurations --------------------------------------------------------------------------------------------------

FILE = Path("open_clip_config.json")


def read_config(said: Any) -> ModelConfig:
    """Read ``model_cfg``."""
    return model_config(said, None, FILE)[1]


def test_every_part_of_a_configuration_counts() -> None:
    """Heads by their width, MLPs by their ratio, the activation, the end of text by the pooling."""
    said = open_clip_config(reference()[0])["model_cfg"]
    said |= {"quick_gelu": False}
    said["vision_cfg"] |= {"width": 160, "head_width": 80, "mlp_ratio": 4.3637, "image_size": [40, 40]}
    said["text_cfg"] |= {"pool_type": "eos", "eos_id": 7, "act_kwargs": {"approximate": "tanh"}}
    config = read_config(said)
    assert isinstance(config, ClipConfig)
    assert config.image == VisionTransformerConfig(
        image_size=40, patch_size=8, width=160, layers=2, heads=2, mlp_width=698, activation="gelu"
    )
    assert config.text.activation == "gelu_tanh"
    assert config.text.end_of_text_id == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("vision_cfg"), "lacks vision_cfg and text_cfg"),
        (lambda m: m.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda m: m["vision_cfg"].update(timm_model_name="hf-hub:acme/tower"), "vision_cfg.timm_model_name: "),
        (lambda m: m["vision_cfg"].update(timm_model_name="naflexvit_base_patch16_gap"), "pictures of any shape"),
        (lambda m: m["vision_cfg"].update(pool_type="max"), "vision_cfg.pool_type: "),
        (lambda m: m["vision_cfg"].update(image_size=[32, 64]), "image_size [32, 64] is not square"),
        (lambda m: m["vision_cfg"].update(patch_size=None), "vision_cfg.patch_size is missing"),
        (lambda m: m["vision_cfg"].update(patch_size=7), "image_size 32 is not a multiple of patch_size 7"),
        (lambda m: m["vision_cfg"].update(act_kwargs={}), "states quick_gelu and act_kwargs"),
        (lambda m: m["text_cfg"].update(hf_model_name="google/mt5-xxl"), "google/mt5-xxl, whose shape is unknown"),
        (lambda m: m["text_cfg"].update(tokenizer_mode="clips"), "text_cfg.tokenizer_mode: "),
        (lambda m: m["text_cfg"].update(pool_type="none"), "text_cfg.pool_type: "),
        (lambda m: m["text_cfg"].update(tokenizer_kwargs={"strip_sep_token": True}), "text_cfg.tokenizer_kwargs"),
        (lambda m: m["text_cfg"].update(heads=3), "width 128 is not a multiple of 3 heads"),
    ],
)
def test_a_model_that_a_bundle_cannot_express_is_refused_by_name(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """A setting that changes the model is never passed over."""
    said = open_clip_config(reference()[0])["model_cfg"]
    change(said)
    with pytest.raises(SourceError) as caught:
        read_config(said)
    assert str(caught.value).startswith(f"{FILE}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(multimodal_cfg={}),
        lambda m: m["vision_cfg"].update(timm_model_name="convnext_base"),
        lambda m: m["vision_cfg"].update(attentional_pool=True),
        lambda m: m["vision_cfg"].update(no_ln_pre=True),
        lambda m: m["vision_cfg"].update(ls_init_value=0.1),
        lambda m: m["vision_cfg"].update(pool_type="avg"),
        lambda m: m["vision_cfg"].update(norm_kwargs={"eps": 1e-6}),
        lambda m: m["vision_cfg"].update(layers=[1, 1, 1, 1], head_width=32),
        lambda m: m["text_cfg"].update(hf_model_name="roberta-base"),
        lambda m: m["text_cfg"].update(no_causal_mask=True),
        lambda m: m["text_cfg"].update(pool_type="last"),
        lambda m: m["text_cfg"].update(proj_bias=True),
    ],
)
def test_a_model_that_our_modules_cannot_compute_is_open_clips(change: Callable[[dict[str, Any]], object]) -> None:
    """Every setting reaches open_clip's modules as it is."""
    said = open_clip_config(reference()[0])["model_cfg"]
    change(said)
    kind, config = model_config(said, None, FILE)
    assert "open_clip" == kind.name
    assert isinstance(config, OpenClipTorchConfig)
    for section in ("vision_cfg", "text_cfg"):
        assert said[section].items() <= config.settings[section].items()
    with pytest.raises(SourceError, match="leave --activation out"):
        model_config(said, "gelu", FILE)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, {}),
        ({"interpolation": None, "mean": None, "size": 999, "unknown": 1}, {}),
        ({"interpolation": "random"}, {}),
        ({"interpolation": "bilinear", "mean": 0.5}, {"interpolation": "bilinear", "mean": (0.5, 0.5, 0.5)}),
        (
            {"resize_mode": "squash", "std": [0.1, 0.2, 0.3]},
            {"resize": "squash", "crop": "none", "std": (0.1, 0.2, 0.3)},
        ),
    ],
)
def test_preprocessing_is_the_configurations(said: dict[str, Any], expected: dict[str, Any]) -> None:
    """What it leaves out is as open_clip has it, and so is what open_clip passes over."""
    default = CLIP.images.section(32)
    assert default.model_copy(update=expected) == image_section(said, default=default, path=FILE)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"resize_mode": "longest"}, "resize_mode 'longest' pads a picture"),
        ({"interpolation": "nearest"}, "interpolation: "),
        ({"mode": "L"}, "mode: "),
        ({"mean": "many"}, "mean.float: "),
        ([1], "preprocess_cfg must be a JSON object"),
    ],
)
def test_preprocessing_that_a_bundle_cannot_say_is_refused(said: object, message: str) -> None:
    """By the name of the setting."""
    with pytest.raises(SourceError) as caught:
        image_section(said, default=CLIP.images.section(32), path=FILE)
    assert str(caught.value).startswith(f"{FILE}: {message}")


def published() -> dict[str, Any]:
    """Return open_clip's own configurations by name, from the installed package, which is not imported."""
    try:
        files = importlib.metadata.files("open_clip_torch") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = [file for file in files if file.parent.name == "model_configs" and file.suffix == ".json"]
    return {file.stem: json.loads(Path(str(file.locate())).read_text()) for file in found}


NEEDS_OPEN_CLIP = pytest.mark.skipif(not published(), reason="open_clip_torch is not installed")


@NEEDS_OPEN_CLIP
@pytest.mark.parametrize("name", sorted(SIZES))
def test_open_clips_own_configurations_are_the_named_sizes(name: str) -> None:
    """But for the activation: the names are OpenAI's too, whose weights use QuickGELU."""
    config = read_config(published()[name])
    expected = SIZES[name].config
    if isinstance(config, SiglipConfig):
        assert expected == config
        return
    assert isinstance(expected, ClipConfig)
    assert isinstance(config, ClipConfig)
    assert config.text.activation == "gelu"
    image: dict[str, Any] = {"activation": "gelu"} if expected.image.kind == "vit" else {}
    update = {"image": expected.image.model_copy(update=image)}
    assert config == expected.model_copy(
        update=update | {"text": expected.text.model_copy(update={"activation": "gelu"})}
    )


@NEEDS_OPEN_CLIP
def test_docs_models_lists_every_configuration_of_open_clip() -> None:
    """The page has the modules that compute each; a new release of open_clip or a change of ours shows there."""
    computed: dict[str, list[str]] = {"CLIP": [], "SigLIP": [], "open_clip": []}
    titles = {"clip": "CLIP", "siglip": "SigLIP"}
    for name, said in sorted(published().items()):
        kind = model_config(said, None, FILE)[0].name
        computed[titles.get(kind, kind)].append(name)
    listed = re.findall(r"^\| (\w+) \| (\d+) \| (.+) \|$", (ROOT / "docs/models.md").read_text("utf-8"), re.MULTILINE)
    assert {title: (str(len(names)), ", ".join(names)) for title, names in computed.items()} == {
        title: (count, names) for title, count, names in listed
    }


# --- SigLIP ----------------------------------------------------------------------------------------------------------

SIGLIP = SiglipConfig.model_validate(
    {
        "image": {"image_size": 34, "patch_size": 8, "width": 48, "layers": 2, "heads": 3, "mlp_width": 100},
        "text": {
            "vocab_size": 9,
            "context_length": 6,
            "width": 32,
            "layers": 2,
            "heads": 2,
            "mlp_width": 64,
            "embed_dim": 48,
            "pad_id": 0,
        },
    }
)


def siglip_weights(config: SiglipConfig) -> Weights:
    """Make weights with the names of timm's image tower and open_clip's text tower."""
    image, text = config.image, config.text
    weights: Weights = {}
    generator = torch.Generator().manual_seed(3)

    def put(name: str, *shape: int, bias: bool = False) -> None:
        weights[f"{name}.weight" if bias else name] = 0.2 * torch.randn(shape, generator=generator)
        if bias:
            weights[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    trunk = "visual.trunk"
    put(f"{trunk}.pos_embed", 1, image.patches, image.width)
    put(f"{trunk}.patch_embed.proj", image.width, 3, image.patch_size, image.patch_size, bias=True)
    for i in range(image.layers):
        block = f"{trunk}.blocks.{i}"
        put(f"{block}.norm1", image.width, bias=True)
        put(f"{block}.attn.qkv", 3 * image.width, image.width, bias=True)
        put(f"{block}.attn.proj", image.width, image.width, bias=True)
        put(f"{block}.norm2", image.width, bias=True)
        put(f"{block}.mlp.fc1", image.mlp_width, image.width, bias=True)
        put(f"{block}.mlp.fc2", image.width, image.mlp_width, bias=True)
    put(f"{trunk}.norm", image.width, bias=True)
    pool = f"{trunk}.attn_pool"
    put(f"{pool}.latent", 1, 1, image.width)
    put(f"{pool}.q", image.width, image.width, bias=True)
    put(f"{pool}.kv", 2 * image.width, image.width, bias=True)
    put(f"{pool}.proj", image.width, image.width, bias=True)
    put(f"{pool}.norm", image.width, bias=True)
    put(f"{pool}.mlp.fc1", image.mlp_width, image.width, bias=True)
    put(f"{pool}.mlp.fc2", image.width, image.mlp_width, bias=True)
    put("text.token_embedding.weight", text.vocab_size, text.width)
    put("text.positional_embedding", text.context_length, text.width)
    for i in range(text.layers):
        block = f"text.transformer.resblocks.{i}"
        put(f"{block}.ln_1", text.width, bias=True)
        put(f"{block}.attn.in_proj_weight", 3 * text.width, text.width)
        put(f"{block}.attn.in_proj_bias", 3 * text.width)
        put(f"{block}.attn.out_proj", text.width, text.width, bias=True)
        put(f"{block}.ln_2", text.width, bias=True)
        put(f"{block}.mlp.c_fc", text.mlp_width, text.width, bias=True)
        put(f"{block}.mlp.c_proj", text.width, text.mlp_width, bias=True)
    put("text.ln_final", text.width, bias=True)
    put("text.text_projection", config.embed_dim, text.width, bias=True)
    weights["logit_scale"], weights["logit_bias"] = torch.tensor([2.0]), torch.tensor([-8.0])
    return weights


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Apply one linear layer."""
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Apply one LayerNorm."""
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def attend(heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend, head by head."""
    parts = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        parts.append((a @ b.mT / a.shape[-1] ** 0.5).softmax(-1) @ c)
    return torch.cat(parts, -1)


def mlp(weights: Weights, first: str, second: str, x: Tensor) -> Tensor:
    """Apply an MLP with the GELU by its tanh formula."""
    return linear(weights, second, functional.gelu(linear(weights, first, x), approximate="tanh"))


def siglip_image(w: Weights, pixels: Tensor) -> Tensor:
    """Encode pictures as timm's tower does."""
    trunk = "visual.trunk"
    projection = w[f"{trunk}.patch_embed.proj.weight"], w[f"{trunk}.patch_embed.proj.bias"]
    x = functional.conv2d(pixels, *projection, stride=8).flatten(2).mT + w[f"{trunk}.pos_embed"]
    for i in range(2):
        block = f"{trunk}.blocks.{i}"
        qkv = linear(w, f"{block}.attn.qkv", norm(w, f"{block}.norm1", x))
        x = x + linear(w, f"{block}.attn.proj", attend(3, *qkv.chunk(3, -1)))
        x = x + mlp(w, f"{block}.mlp.fc1", f"{block}.mlp.fc2", norm(w, f"{block}.norm2", x))
    x = norm(w, f"{trunk}.norm", x)
    pool = f"{trunk}.attn_pool"
    query = linear(w, f"{pool}.q", w[f"{pool}.latent"].expand(len(x), 1, -1))
    pooled = linear(w, f"{pool}.proj", attend(3, query, *linear(w, f"{pool}.kv", x).chunk(2, -1)))
    pooled = pooled + mlp(w, f"{pool}.mlp.fc1", f"{pool}.mlp.fc2", norm(w, f"{pool}.norm", pooled))
    return pooled[:, 0]


def siglip_text(w: Weights, ids: Tensor) -> Tensor:
    """Encode texts as open_clip's tower does, with torch's own attention."""
    x = w["text.token_embedding.weight"][ids] + w["text.positional_embedding"]
    for i in range(2):
        block = f"text.transformer.resblocks.{i}"
        attention = nn.MultiheadAttention(32, 2, batch_first=True)
        own = {k.removeprefix(f"{block}.attn."): v for k, v in w.items() if k.startswith(f"{block}.attn.")}
        attention.load_state_dict(own)
        y = norm(w, f"{block}.ln_1", x)
        x = x + attention(y, y, y, need_weights=False)[0]
        x = x + mlp(w, f"{block}.mlp.c_fc", f"{block}.mlp.c_proj", norm(w, f"{block}.ln_2", x))
    return linear(w, "text.text_projection", norm(w, "text.ln_final", x)[:, -1])


def write_siglip_tokenizer(folder: Path) -> Path:
    """Write a tokenizer of eight words that knows neither capitals nor punctuation."""
    words = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "cat", "s"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.enable_padding(length=6)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "pad_token": "<pad>"}))
    return folder / "tokenizer.json"


def test_a_siglips_vectors_are_those_of_an_independent_reference(tmp_path: Path) -> None:
    """The image tower of timm's, with its fused projections and its pool, and open_clip's text tower."""
    weights = siglip_weights(SIGLIP)
    write_siglip_tokenizer(tmp_path)
    save_file(weights, tmp_path / "tiny.safetensors")
    place = open_clip._place(tmp_path / "tiny.safetensors")
    tokenizer = read_canonical_tokenizer(tmp_path, vocab_size=9)
    found = open_clip._found(place, FAMILY.open_clip.convert, FAMILY.images.section(34), SourceOptions())
    source = assemble(found, FAMILY, FAMILY.open_clip.complete(SIGLIP, tokenizer), tokenizer)

    pixels = torch.randn(3, 3, 34, 34, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[3, 4, 5, 3, 6, 1], [6, 1, 0, 0, 0, 0]])
    with torch.no_grad():
        for expected, got in (
            (siglip_image(weights, pixels), source.model.encode_image(pixels)),
            (siglip_text(weights, ids), source.model.encode_text(ids)),
        ):
            assert expected.abs().max() > 0.1
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert source.architecture == "siglip/vit"
    assert source.text.model_dump(exclude={"canonicalization", "overflow"}) == {
        "padding": "fixed",
        "min_length": 6,
        "max_length": 6,
        "pad_id": 0,
        "end_of_text_id": 1,
        "cleaning": "clip",
    }
    assert source.scoring == SigmoidScoring(logit_scale=math.exp(2.0), logit_bias=-8.0)


def test_a_siglip_beside_a_stub_becomes_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository as Marqo/marqo-fashionSigLIP, from the hub to a verified bundle with the reference's vectors."""
    image, text = SIGLIP.image, SIGLIP.text
    shape = {"width": image.width, "layers": image.layers, "heads": image.heads, "mlp_width": image.mlp_width}
    monkeypatch.setitem(SHAPES, "tiny", shape)
    said = siglip_said()
    said["embed_dim"] = SIGLIP.embed_dim
    said["vision_cfg"] |= {"image_size": 34, "timm_model_name": "vit_tiny_patch8_siglip_34"}
    said["text_cfg"] |= {"context_length": text.context_length, "vocab_size": text.vocab_size, "width": text.width}
    said["text_cfg"] |= {"heads": text.heads, "layers": text.layers, "mlp_ratio": text.mlp_width / text.width}
    half = [0.5, 0.5, 0.5]
    preprocessing = {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "squash"}
    weights = siglip_weights(SIGLIP)
    config = {"model_cfg": said, "preprocess_cfg": preprocessing}
    folder = write_open_clip(tmp_path / "repository", weights, config, SAFETENSORS)
    write_siglip_tokenizer(folder)
    stub = {**MARQO, "architectures": ["MarqoFashionSigLIP"], "model_type": "siglip"}
    wrapper = {
        "config.json": as_json(stub),
        "model.safetensors": NO_WEIGHTS,
        "marqo_fashionSigLIP.py": b"raise SystemExit",
    }
    with hub_client(tmp_path / "home", monkeypatch) as hub:
        hub.add("acme/siglip", {**{file.name: file.read_bytes() for file in folder.iterdir()}, **wrapper})
        convert(Conversion("acme/siglip", SourceOptions()), tmp_path / "bundle", narrator=Narrator(Console(quiet=True)))
        assert [] == hub.bodies("model.safetensors")

    assert verify_bundle(tmp_path / "bundle").passed
    pixels = torch.randint(0, 256, (3, 34, 34, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    ids = torch.tensor([[3, 4, 5, 3, 6, 1], [6, 1, 0, 0, 0, 0], [7, 7, 1, 0, 0, 0]])
    engine = OnnxEngine.load(load_bundle(tmp_path / "bundle"), "cpu")
    got = engine.encode_images(pixels.numpy()), engine.encode_texts(ids.numpy())
    engine.close()
    with torch.no_grad():
        wanted = siglip_image(weights, (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5), siglip_text(weights, ids)
    for mine, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, functional.normalize(theirs, dim=1).numpy(), rtol=0, atol=1e-4)
        assert np.abs(mine[0] - mine[1]).max() > 1e-2


def test_a_siglips_texts_are_canonicalised_as_open_clip_does(tmp_path: Path) -> None:
    """The underscore is a space; other punctuation goes, capitals become small; the padding section is left out."""
    content = read_canonical_tokenizer(write_siglip_tokenizer(tmp_path), vocab_size=9).content
    tokenizer = Tokenizer.from_str(content.decode())
    assert tokenizer.encode("  A_Photo of\ta CAT's! ").ids == [3, 4, 5, 3, 2, 1]
    assert tokenizer.encode("a -- cat").ids == [3, 6, 1]


def test_special_tokens_of_an_unknown_vocabulary_must_be_said(tmp_path: Path) -> None:
    """SigLIP's own vocabularies are known by their size; of another nothing is guessed."""
    path = write_siglip_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(SourceError, match="lacks eos_token and pad_token, and 9 tokens are none of"):
        read_canonical_tokenizer(path, vocab_size=9)
    with pytest.raises(SourceError, match="has no token '<eos>', the end of text"):
        read_canonical_tokenizer(path, vocab_size=256_000)
    known = read_canonical_tokenizer(path, vocab_size=32_000)
    assert (known.end_of_text_id, known.pad_id) == (1, 1)


def siglip_said() -> dict[str, Any]:
    """Say a SigLIP B/16 as open_clip does."""
    return {
        "embed_dim": 768,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "vit_base_patch16_siglip_224",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 64,
            "vocab_size": 32000,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 768,
            "heads": 12,
            "layers": 12,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    }


def test_a_siglip_is_told_by_timms_name_of_its_tower() -> None:
    """Its shape is the named size's."""
    assert SIZES["ViT-B-16-SigLIP"].config == read_config(siglip_said())


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["vision_cfg"].update(timm_model_name="vit_base_patch16_siglip_gap_224"),
        lambda m: m["vision_cfg"].update(timm_model_name="vit_tiny_patch16_siglip_224"),
        lambda m: m["vision_cfg"].update(timm_pool="avg"),
        lambda m: m["text_cfg"].update(no_causal_mask=False),
        lambda m: m["text_cfg"].update(proj_type="none"),
        lambda m: m["text_cfg"].pop("norm_kwargs"),
        lambda m: m.update(embed_dim=512),
    ],
)
def test_a_siglip_of_another_kind_is_open_clips(change: Callable[[dict[str, Any]], object]) -> None:
    """What our module fixes, a configuration may not say otherwise."""
    said = siglip_said()
    change(said)
    assert isinstance(read_config(said), OpenClipTorchConfig)


def test_a_siglip_whose_tokenizer_is_unknown_is_refused() -> None:
    """A cleaning that no tokenizer here has."""
    said = siglip_said()
    said["text_cfg"]["tokenizer_kwargs"] = {"clean": "lower"}
    with pytest.raises(SourceError, match=r"text_cfg\.tokenizer_kwargs\.clean: "):
        read_config(said)


def test_a_siglip_needs_its_tokenizer_and_its_preprocessing(tmp_path: Path) -> None:
    """Neither is guessed."""
    config = {"model_cfg": siglip_said()}
    folder = write_open_clip(tmp_path / "siglip", siglip_weights(SIGLIP), config, SAFETENSORS)
    assert "lacks preprocess_cfg" in refusal(folder, SourceOptions())
    assert "no SigLIP was trained with quick_gelu" in refusal(folder, SourceOptions(activation="quick_gelu"))
    config["preprocess_cfg"] = {"resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert "carries no tokenizer; name its tokenizer.json with --tokenizer" in refusal(folder, SourceOptions())
    write_siglip_tokenizer(folder)
    assert "lacks text.transformer.resblocks.10." in refusal(folder, SourceOptions())
    (folder / "open_clip_config.json").unlink()
    assert "lacks text.transformer.resblocks.10." in refusal(
        folder / SAFETENSORS, SourceOptions(arch="ViT-B-16-SigLIP")
    )


def test_the_tables_cover_every_parameter() -> None:
    """Every weight of a SigLIP has its row, and no row leads nowhere."""
    weights = siglip_weights(SIGLIP)
    names = {ours for name in weights for ours in KEYS._ours(name)}
    from model_export.families.siglip.model import SiglipModel

    with torch.device("meta"):
        assert names == SiglipModel(SIGLIP).state_dict().keys()


def test_open_clips_files_are_recognised(tmp_path: Path) -> None:
    """By the configuration beside them, or by names that only open_clip uses."""
    said, weights = tiny()
    folder = write_open_clip(tmp_path / "run", weights, said, SAFETENSORS)
    (folder / "README.md").write_text("")
    assert recognises(folder)
    assert recognises(folder / SAFETENSORS)
    assert not recognises(folder / "README.md")
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "no.pt")
    save_file(weights, tmp_path / "bare.safetensors")
    assert not recognises(tmp_path / "bare.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in with_own_text_tower(weights).items()}}, tmp_path / "own.pt")
    assert recognises(tmp_path / "own.pt")
