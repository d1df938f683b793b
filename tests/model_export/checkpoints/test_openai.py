import dataclasses
import importlib.metadata
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model_export.checkpoints import openai
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.checkpoints.openai import load, recognises
from model_export.errors import SourceError
from model_export.families.clip.config import ClipConfig
from model_export.families.clip.family import CLIP
from model_export.families.clip.model import ClipModel
from model_export.families.clip.tokenizer import installed_vocabulary
from model_export.families.sizes import SIZES
from service.model.manifest import FileEntry
from tests.support.clip_files import write_archive
from tests.support.reference_clip import TOWERS, ReferenceClip, reference, write_vocabulary

Weights = dict[str, Tensor]

PAPER = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")

NEEDS_VOCABULARY = pytest.mark.skipif(installed_vocabulary() is None, reason="open_clip_torch is not installed")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer for the tiny models."""
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "bpe.txt")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT as OpenAI's TorchScript archives. Not to be written to."""
    config, model = reference()
    return write_archive(tmp_path_factory.mktemp("archive") / "Tiny-ViT.pt", model, config)


@pytest.fixture
def state_dict(tmp_path: Path) -> Path:
    """The same as a state dict."""
    return saved(tmp_path, lambda weights: None)


def saved(folder: Path, change: Callable[[Weights], object], tower: str = "vit") -> Path:
    """Write a changed state dict in half precision."""
    weights = {
        name: value.half() if value.is_floating_point() else value
        for name, value in reference(tower)[1].state_dict().items()
    }
    change(weights)
    torch.save(weights, folder / "state.pt")
    return folder / "state.pt"


def options(vocabulary: Path, **said: Any) -> SourceOptions:
    """Say what an OpenAI state dict does not."""
    return SourceOptions(**{"tokenizer": vocabulary, "activation": "quick_gelu", **said})


def refusal(path: Path, said: SourceOptions) -> str:
    """Return the one line that a file is refused with."""
    with pytest.raises(SourceError) as caught:
        load(path, said)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def vectors(source: ModelSource, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Encode with the model that was read."""
    with torch.no_grad():
        return source.model.encode_image(pixels), source.model.encode_text(ids)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("tower", sorted(TOWERS))
def test_vectors_are_those_of_an_independent_reference(
    tower: str, activation: str, vocabulary: Path, tmp_path: Path
) -> None:
    """Both towers agree with torch's own attention on the fused weights, whichever activation is said."""
    config, model = reference(tower, activation)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    source = load(tmp_path / "weights.pt", options(vocabulary, activation=activation))
    size = config.image.image_size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[598, 5, 6, 599, 0, 0], [598, 7, 8, 9, 10, 599], [598, 599, 0, 0, 0, 0]])
    with torch.no_grad():
        expected = model(pixels, ids)
    for wanted, got in zip(expected, vectors(source, pixels, ids), strict=True):
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tower", sorted(TOWERS))
def test_the_configuration_follows_from_the_shapes(tower: str, vocabulary: Path, tmp_path: Path) -> None:
    """Widths, layers, heads, patch, resolution, context and vocabulary are those the model was made with."""
    source = load(saved(tmp_path, lambda weights: None, tower), options(vocabulary))
    assert isinstance(source.model, ClipModel)
    assert reference(tower)[0] == source.model.config


def test_an_archive_and_its_state_dict_give_the_same_source(archive: Path, state_dict: Path, vocabulary: Path) -> None:
    """An archive differs only in that its activation is known; both are computed with in float32."""
    first = load(archive, SourceOptions(tokenizer=vocabulary, name="tiny"))
    second = load(state_dict, options(vocabulary, name="tiny"))
    for field in dataclasses.fields(ModelSource):
        if field.name not in {"model", "provenance"}:
            assert getattr(first, field.name) == getattr(second, field.name)
    theirs = second.model.state_dict()
    assert list(theirs) == list(first.model.state_dict())
    for name, tensor in first.model.state_dict().items():
        assert torch.float32 == tensor.dtype
        assert torch.equal(tensor, theirs[name])


def test_a_source_says_where_it_is_from_and_how_it_is_used(archive: Path, vocabulary: Path) -> None:
    """Name, digest, scale and preprocessing; the activation is recorded."""
    source = load(archive, SourceOptions(tokenizer=vocabulary, licence="MIT"))
    assert source.name == "tiny-vit"
    assert source.architecture == "clip/vit"
    assert source.dim == 32
    assert CLIP.images.section(32) == source.image
    assert source.text.end_of_text_id == 599
    assert source.text.max_length == 32
    assert source.text.cleaning == "clip"
    assert source.scoring.logit_scale == pytest.approx(math.exp(2.75))
    assert source.provenance.source_sha256 == FileEntry.of(archive).sha256
    assert source.provenance.licence == "MIT"
    recipe: Any = source.provenance.recipe
    assert recipe["model"]["text"]["activation"] == "quick_gelu"
    assert not source.model.training
    assert not any(parameter.requires_grad for parameter in source.model.parameters())


