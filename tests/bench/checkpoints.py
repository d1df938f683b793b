"""Measure what a checkpoint in the background costs: the time of steps while one is written, and of steps without.

Run by ``make bench-checkpoints``. Both kinds of steps alternate, so other programs slow both down alike. The wanted
figure is 5% of a step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from model_export.architectures.encoders import ImageEncoder
from model_export.architectures.towers import TwoTowers
from model_export.data.loading import Batch
from model_export.data.tally import Tally
from model_export.families.clip.config import ClipConfig
from model_export.families.clip.model import ClipModel
from model_export.families.sizes import named_size
from model_export.training.checkpoint_writer import CheckpointWriter
from model_export.training.checkpoints import State
from model_export.training.gradients import Gradients
from model_export.training.optimizer import Optimizer
from model_export.training.ranks import ALONE
from model_export.training.run_tensors import RunTensors

WANTED = 0.05
SMALL = {
    "embed_dim": 128,
    "image": {"kind": "vit", "image_size": 32, "patch_size": 4, "width": 192, "layers": 4, "heads": 3},
    "text": {
        "vocab_size": 4096,
        "context_length": 32,
        "width": 192,
        "layers": 3,
        "heads": 3,
        "end_of_text_id": 4095,
        "pad_id": 0,
    },
}


def report(line: str) -> None:
    """Print a line."""
    print(line, flush=True)  # noqa: T201


class Training:
    """Steps on one random batch."""

    def __init__(self, config: ClipConfig, batch_size: int) -> None:
        self.model: TwoTowers = ClipModel(config).train()
        encoder = ImageEncoder(self.model, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.gradients = Gradients(self.model, encoder, "softmax")
        self.optimizer = Optimizer(self.model, lr=1e-5, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-6)
        size, text = config.image.image_size, config.text
        ids = torch.randint(1, text.vocab_size - 2, (batch_size, text.context_length))
        ids[:, -1] = text.end_of_text_id
        rows = torch.arange(batch_size)
        pixels = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8)
        self.batch = Batch(0, pixels, ids, rows, rows, rows, Tally(), ())

    def step(self, writer: CheckpointWriter) -> float:
        """Take a step as the trainer does; return the time that it waited for a copy."""
        self.model.zero_grad(set_to_none=True)
        self.gradients(self.batch)
        started = time.perf_counter()
        writer.copied()
        waited = time.perf_counter() - started
        self.optimizer.step(1.0)
        return waited


def main() -> None:
    """Print the figures, beside the one that is wanted."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--size", default="small", help="small, or a size's name such as ViT-B-32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = ClipConfig.model_validate(SMALL) if options.size == "small" else named_size(options.size).config
    assert isinstance(config, ClipConfig)
    training = Training(config, options.batch_size)
    state = State(step=1, recipe_digest="", data_digests=(), seconds=0.0, tally={})
    without, during, stalls, written = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), ALONE, report)
        training.step(writer)
        tensors = RunTensors(training.model, training.optimizer, None)
        report(f"{sum(tensor.nbytes for tensor in tensors.to_save().values()) / 1e6:,.0f} MB in a checkpoint")
        for number in range(options.rounds + 1):
            begun = time.perf_counter()
            writer.begin(state.model_copy(update={"step": number}), tensors.to_save())
            stall = time.perf_counter() - begun
            steps = []
            while writer.is_writing:
                started = time.perf_counter()
                stall += training.step(writer)
                steps.append(time.perf_counter() - started)
            if number == 0:
                continue  # memory for the copy is taken once
            written.append(time.perf_counter() - begun)
            stalls.append(stall)
            during += steps
            for _ in steps:
                started = time.perf_counter()
                training.step(writer)
                without.append(time.perf_counter() - started)
        writer.close()
    step = statistics.median(without)
    report(f"step without: {step:.3f} s, median of {len(without)}")
    report(f"step while one is written: {statistics.median(during):.3f} s, median of {len(during)}")
    report(f"written in {statistics.median(written):.2f} s, {len(during) / options.rounds:.1f} steps")
    stall = statistics.median(stalls)
    report(f"training stood still for {stall * 1e3:.1f} ms: {stall / step:.1%} of a step (wanted: {WANTED:.0%})")
    report(f"steps while one is written: {statistics.median(during) / step - 1:+.1%}")


if __name__ == "__main__":
    main()
