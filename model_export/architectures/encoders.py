"""The two encoders of a bundle's graphs, in torch.

Normalisation and unit length are part of the graph: the service sends bytes and receives vectors that can be compared.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model_export.architectures.towers import TwoTowers

MAX_BYTE = 255.0


class ImageEncoder(nn.Module):
    """Encodes decoded pictures as unit vectors.

    Attributes:
        channels_last: of the memory that :meth:`prepare` returns, for a tower of convolutions.
    """

    scale: Tensor
    shift: Tensor
    channels_last = False

    def __init__(self, model: TwoTowers, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        # (x / 255 - mean) / std as one multiplication and one addition over [batch, 3, h, w].
        deviation = torch.tensor(std, dtype=torch.float64)[:, None, None]
        shift = -torch.tensor(mean, dtype=torch.float64)[:, None, None] / deviation
        self.register_buffer("scale", (1 / (MAX_BYTE * deviation)).float(), persistent=False)
        self.register_buffer("shift", shift.float(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode uint8 ``[batch, h, w, 3]`` to float ``[batch, dim]`` of unit length."""
        return unit_length(self.model.encode_image(self.normalise(pixels)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn uint8 ``[batch, h, w, 3]`` into the tower's input, float ``[batch, 3, h, w]``.

        The dtype is the module's own: float32, or float64 after ``.double()``, as the parity reference is.
        """
        # Transposing bytes before the conversion to float takes a sixth of the time in ONNX Runtime.
        return pixels.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift

    def prepare(self, pixels: Tensor) -> Tensor:
        """Return what :meth:`normalise` does, to the bit, in a quarter of the time: for torch, not for a graph."""
        if not self.channels_last:
            planes = pixels.permute(0, 3, 1, 2).contiguous()
            return planes.to(self.scale.dtype).mul_(self.scale).add_(self.shift)
        scale, shift = (each.flatten().repeat(pixels.shape[2]) for each in (self.scale, self.shift))
        rows = pixels.flatten(2).to(self.scale.dtype).mul_(scale).add_(shift)  # [batch, h, w * 3]
        return rows.view(pixels.shape).permute(0, 3, 1, 2)


class PatchEncoder(ImageEncoder):
    """Encodes pictures that keep their aspect, as rows of patches, as unit vectors."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode uint8 ``[batch, 1 + patches, pixels, 3]``, as `service.model.manifest.ImageSection` describes it."""
        grid = pixels[:, 0, 0, :2].to(self.scale.dtype) + 1  # [batch, 2], rows and columns
        encode: Callable[[Tensor, Tensor], Tensor] = self.model.encode_patches  # type: ignore[assignment]
        return unit_length(encode(self.normalise(pixels[:, 1:]), grid))


class TextEncoder(nn.Module):
    """Encodes token ids as unit vectors."""

    def __init__(self, model: TwoTowers) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Encode int64 ``[batch, length]`` to float ``[batch, dim]`` of unit length."""
        return unit_length(self.model.encode_text(ids))


def unused_tower(encoder: nn.Module) -> nn.Module | None:
    """Return the tower that an encoder holds and does not use; None for any other module."""
    if isinstance(encoder, ImageEncoder):
        return encoder.model.text
    if isinstance(encoder, TextEncoder):
        return encoder.model.visual
    return None


def unit_length(x: Tensor) -> Tensor:
    """Scale each row of float ``[batch, dim]`` to Euclidean length one."""
    # Not by ReduceL2: ONNX Runtime's tools cannot infer shapes behind it, and without shapes they fuse nothing.
    return x / (x * x).sum(dim=1, keepdim=True).sqrt()
