"""The values that requests, settings and command-line options choose from. Quick to import, for the command line.

Provider names are not here: they are the rows of `service.model.engine.provider_table.TABLE`.
"""

from typing import Literal, TypeAlias

ScoringKind: TypeAlias = Literal["softmax", "sigmoid"]
"""How a model was trained to score."""
ScoringMethod: TypeAlias = Literal[ScoringKind, "cosine"]
"""How a request is scored."""
Preprocessing: TypeAlias = Literal["exact", "fast"]
"""CLIP's own preprocessing to the bit, or a quicker one that comes near it: see docs/preprocessing.md."""
ColourProfiles: TypeAlias = Literal["ignore", "convert"]
"""Whether pictures with a colour profile are converted to sRGB; CLIP's own preprocessing ignores it."""
Compute: TypeAlias = Literal["fp32", "bf16"]
"""Precision in which a float32 graph is computed."""
ChosenBy: TypeAlias = Literal["name", "rule", "measurement"]
"""The way a provider was chosen: by the operator, by the CPU's flags, or by timing it, now or at an earlier start."""
ComputeChoice: TypeAlias = Literal["auto", Compute]
"""`auto` is bf16 on CPUs that are much faster in it, else fp32."""
