from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from model_export.architectures.layers import ResidualAttentionBlock
from model_export.families.clip.config import ClipConfig, ResidualConvConfig
from model_export.families.clip.model import ClipModel
from model_export.families.clip.residual_conv import ResidualConv, WhiteningStem, enlarged_config, enlarged_weights

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "context_length": 10,
    "width": 32,
    "layers": 3,
    "heads": 4,
    "end_of_text_id": 1,
    "pad_id": 1,
}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 4},
    "modified_resnet": {"kind": "modified_resnet", "image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "residual_conv": {"kind": "residual_conv", "image_size": 16, "stem_width": 8, "widths": [16, 24]},
    "strided": {"kind": "residual_conv", "image_size": 32, "stem": "strided", "stem_width": 8, "widths": [16, 24]},
    "whitening": {"kind": "residual_conv", "image_size": 16, "stem": "whitening", "stem_width": 24, "widths": [16, 24]},
}


def build(fields: dict[str, Any]) -> ClipModel:
    """Build a model from a configuration's JSON form."""
    return ClipModel(ClipConfig.model_validate(fields))


def small(tower: str) -> ClipModel:
    """Build a small seeded model with one of the towers."""
    torch.manual_seed(0)
    return build({"embed_dim": 24, "image": TOWERS[tower], "text": TEXT}).eval()


@pytest.mark.parametrize(
    ("config", "published"),
    [
        ({"embed_dim": 512, "image": {"kind": "vit"}}, 151_277_313),
        ({"embed_dim": 1024, "image": {"kind": "modified_resnet"}}, 102_007_137),
    ],
    ids=["ViT-B/32", "RN50"],
)
def test_the_papers_models_have_the_published_number_of_parameters(config: dict[str, Any], published: int) -> None:
    """A tower built from the paper's figures is the paper's tower, counted without allocating it."""
    with torch.device("meta"):
        model = build(config)

    assert published == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("tower", TOWERS)
def test_both_encoders_end_in_the_joint_space(tower: str) -> None:
    """Whatever the tower, pictures and texts come out with the same number of dimensions, and finite."""
    model = small(tower)
    size = TOWERS[tower]["image_size"]

    images = model.encode_image(torch.randn(3, 3, size, size))
    texts = model.encode_text(torch.tensor([[0, 5, 1], [0, 6, 1]]))

    assert (3, 24) == images.shape
    assert (2, 24) == texts.shape
    assert images.isfinite().all()
    assert texts.isfinite().all()


def test_a_mirroring_tower_sees_a_picture_and_its_mirror_image_alike() -> None:
    """With `mirror` the vector of a picture is that of its reflection; without, it is not."""
    pixels = torch.randn(3, 3, 16, 16)
    for mirror in (True, False):
        torch.manual_seed(0)
        tower = {**TOWERS["residual_conv"], "mirror": mirror}
        model = build({"embed_dim": 24, "image": tower, "text": TEXT}).eval()
        same = torch.allclose(model.encode_image(pixels), model.encode_image(pixels.flip(3)), atol=1e-5)
        assert mirror is same


def test_shifted_views_take_part_in_the_mean_and_only_outside_training() -> None:
    """With `shifts` the vector is the mean of the pictures' moved so; with `mirror`, of their mirror images too."""
    pixels = torch.randn(3, 3, 16, 16)
    padded = torch.nn.functional.pad(pixels, (2, 2, 1, 1), mode="reflect")
    right_2_up_1, left_1 = padded[:, :, 2:18, :16], padded[:, :, 1:17, 3:19]
    torch.manual_seed(0)
    plain = build({"embed_dim": 24, "image": TOWERS["residual_conv"], "text": TEXT}).eval()
    for mirror in (False, True):
        tower = {**TOWERS["residual_conv"], "mirror": mirror, "shifts": [[0, 0], [2, -1], [-1, 0]]}
        model = build({"embed_dim": 24, "image": tower, "text": TEXT}).eval()
        model.load_state_dict(plain.state_dict())

        views = [pixels, right_2_up_1, left_1]
        if mirror:
            views += [view.flip(3) for view in views]
        torch.testing.assert_close(
            model.encode_image(pixels), torch.stack([plain.encode_image(view) for view in views]).mean(dim=0)
        )
        torch.testing.assert_close(model.train().encode_image(pixels), plain.train().encode_image(pixels))
        plain.eval()


def test_a_shift_by_the_whole_picture_is_refused() -> None:
    """Nothing would be left to look at."""
    tower = {**TOWERS["residual_conv"], "shifts": [[0, -16]]}
    with pytest.raises(ValueError, match="less than its size, 16 pixels"):
        build({"embed_dim": 24, "image": tower, "text": TEXT})


def test_a_whitening_stem_makes_the_directions_of_patches_independent_and_of_one_variance() -> None:
    """Before bias and activation twelve channels are uncorrelated with variance one; the others are their negatives."""
    torch.manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 20, 20), 5, stride=1)  # neighbours nearly alike
    stem = WhiteningStem()
    stem.whiten(smooth)

    channels = stem.conv1(smooth).transpose(0, 1).flatten(1)  # [24, patches]
    covariance = channels[:12] @ channels[:12].T / channels.shape[1]

    torch.testing.assert_close(channels[12:], -channels[:12])
    off_diagonal = covariance - covariance.diagonal().diag()
    assert off_diagonal.abs().max() < 1e-3
    assert covariance.diagonal().max() < 1.01
    # The three smallest directions carry so little that the whitening's epsilon shows.
    assert [False] * 3 + [True] * 9 == (covariance.diagonal() > 0.9).tolist()
    assert not stem.conv1.weight.requires_grad


