"""What can be exported: a model with all that its bundle will say of it, whatever layout it was read from.

Importing this needs no torch: the readers of tokenizers and configurations use it where there is none.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from model_export.errors import SourceError
from model_export.files import decoded
from service.model.manifest import (
    DEFAULT_TEMPLATES,
    ImageSection,
    Provenance,
    SigmoidScoring,
    SoftmaxScoring,
    TextSection,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model_export.architectures.activations import Activation
    from model_export.architectures.towers import TwoTowers

MIN_TEXT_LENGTH = 2
"""Tokens of the shortest text: start and end."""

SAMPLE_TEXT = "a photo of a cat"

TEMPLATES: dict[str, tuple[str, ...]] = {
    DEFAULT_TEMPLATES: ("a photo of a {}.",),
    "none": ("{}",),
}
"""For a source that brings none: the paper's prompt (section 3.1.4), and the label alone."""


@dataclass(frozen=True)
class SourceOptions:
    """What the user says of a source because its files cannot; none overrides what a file says.

    Attributes:
        arch: a name of `model_export.families.sizes`, for weights without a configuration.
        activation: of both towers' MLPs, for weights whose configuration does not tell.
        tokenizer: a ``tokenizer.json``, or a vocabulary with merges, for weights that carry none.
        name: the bundle's name; by default it follows from the source's.
        source_id: where the files came from, such as ``openai/clip-vit-base-patch32@REVISION``; an alias of the bundle.
        licence: of the weights.
    """

    arch: str | None = None
    activation: "Activation | None" = None
    tokenizer: Path | None = None
    name: str | None = None
    source_id: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class ModelSource:
    """A model that passed every check.

    Attributes:
        name: the bundle's name, a slug.
        aliases: other names the service answers to, such as a hub id.
        architecture: for people, as ``clip/vit``.
        model: both towers with their weights, float32, in evaluation mode, without gradients: ``encode_image`` and
            ``encode_text``.
        dim: of the joint space.
        image: how a picture is prepared; mean and std go into the graph.
        text: how a text is prepared.
        scoring: how cosines become scores, the scale already exponentiated.
        templates: named prompt-template sets, one of them ``default``.
        tokenizer: the bytes of a ``tokenizer.json`` that neither pads nor truncates and adds the special tokens.
        provenance: source, digest of the weights, licence, recipe and card.
    """

    name: str
    aliases: tuple[str, ...]
    architecture: str
    model: "TwoTowers"
    dim: int
    image: ImageSection
    text: TextSection
    scoring: SoftmaxScoring | SigmoidScoring
    templates: dict[str, tuple[str, ...]]
    tokenizer: bytes
    provenance: Provenance


def text_section(*, context_length: int, pad_id: int, end_of_text_id: int, fixed: bool = False) -> TextSection:
    """Say how texts are prepared: padded to the longest of a batch, or where ``fixed`` always to the context."""
    return TextSection(
        padding="fixed" if fixed else "longest",
        min_length=context_length if fixed else MIN_TEXT_LENGTH,
        max_length=context_length,
        pad_id=pad_id,
        end_of_text_id=end_of_text_id,
        canonicalization="tokenizer",
        overflow="refuse",
    )


def check_tokenizer(content: bytes, path: Path, *, vocab_size: int, end_of_text_id: int) -> None:
    """Check that a tokenizer and a text tower belong together.

    Raises:
        SourceError: it cannot be read, pads or truncates, has more tokens than the tower, or does not end a text with
            the id at which the tower reads its feature.
    """
    try:
        tokenizer = Tokenizer.from_str(decoded(content, path))
    except SourceError:
        raise
    except Exception as exc:  # the library raises bare Exception
        raise SourceError(f"{path}: is not a tokenizer ({exc})") from exc
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        raise SourceError(f"{path}: truncates or pads; a served text is never cut, so remove both sections")
    vocabulary = tokenizer.get_vocab_size()
    if vocabulary > vocab_size:
        raise SourceError(f"{path}: has {vocabulary} tokens, the model's text tower knows {vocab_size}")
    # The feature is read at the first end-of-text token, so there must be one, and only at the end.
    ids = tokenizer.encode(SAMPLE_TEXT).ids
    if [i for i, token in enumerate(ids) if token == end_of_text_id] != [len(ids) - 1]:
        raise SourceError(f"{path}: does not end a text with the model's end-of-text id {end_of_text_id}")


def load_weights(model: "nn.Module", weights: "dict[str, Tensor]", path: Path) -> "nn.Module":
    """Put weights into the module they are for, float32 and ready to be exported.

    Raises:
        SourceError: a weight is missing, unknown, of another shape or kind, or not finite; it is named.
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
            raise SourceError(f"{path}: {what} {_some(sorted(names))}")
    for name, tensor in sorted(given.items()):
        if tensor.shape != wanted[name].shape:
            raise SourceError(
                f"{path}: {name} has shape {list(tensor.shape)}, the model has {list(wanted[name].shape)}"
            )
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise SourceError(f"{path}: {name} has dtype {tensor.dtype}, the model has {wanted[name].dtype}")
        if not torch.isfinite(tensor).all():
            raise SourceError(f"{path}: {name} holds NaN or infinity")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