def test_a_hub_id_is_an_alias(archive: Path, vocabulary: Path) -> None:
    """The bundle answers to it, and is called after it."""
    source = load(archive, SourceOptions(tokenizer=vocabulary, source_id="someone/clip-tiny@abc"))
    assert source.name == "clip-tiny"
    assert source.aliases == ("someone/clip-tiny",)


def test_the_activation_of_a_state_dict_is_asked_for(state_dict: Path, vocabulary: Path) -> None:
    """Nothing in it tells GELU from QuickGELU."""
    said = refusal(state_dict, SourceOptions(tokenizer=vocabulary))
    assert said.startswith(f"{state_dict}: does not state its activation; add --activation quick_gelu")


def test_the_activation_of_a_foreign_archive_is_asked_for(vocabulary: Path, tmp_path: Path) -> None:
    """Anyone can write TorchScript: only with what OpenAI's archives hold beside the weights is it one of theirs."""
    config, model = reference()
    path = write_archive(tmp_path / "foreign.pt", model, config, notes=False)
    assert "does not state its activation" in refusal(path, SourceOptions(tokenizer=vocabulary))


def test_an_archives_activation_cannot_be_overridden(archive: Path, vocabulary: Path) -> None:
    """What is known is not to be said otherwise."""
    assert "which use quick_gelu; leave --activation gelu out" in refusal(
        archive, options(vocabulary, activation="gelu")
    )


def test_an_architectures_name_must_tell_the_activation(state_dict: Path, vocabulary: Path) -> None:
    """OpenAI and open_clip trained ViT-B-32 with different ones."""
    said = refusal(state_dict, options(vocabulary, activation=None, arch="ViT-B-32"))
    assert "ViT-B-32 was trained with both; add --activation" in said


@NEEDS_VOCABULARY
def test_a_checkpoint_of_another_architecture_than_named_is_refused(state_dict: Path) -> None:
    """What the named one has and the file has not is named."""
    said = refusal(state_dict, SourceOptions(arch="ViT-B-32-quickgelu"))
    assert said.startswith(f"{state_dict}: lacks transformer.resblocks.10.attn.in_proj_bias, ")


@pytest.mark.parametrize("arch", ["ViT-B-16-SigLIP", "ViT-B-23"])
def test_a_wrong_architecture_is_refused(arch: str, state_dict: Path, vocabulary: Path) -> None:
    """A SigLIP's name, or none, is not a CLIP's."""
    assert arch in refusal(state_dict, options(vocabulary, arch=arch, activation=None))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_are_told_by_their_shapes(name: str) -> None:
    """On the meta device, at full size: the table's configuration and the published number of parameters."""
    size = SIZES[name]
    assert isinstance(size.config, ClipConfig)
    with torch.device("meta"):
        model = ReferenceClip(size.config)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    said = openai._config(model.state_dict(), Path("w.pt"), SourceOptions(), published=True)
    assert size.config == said


