"""What configurations and layers share, free of torch: names of activations, and LayerNorm's epsilon."""

from typing import Final, Literal, TypeAlias

Activation: TypeAlias = Literal["quick_gelu", "gelu", "gelu_tanh"]

LAYER_NORM_EPS: Final = 1e-5
"""torch's default."""
