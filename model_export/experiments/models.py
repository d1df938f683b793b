"""The models of the objectives, around one image tower: two encoders, a head over words, a decoder of captions."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_export.architectures.towers import TwoTowers
from model_export.data.loading import Batch
from model_export.errors import RecipeError
from model_export.experiments.decoder import CaptionDecoder
from model_export.experiments.recipe import DecoderSection
from model_export.families.clip.config import ImageTowerConfig, ResidualConvConfig, VisionTransformerConfig
from model_export.families.clip.residual_conv import ResidualConv
from model_export.families.clip.vit import VisionTransformer
from model_export.training.gradients import Gradients


class MlpTowers(TwoTowers):
    """Two towers whose linear projections go on through GELU and a second linear layer of the joint space's width."""

    def __init__(self, towers: TwoTowers, embed_dim: int) -> None:
        super().__init__()
        self.visual, self.text, self.logit_scale = towers.visual, towers.text, towers.logit_scale
        self.image_head, self.text_head = (
            nn.Sequential(nn.GELU(), nn.Linear(embed_dim, embed_dim, bias=False)) for _ in range(2)
        )

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels, float ``[batch, 3, h, w]``, to ``[batch, dim]``."""
        out: Tensor = self.image_head(super().encode_image(pixels))
        return out

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode token ids, int64 ``[batch, length]``, to ``[batch, dim]``."""
        out: Tensor = self.text_head(super().encode_text(ids))
        return out


class TextPredictor(TwoTowers):
    """An image tower that learns to predict captions; in place of a text tower it has a predictor."""

    def __init__(self, towers: TwoTowers) -> None:
        super().__init__()
        self.visual = towers.visual
        # The trainer clips and logs the scale of every model; this one has no use for it.
        self.logit_scale = nn.Parameter(torch.zeros(()), requires_grad=False)

    @abstractmethod
    def loss(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Return the mean loss of captions, int64 ``[batch, length]``, given normalised pixels of their pictures."""

    @abstractmethod
    def scores(self, pixels: Tensor, names: Tensor, prompts: Tensor) -> Tensor:
        """Return the score of each class for each picture, float ``[pictures, classes]``.

        Args:
            pixels: normalised, float ``[pictures, 3, h, w]``.
            names: ids of the bare class names, int64 ``[classes, length]``.
            prompts: ids of the class names in one template, likewise.
        """


class BagOfWords(TextPredictor):
    """A linear head over the caption's tokens, as in SuperClass (Huang et al. 2024).

    The target is the share of each token in the caption, weighted by its inverse document frequency; the loss is the
    cross-entropy of a softmax over the vocabulary.

    Args:
        weights: inverse document frequency of every token, float ``[vocabulary]``; 0 for those around every text.
    """

    weights: Tensor

    def __init__(self, towers: TwoTowers, embed_dim: int, weights: Tensor) -> None:
        super().__init__(towers)
        self.head = nn.Linear(embed_dim, len(weights))
        self.register_buffer("weights", weights)

    def _shares(self, ids: Tensor, weights: Tensor) -> Tensor:
        counts = torch.zeros(len(ids), len(weights), device=ids.device)
        counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=counts.dtype))
        weighted = counts * weights
        return weighted / weighted.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weighted.dtype).tiny)

    def loss(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Return the cross-entropy with the captions' weighted tokens."""
        log_p = self.head(self.visual(pixels)).float().log_softmax(dim=1)
        loss: Tensor = -(self._shares(ids, self.weights) * log_p).sum(dim=1).mean()
        return loss

    def scores(self, pixels: Tensor, names: Tensor, prompts: Tensor) -> Tensor:  # noqa: ARG002 - names alone score
        """Return the mean log p of the tokens of each class name."""
        log_p = self.head(self.visual(pixels)).float().log_softmax(dim=1)
        scores: Tensor = log_p @ self._shares(names, (self.weights > 0).float()).T
        return scores


class Captioning(TextPredictor):
    """A decoder that predicts the caption token by token, as the forward one of VirTex (Desai and Johnson 2021)."""

    def __init__(
        self, towers: TwoTowers, section: DecoderSection, vocabulary: int, context_length: int, end: int
    ) -> None:
        super().__init__(towers)
        self.end = end
        self.decoder = CaptionDecoder(section, feature_width(self.visual), vocabulary, context_length)

    def loss(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Return the mean cross-entropy of all tokens of the batch, the end of each caption included."""
        logits = self.decoder(features(self.visual, pixels), ids[:, :-1]).float()
        after = ids[:, 1:]
        counted = _up_to_end(after, self.end)
        return nn.functional.cross_entropy(logits[counted], after[counted])

    def scores(self, pixels: Tensor, names: Tensor, prompts: Tensor) -> Tensor:  # noqa: ARG002 - prompts alone score
        """Return the log p of each class's prompt.

        Prompts that begin alike share the log p of their beginnings.
        """
        before, after = prompts[:, :-1], prompts[:, 1:]
        counted = _up_to_end(after, self.end)
        beginnings: dict[tuple[int, ...], int] = {}
        places, numbers = list[int](), torch.zeros_like(before)
        for caption, place in counted.nonzero().tolist():
            beginning = tuple(before[caption, : place + 1].tolist())
            if beginning not in beginnings:
                beginnings[beginning] = len(places)
                places.append(caption * before.shape[1] + place)
            numbers[caption, place] = beginnings[beginning]
        at = torch.tensor(places, device=prompts.device)
        log_p = self.decoder.of_all(features(self.visual, pixels), before, at).float().log_softmax(dim=2)
        each: Tensor = log_p[:, numbers, after]  # [pictures, classes, length - 1]
        return (each * counted).sum(dim=2)


@dataclass(frozen=True)
class PredictionGradients(Gradients):
    """The gradients of a text predictor's own loss."""

    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, on the model's device; without its graph."""
        model = self.model
        assert isinstance(model, TextPredictor)  # noqa: S101 - tells the type checker
        with self.autocast():
            loss = model.loss(self.image_encoder.prepare(batch.pixels), batch.ids[batch.caption])
        return self._backward(loss)


def features(tower: nn.Module, pixels: Tensor) -> Tensor:
    """Return an image tower's features before they are pooled, float ``[pictures, positions, width]``."""
    if isinstance(tower, ResidualConv):
        stages: Tensor = tower.stages(tower.stem(pixels))
        return stages.flatten(2).transpose(1, 2)
    assert isinstance(tower, VisionTransformer)  # noqa: S101 - check_features refuses others
    return tower.tokens(pixels)


def feature_width(tower: nn.Module) -> int:
    """Return the channels of an image tower's features."""
    if isinstance(tower, ResidualConv):
        return tower.proj.in_features
    assert isinstance(tower, VisionTransformer)  # noqa: S101 - check_features refuses others
    return tower.proj.shape[0]


def check_features(image: ImageTowerConfig | None) -> None:
    """Check that captions can be predicted from the features of an image tower.

    Raises:
        RecipeError: they cannot.
    """
    if not isinstance(image, ResidualConvConfig | VisionTransformerConfig):
        msg = 'model.image.kind: captions are predicted from the features of a "residual_conv" or a "vit"; take one'
        raise RecipeError(msg)


def _up_to_end(ids: Tensor, end: int) -> Tensor:
    """Mark the tokens up to the first end, that one included: bool ``[captions, length]``."""
    is_end = ids == end
    return is_end.cumsum(dim=1) - is_end.long() == 0