def test_what_follows_the_end_of_text_changes_nothing() -> None:
    """A text gives the same vector alone and padded, with any padding: attention is causal."""
    model = small("vit")
    alone = model.encode_text(torch.tensor([[0, 5, 9, 1]]))

    for padding in ([1, 1, 1], [0, 0, 0], [33, 1, 7]):
        padded = model.encode_text(torch.tensor([[0, 5, 9, 1, *padding]]))
        torch.testing.assert_close(padded, alone, atol=1e-6, rtol=1e-5)


def test_the_feature_is_read_at_the_first_end_of_text() -> None:
    """A change before the first end-of-text token moves the vector; the id need not be the largest."""
    model = small("vit")

    one, other = model.encode_text(torch.tensor([[0, 5, 9, 1], [0, 6, 9, 1]]))

    assert (one - other).abs().max() > 1e-3


def test_a_block_can_be_asked_for_some_places_only() -> None:
    """What is computed at the wanted places is what the whole block computes there, under a mask too."""
    torch.manual_seed(0)
    block = ResidualAttentionBlock(32, 4, "gelu").eval()
    x = torch.randn(2, 6, 32)
    mask = torch.full((6, 6), float("-inf")).triu(1)

    torch.testing.assert_close(block(x, wanted=x[:, [4, 1]]), block(x)[:, [4, 1]])
    torch.testing.assert_close(block(x, mask[[4, 1]], wanted=x[:, [4, 1]]), block(x, mask)[:, [4, 1]])


def test_weights_start_as_the_paper_says() -> None:
    """Standard deviations of the text tower follow width and depth; the logit scale starts at 1 / 0.07."""
    torch.manual_seed(0)
    width, layers = 256, 4
    text = {**TEXT, "vocab_size": 2048, "context_length": 64, "width": width, "layers": layers}
    model = build({"embed_dim": 128, "image": TOWERS["vit"], "text": text})
    tower: Any = model.text
    block = tower.blocks[1]

    expected = {
        tower.token_embedding.weight: 0.02,
        tower.positional_embedding: 0.01,
        tower.text_projection: width**-0.5,
        block.attn.q_proj.weight: width**-0.5,
        block.attn.out_proj.weight: width**-0.5 * (2 * layers) ** -0.5,
        block.mlp.c_fc.weight: (2 * width) ** -0.5,
        block.mlp.c_proj.weight: width**-0.5 * (2 * layers) ** -0.5,
    }
    for parameter, std in expected.items():
        assert parameter.std().item() == pytest.approx(std, rel=0.05)
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_every_residual_branch_of_the_resnet_starts_at_zero() -> None:
    """A new ModifiedResNet block passes its input on: the gain of its last batch norm is 0."""
    model = small("modified_resnet")
    gains = [value for name, value in model.named_parameters() if name.endswith("bn3.weight") and "layer" in name]

    assert 4 == len(gains)
    assert all((gain == 0).all() for gain in gains)


def test_the_logit_scale_never_passes_100() -> None:
    """Clipping holds the scale at the paper's limit and leaves a smaller one alone."""
    model = small("vit")
    with torch.no_grad():
        model.logit_scale.fill_(math.log(250.0))
    model.clip_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(100.0)

    with torch.no_grad():
        model.logit_scale.fill_(math.log(30.0))
    model.clip_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"image": {"kind": "vit", "image_size": 30, "patch_size": 8}}, "patch_size"),
        ({"image": {"kind": "vit", "width": 30, "heads": 4}}, "heads"),
        ({"image": {"kind": "modified_resnet", "image_size": 50}}, "multiple of 32"),
        ({"image": {"kind": "residual_conv", "image_size": 4, "widths": [8, 8, 8]}}, "halved"),
        ({"image": {"kind": "residual_conv", "stem": "whitening", "stem_width": 32}}, "stem_width 24, not 32"),
        ({"image": {"kind": "vgg"}}, "vgg"),
        ({"image": TOWERS["vit"], "text": {**TEXT, "end_of_text_id": 64}}, "vocab_size"),
        ({"image": TOWERS["vit"], "depth": 3}, "depth"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict[str, Any], word: str) -> None:
    """The error names what does not fit, before any weight is allocated."""
    with pytest.raises(ValidationError, match=word):
        build(change)


def test_an_enlarged_tower_sees_a_picture_of_twice_the_size_as_the_tower_saw_the_picture() -> None:
    """Its stem takes four pixels for each one: on a picture whose pixels were doubled, the vectors are equal."""
    torch.manual_seed(0)
    small_tower = build({"embed_dim": 24, "image": TOWERS["whitening"], "text": TEXT}).eval()
    assert isinstance(small_tower.visual, ResidualConv)
    assert isinstance(small_tower.config.image, ResidualConvConfig)
    torch.nn.init.normal_(small_tower.visual.get_parameter("stem.conv1.bias"))
    pixels = torch.randn(3, 3, 16, 16)
    config = enlarged_config(small_tower.config.image)
    assert config is not None
    large = build({"embed_dim": 24, "image": config.model_dump(), "text": TEXT}).eval()

    large.visual.load_state_dict(enlarged_weights(small_tower.visual.state_dict()))

    doubled = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(large.encode_image(doubled), small_tower.encode_image(pixels))
    assert large.visual.get_parameter("stem.conv1.weight").requires_grad
    assert enlarged_config(config) is None
