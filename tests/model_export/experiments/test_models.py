from __future__ import annotations

import numpy as np
import pytest
import torch

from model_export.data.pairs import Texts
from model_export.experiments.captions import row_captions
from model_export.experiments.models import BagOfWords, Captioning
from model_export.experiments.objectives import shown_ratio
from model_export.experiments.recipe import DecoderSection
from model_export.experiments.statistics import Estimate, difference, line_through, pairs_to_reach
from model_export.experiments.widths import scaled
from model_export.experiments.words import WORDS
from model_export.families.clip.config import (
    ClipConfig,
    ImageTowerConfig,
    ModifiedResNetConfig,
    ResidualConvConfig,
    TextTransformerConfig,
    VisionTransformerConfig,
)
from model_export.families.clip.model import ClipModel

START, END = 0, 1
VIT = VisionTransformerConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2)
CONV = ResidualConvConfig(image_size=16, stem_width=8, widths=(8, 16))
ROWS = [Texts(f"noun {row % 7}", f"class {row % 3}") for row in range(200)]


def towers(image: ImageTowerConfig) -> ClipModel:
    """Build two tiny towers."""
    torch.manual_seed(0)
    text = TextTransformerConfig(
        vocab_size=20, context_length=8, width=16, layers=1, heads=2, end_of_text_id=END, pad_id=END
    )
    return ClipModel(ClipConfig(embed_dim=12, image=image, text=text))


