"""Counts the operations of towers from their configurations, without torch.

Counted are the multiplications with their additions of convolutions, linear layers and attention, as open_clip's
``docs/model_profile.csv`` has them; norms, activations and lookups are not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operations:
    """Multiply-adds of one picture and of one text of the whole context."""

    image: int
    text: int

    @property
    def gflops(self) -> tuple[float, float]:
        """Return GFLOPs of a picture and of a text; a multiply-add is two operations."""
        return 2 * self.image / 1e9, 2 * self.text / 1e9


def transformer_operations(tokens: int, width: int, layers: int, mlp_width: int) -> int:
    """Count a transformer's multiply-adds for one sequence: projections, attention, MLP."""
    linear = tokens * (4 * width**2 + 2 * width * mlp_width)
    return layers * (linear + 2 * tokens**2 * width)