@pytest.mark.parametrize("name", ["ViT-H-14", "ViT-g-14", "ViT-bigG-14"])
def test_a_size_whose_heads_do_not_follow_from_its_width_must_be_named(name: str) -> None:
    """With 64 channels a head, as OpenAI's have, every vector would be wrong in silence."""
    size = SIZES[name]
    assert isinstance(size.config, ClipConfig)
    with torch.device("meta"):
        weights = ReferenceClip(size.config).state_dict()
    with pytest.raises(SourceError, match=f"has the shapes of {name}, .* add --arch"):
        openai._config(weights, Path("w.pt"), SourceOptions(activation="gelu"), published=False)
    named = openai._config(weights, Path("w.pt"), SourceOptions(arch=name), published=False)
    assert size.config == named


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("logit_scale"), "lacks logit_scale"),
        (lambda w: w.pop("text_projection"), "lacks text_projection"),
        (lambda w: w.pop("visual.conv1.weight"), "lacks visual.conv1.weight"),
        (
            lambda w: w.pop("visual.transformer.resblocks.1.attn.in_proj_bias"),
            "lacks visual.transformer.resblocks.1.attn.in_proj_bias",
        ),
        (lambda w: w.update(surprise=torch.zeros(1)), "has unknown surprise"),
        (
            lambda w: w.update({"visual.layer1.0.conv1.weight": torch.zeros(1)}),
            "has unknown visual.layer1.0.conv1.weight",
        ),
        (
            lambda w: w.update({"transformer.resblocks.0.attn.in_proj_weight": torch.zeros(383, 128)}),
            "transformer.resblocks.0.attn.in_proj_weight has shape [383, 128], the model has [384, 128]",
        ),
        (
            lambda w: w["transformer.resblocks.0.ln_1.bias"].fill_(math.nan),
            "transformer.resblocks.0.ln_1.bias holds NaN or infinity",
        ),
        (lambda w: w.update(text_projection=torch.zeros(3)), "text_projection has shape [3], a CLIP's has 2"),
        (
            lambda w: w.update({"visual.positional_embedding": torch.zeros(18, 128)}),
            "visual.positional_embedding has 18 positions",
        ),
        (lambda w: w.update(text_projection=torch.zeros(96, 32)), "a width of 96 is no multiple of 64"),
        (lambda w: w.update(logit_scale=torch.tensor(1e4)), "logit_scale is 10000"),
        (lambda w: w.update(logit_bias=torch.tensor([1.0, 2.0])), "logit_bias is not one finite number"),
        (lambda w: w.update(attn_mask=torch.zeros(32, 32)), "has unknown attn_mask"),
    ],
)
def test_weights_that_do_not_fit_are_named_as_the_file_names_them(
    change: Callable[[Weights], object], message: str, vocabulary: Path, tmp_path: Path
) -> None:
    """A missing, unknown, mis-shaped or non-finite weight is one line."""
    path = saved(tmp_path, change)
    said = refusal(path, options(vocabulary))
    assert said.startswith(f"{path}: ")
    assert message in said


def test_what_is_no_weight_is_left_out(vocabulary: Path, tmp_path: Path) -> None:
    """Notes of OpenAI's archives, the causal mask, and counters of batch norms that older files lack."""

    def change(weights: Weights) -> None:
        weights["vocab_size"] = torch.tensor(600)
        weights["attn_mask"] = torch.full((32, 32), -math.inf).triu(1)
        del weights["visual.bn1.num_batches_tracked"]

    source = load(saved(tmp_path, change, "modified_resnet"), options(vocabulary))
    assert source.architecture == "clip/modified_resnet"


def test_a_scale_of_one_element_and_a_bias_are_taken(vocabulary: Path, tmp_path: Path) -> None:
    """A CLIP that was trained with SigLIP's loss is scored by its sigmoid."""
    path = saved(tmp_path, lambda w: w.update(logit_scale=torch.tensor([1.5]), logit_bias=torch.tensor([-9.0])))
    scoring = load(path, options(vocabulary)).scoring
    assert scoring.model_dump() == {
        "kind": "sigmoid",
        "logit_scale": pytest.approx(math.exp(1.5)),
        "logit_bias": -9.0,
    }


def test_a_tokenizer_beside_the_weights_is_taken(state_dict: Path, vocabulary: Path) -> None:
    """And one that is named as well is refused: it is not clear which is meant."""
    tokenizer = load(state_dict, options(vocabulary)).tokenizer
    (state_dict.parent / "tokenizer.json").write_bytes(tokenizer)
    assert load(state_dict, options(vocabulary, tokenizer=None)).tokenizer == tokenizer
    assert "brings a tokenizer; leave --tokenizer out" in refusal(state_dict, options(vocabulary))


def test_without_a_tokenizer_the_error_says_what_to_do(state_dict: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither beside the weights, nor named, nor installed."""

    def files(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)
    said = refusal(state_dict, SourceOptions(activation="quick_gelu"))
    assert "carries no tokenizer; name one with --tokenizer" in said
    assert "pip install open_clip_torch" in said


@NEEDS_VOCABULARY
def test_an_installed_packages_vocabulary_is_read_without_importing_it(
    state_dict: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first merges fill the tiny model's vocabulary."""
    monkeypatch.setitem(sys.modules, "open_clip", None)  # an import would fail
    source = load(state_dict, SourceOptions(activation="quick_gelu"))
    assert b'"i n"' in source.tokenizer or b'"in"' in source.tokenizer


def test_openai_files_are_recognised(archive: Path, state_dict: Path, tmp_path: Path) -> None:
    """By the names inside, unless open_clip's configuration stands beside them."""
    assert recognises(archive)
    assert recognises(state_dict)
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "no")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    assert not recognises(tmp_path / "other.pt")
    (tmp_path / "sub").mkdir()
    shutil.copy(state_dict, tmp_path / "sub")
    (tmp_path / "sub" / "open_clip_config.json").write_text("{}")
    assert not recognises(tmp_path / "sub" / "state.pt")
