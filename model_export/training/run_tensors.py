"""Name the tensors of a run, for its checkpoints and for the files of its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from model_export.architectures.towers import TwoTowers
from model_export.files import replacing
from model_export.training.checkpoints import Checkpoint
from model_export.training.ema import MovingAverage
from model_export.training.optimizer import Optimizer
from model_export.training.ranks import Ranks
from model_export.training.sharding import gathered

_MODEL, _OPTIMIZER, _AVERAGE = "model/", "optimizer/", "ema/"


def weights_in(checkpoint: Checkpoint) -> Collection[str]:
    """Return the names of a model's weights in a checkpoint."""
    return _under(_MODEL, checkpoint).keys()


@dataclass(frozen=True)
class RunTensors:
    """The tensors that a step of a run changes."""

    model: TwoTowers
    optimizer: Optimizer
    ema: MovingAverage | None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Fill all from a checkpoint.

        Raises:
            TrainingError: it is of another model.
        """
        self.optimizer.allocate(_under(_OPTIMIZER, checkpoint))
        checkpoint.load(self._named())

    def to_save(self) -> dict[str, Tensor]:
        """Return all by name; only the step of an optimiser changes those that are not copies."""
        # Batch norms change their statistics in the next forward pass, while the rest is being copied.
        buffers = {_MODEL + name for name, _ in self.model.named_buffers()}
        return {name: tensor.clone() if name in buffers else tensor for name, tensor in self._named().items()}

    def _named(self) -> dict[str, Tensor]:
        parts = {_MODEL: self.model.state_dict(), _OPTIMIZER: self.optimizer.state()}
        if self.ema is not None:
            parts[_AVERAGE] = dict(self.ema.state_dict())
        return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}


def save_weights(weights: Mapping[str, Tensor], path: Path, ranks: Ranks) -> None:
    """Write a model's weights; on all ranks, of which the first writes."""
    tensors = gathered(weights, ranks)
    if ranks.leads:
        with replacing(path) as partial:
            save_file(tensors, partial)


def _under(prefix: str, checkpoint: Checkpoint) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of each tensor whose name has a prefix, without it."""
    return {name.removeprefix(prefix): size for name, size in checkpoint.sizes.items() if name.startswith(prefix)}
