"""The names of activations, for configurations: those can be read where there is no torch."""

from typing import Literal, TypeAlias

Activation: TypeAlias = Literal["quick_gelu", "gelu", "gelu_tanh"]