@pytest.mark.parametrize("image", [CONV, VIT], ids=["residual_conv", "vit"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_class_scores_the_log_p_of_its_prompt(image: ImageTowerConfig, layers: int) -> None:
    """Shared beginnings and all classes at once give what each prompt gives alone, token by token."""
    section = DecoderSection(width=8, layers=layers, heads=2)
    model = Captioning(towers(image), section, 20, 8, END).double().eval()
    prompts = torch.tensor([[START, 5, END, END, END], [START, 5, 6, END, END], [START, 7, 8, 9, END]])
    pixels = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        found = model.scores(pixels, prompts, prompts)
        for picture in range(3):
            for number, prompt in enumerate(prompts.tolist()):
                ids = torch.tensor([prompt[: prompt.index(END) + 1]])
                loss = model.loss(pixels[picture, None], ids)
                assert found[picture, number] == pytest.approx(float(-loss) * (ids.shape[1] - 1))


def test_padding_changes_no_loss() -> None:
    """Of a caption, tokens up to its end count, and none behind it."""
    model = Captioning(towers(CONV), DecoderSection(width=8, heads=2), 20, 8, END).eval()
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        short, padded = (model.loss(pixels, torch.tensor([[START, 4, END, *after]])) for after in ([], [END, END]))
    assert float(short) == pytest.approx(float(padded), rel=1e-5)


def test_a_bag_of_words_weighs_rare_tokens_more() -> None:
    """The loss is the cross-entropy with weighted shares of tokens; a name's score is the mean log p of its tokens."""
    weights = torch.ones(20)
    weights[[START, END]] = 0.0
    weights[5] = 3.0
    model = BagOfWords(towers(CONV), 12, weights).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        log_p = model.head(model.visual(pixels)).log_softmax(dim=1)
        loss = model.loss(pixels, torch.tensor([[START, 4, 5, END], [START, 6, END, END]]))
        scores = model.scores(pixels, torch.tensor([[START, 4, 5, END], [START, 6, END, END]]), torch.empty(0))
    assert float(loss) == pytest.approx(float(-(log_p[0, 4] / 4 + 3 * log_p[0, 5] / 4 + log_p[1, 6]) / 2), rel=1e-5)
    assert scores[0].tolist() == pytest.approx([float(log_p[0, [4, 5]].mean()), float(log_p[0, 6])], rel=1e-5)


def test_a_row_keeps_its_noun_among_words_that_nothing_decides() -> None:
    """The words are drawn by row; the noun is that of an arm without words, and keeps its order."""
    plain, among = (row_captions(ROWS, np.arange(200), class_name_share=0.5, words=words) for words in (0, 8))
    assert among == row_captions(ROWS, np.arange(200), class_name_share=0.5, words=8)
    assert {"noun", "class"} == {caption.split()[0] for caption in plain if caption is not None}
    for noun, caption in zip(plain, among, strict=True):
        assert noun is not None
        assert caption is not None
        assert noun in caption
        others = caption.replace(noun, "").split()
        assert 8 == len(others)
        assert set(others) <= set(WORDS)
    assert len(set(among)) > 190


def test_false_captions_are_exchanged_among_a_share_of_the_trained_rows() -> None:
    """Nouns stay as frequent as they were; a larger share has those of a smaller one."""
    rows = [Texts(f"noun {row}", None) for row in range(200)]
    trained = np.arange(0, 200, 2)
    wrong = []
    for share in (0.0, 0.2, 0.5):
        captions = row_captions(rows, trained, class_name_share=0.0, false_share=share)
        assert {row.text for row in rows} == set(captions)
        wrong.append({row for row in range(200) if captions[row] != rows[row].text})
        assert round(share * len(trained)) == len(wrong[-1])
        assert wrong[-1] <= set(trained.tolist())
    assert wrong[1] < wrong[2]


def test_pairs_to_an_accuracy_are_interpolated() -> None:
    """Over the logarithm of the pairs; never where no budget reaches it, the smallest where that does."""
    assert 200 == pytest.approx(pairs_to_reach(0.3, [100, 400], [0.2, 0.4]))
    assert 100 == pairs_to_reach(0.1, [100, 400], [0.2, 0.4])
    assert pairs_to_reach(0.5, [100, 400], [0.2, 0.4]) is None


def test_a_ratio_of_pairs_that_are_not_known_is_a_bound() -> None:
    """Beyond the largest budget and below the smallest nothing was measured; of two such pairs no ratio is known."""
    budgets = [100, 400]
    assert "1.5" == shown_ratio(300.0, 200.0, budgets)
    assert "> 2.0" == shown_ratio(None, 200.0, budgets)
    assert "≥ 3.0" == shown_ratio(300.0, 100.0, budgets)
    assert "≤ 0.5" == shown_ratio(100.0, 200.0, budgets)
    unknown: list[tuple[float | None, float | None]] = [(100.0, 100.0), (None, None), (300.0, None)]
    assert ["–"] * 3 == [shown_ratio(some, other, budgets) for some, other in unknown]


def test_errors_are_those_of_the_mean() -> None:
    """A standard error of three values, and of paired differences."""
    assert [2.0, pytest.approx(1 / 3**0.5)] == [*Estimate.of([1.0, 2.0, 3.0])]
    assert (1.0, 0.0) == difference([2.0, 3.0], [1.0, 2.0])


def test_a_line_explains_the_variance_of_points_on_it() -> None:
    """Least squares; R² is 1 on a line, 0 where values do not depend on places."""
    assert [2.0, 1.0, 1.0] == pytest.approx(list(line_through(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))))
    flat = line_through(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, -1.0, -1.0, 1.0]))
    assert [0.0, 0.0, 0.0] == pytest.approx(list(flat), abs=1e-12)


@pytest.mark.parametrize("image", [CONV, VIT, ModifiedResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=8)])
def test_towers_are_widened_by_whole_heads(image: ImageTowerConfig) -> None:
    """A configuration of any width can be built, and has about as many times the channels."""
    config = towers(CONV).config.model_copy(update={"image": image})
    wide = scaled(config, 1.4)
    assert 22 == wide.text.width
    counts = [sum(weight.numel() for weight in ClipModel(each).visual.parameters()) for each in (config, wide)]
    assert 1.2 < counts[1] / counts[0] < 2.3
    assert config is scaled(config, 1.0)
