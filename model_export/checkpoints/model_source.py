"""A model that can be exported, with everything that its bundle states, whatever layout it was read from.

Importing this needs no torch: published ONNX graphs are read without it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model_export.bundles.writer import BundleSource
from model_export.checkpoints.file_choice import WeightsLayout
from model_export.errors import SourceError
from model_export.families.family import ModelConfig
from model_export.families.key_tables import shown
from service.model.manifest import DEFAULT_TEMPLATES, Cleaning, SigmoidScoring, TextSection

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model_export.architectures.activations import Activation
    from model_export.architectures.towers import TwoTowers

LOGIT_BIAS = "logit_bias"
"""Name of the weight that only models trained with a sigmoid loss have."""

MIN_TEXT_LENGTH = 2
"""Tokens of the shortest text: start and end."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    DEFAULT_TEMPLATES: ("a photo of a {}.",),
    "none": ("{}",),
}
"""For a source without templates: the paper's prompt (section 3.1.4), and the label alone."""


@dataclass(frozen=True)
class SourceOptions:
    """Facts that the user states because a source's files do not; none overrides a file.

    Attributes:
        arch: a name of `model_export.families.sizes`, for weights without a configuration.
        activation: of both towers' MLPs, for weights whose configuration does not state it.
        tokenizer: a ``tokenizer.json``, or a vocabulary with merges, for weights that carry none.
        name: of the bundle; by default it follows from the source's.
        source_id: origin of the files, such as ``openai/clip-vit-base-patch32@REVISION``; an alias of the bundle.
        licence: of the weights.
        weights: of a training run: the last ones, or their moving average.
        layout: of the weights to read, where a folder holds several.
        as_published: prepare pictures and texts as the source's files say, also where that is known to differ from
            training.
        keep_aspect: have pictures keep their aspect, for kinds whose published preprocessing does.
        image_model: a hub id or path, for a text model alone: the model with the image tower that it was trained for.
    """

    arch: str | None = None
    activation: "Activation | None" = None
    tokenizer: Path | None = None
    name: str | None = None
    source_id: str | None = None
    licence: str | None = None
    weights: Literal["last", "ema"] = "last"
    layout: WeightsLayout | None = None
    as_published: bool = False
    keep_aspect: bool = False
    image_model: str | None = None


@dataclass(frozen=True)
class ModelSource(BundleSource):
    """A model with its weights.

    Attributes:
        config: both towers as data.
        model: both towers, float32, in evaluation mode, without gradients: ``encode_image`` and ``encode_text``.
    """

    config: ModelConfig
    model: "TwoTowers"

    def weights(self) -> "dict[str, Tensor]":
        """Return the weights by our names, with ``logit_bias`` if scores are sigmoids, whatever the family."""
        import torch

        weights = dict(self.model.state_dict())
        if isinstance(self.scoring, SigmoidScoring):
            weights.setdefault(LOGIT_BIAS, torch.tensor(self.scoring.logit_bias))
        return weights


def text_section(
    *, context_length: int, pad_id: int, end_of_text_id: int, fixed: bool = False, cleaning: Cleaning = "none"
) -> TextSection:
    """Return the manifest's section for texts padded to the longest of a batch, or if ``fixed`` to the context."""
    return TextSection(
        padding="fixed" if fixed else "longest",
        min_length=context_length if fixed else MIN_TEXT_LENGTH,
        max_length=context_length,
        pad_id=pad_id,
        end_of_text_id=end_of_text_id,
        canonicalization="tokenizer",
        cleaning=cleaning,
        overflow="refuse",
    )


def load_weights(model: "nn.Module", weights: "dict[str, Tensor]", path: Path) -> "nn.Module":
    """Load weights into a module, and make it float32, in evaluation mode and without gradients.

    Raises:
        SourceError: a weight is missing, unknown, of another shape or dtype, or not finite; the message names it.
    """
    _check_weights(path, weights, model.state_dict())
    model.load_state_dict(weights)
    return model.float().eval().requires_grad_(requires_grad=False)


def _check_weights(path: Path, given: "dict[str, Tensor]", wanted: "dict[str, Tensor]") -> None:
    import torch

    for what, names in (
        ("lacks", wanted.keys() - given.keys()),
        ("has unknown", given.keys() - wanted.keys()),
    ):
        if names:
            raise SourceError(f"{path}: {what} {shown(names)}")
    for name, tensor in sorted(given.items()):
        if tensor.shape != wanted[name].shape:
            raise SourceError(
                f"{path}: {name} has shape {list(tensor.shape)}, the model has {list(wanted[name].shape)}"
            )
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise SourceError(f"{path}: {name} has dtype {tensor.dtype}, the model has {wanted[name].dtype}")
        if not torch.isfinite(tensor).all():
            raise SourceError(f"{path}: {name} holds NaN or infinity")
