"""Tests of towers that are divided among ranks (FSDP2)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from model_export.architectures.encoders import ImageEncoder
from model_export.architectures.layers import ResidualAttentionBlock
from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import RecipeError
from model_export.training.ema import MovingAverage
from model_export.training.gradients import Gradients
from model_export.training.joining import joined
from model_export.training.optimizer import Optimizer
from model_export.training.ranks import ALONE, Ranks
from model_export.training.recipe import read_recipe
from model_export.training.recipe_digest import digest
from model_export.training.run import train
from model_export.training.sharding import clip_grad_norm, divide, gathered, own_part
from tests.model_export.training.test_ranks import BATCH, CASES, part_of_batch, tiny, tiny_teacher
from tests.model_export.training.test_run import VIT, metrics, recipe
from tests.support.ranks import on_ranks

STEPS = 2
SHARED: dict[str, dict[str, Any]] = {
    name: CASES[name] for name in ("smoothing", "frozen images", "distillation", "sigmoid in chunks")
} | {"recomputed micro-batches": {"recomputes": True, "micro_batch": 5}}


def trained(ranks: Ranks, *, recomputes: bool = False, **options: Any) -> dict[str, Tensor]:
    """Return loss, gradients, their norm, weights and average of some steps in float64; of a rank, its parts."""
    model = tiny()
    frozen = options.get("frozen", ())
    if frozen:
        model.visual.requires_grad_(requires_grad=False)
    for module in model.modules():
        if isinstance(module, ResidualAttentionBlock):
            module.recomputes = recomputes
    divided = ranks.size > 1
    ema = MovingAverage(model, 0.5)
    if divided:
        divide(model, ranks)
        divide(ema.model, ranks)
        ema.follow(model)
    encoder = ImageEncoder(model, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).double()
    teacher = tiny_teacher() if "distillation" in options else None
    gradients = Gradients(
        model, encoder, **{"loss": "softmax", **options}, teacher=teacher, ranks=ranks, divided=divided
    )
    optimizer = Optimizer(model, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-3)
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        model.zero_grad()
        found[f"{step}/loss"] = gradients(part_of_batch(*ranks.part(BATCH)))
        own = {f"{step}/gradient/{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        found |= {name: own_part(gradient).clone() for name, gradient in own.items()}
        found[f"{step}/norm"] = clip_grad_norm(model.parameters(), 0.01)
        optimizer.step(1.0)
        ema.update(step)
        with torch.no_grad():  # as a measurement between two steps
            found[f"{step}/average"] = ema.model.encode_text(torch.full((2, 6), 19))
            found[f"{step}/vectors"] = model.encode_text(torch.full((2, 6), 19))
    named = {**model.state_dict(), **{f"ema/{name}": tensor for name, tensor in ema.state_dict().items()}}
    assert divided == any(isinstance(tensor, DTensor) for tensor in named.values())
    if divided:
        biggest = named["text.token_embedding.weight"]
        assert own_part(biggest).numel() <= -(-biggest.shape[0] // ranks.size) * biggest.shape[1]
    return {**found, **{name: own_part(tensor).clone() for name, tensor in named.items()}}


def difference(part: Tensor, expected: Tensor, ranks: Ranks) -> float:
    """Return the largest difference of a tensor, or of a rank's part of its rows."""
    if part.shape != expected.shape:
        rows = -(-len(expected) // ranks.size)
        expected = expected[ranks.rank * rows : (ranks.rank + 1) * rows]
    assert part.shape == expected.shape
    return float((part - expected).abs().max()) if part.numel() else 0.0


def largest_difference(case: str) -> float:
    """Return the largest difference from one process whose weights are whole."""
    with joined("cpu") as ranks:
        together, alone = trained(ranks, **SHARED[case]), trained(ALONE, **SHARED[case])
        assert together.keys() == alone.keys()
        return max(difference(together[key], alone[key], ranks) for key in alone)


@pytest.mark.parametrize(("size", "case"), [*((2, case) for case in SHARED), (3, "recomputed micro-batches")])
def test_divided_towers_are_trained_as_whole_ones(size: int, case: str) -> None:
    """To 1e-9 in float64: gradients, their norm, weights and average, in each objective, between measurements too."""
    assert all(each <= 1e-9 for each in on_ranks(size, largest_difference, case))


def gathered_weights() -> tuple[int, bool]:
    """Return how many whole tensors a rank gets, and whether they are those of the model."""
    with joined("cpu") as ranks:
        model, same = tiny(), tiny().state_dict()
        divide(model, ranks)
        tensors = gathered(model.state_dict(), ranks)
        return len(tensors), all(torch.equal(tensor, same[name]) for name, tensor in tensors.items())


def test_whole_weights_are_the_first_ranks_alone() -> None:
    """The others only help to put them together."""
    assert [(len(tiny().state_dict()), True), (0, True)] == on_ranks(2, gathered_weights)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ("muon_lr = 0.02", "muon_lr: Muon needs whole matrices"),
        ("compile = true", "compile: compiled towers"),
        ('precision = "fp16"', 'precision = "fp16": its scaler takes whole gradients; use "bf16"'),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name(tmp_path: Path, keys: str, named: str) -> None:
    """Before any data is read."""
    path = tmp_path / "recipe.toml"
    text = f'name = "a"\n[data]\nfiles = ["none"]\n[captions]\ntemplates = ["{{}}"]\n[optim]\nshard = true\n{keys}\n'
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError, match="shard cannot be combined with " + named):
        read_recipe(path)


def train_part(path: Path, run: Path, **options: Any) -> str:
    """Train on this rank, and return the console's text."""
    console = Console(file=io.StringIO(), width=200)
    train(path, out=run, device="cpu", console=console, **options)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.slow
def test_a_divided_run_goes_on_on_any_number_of_processes(tmp_path: Path) -> None:
    """With the same bits on as many; with one, where nothing is divided, to 1e-5. Its weights are a run like others."""
    path = recipe(tmp_path, rows=134, batch_size="12", epochs="1", checkpoint_every="4", evaluate_every="5", **VIT)
    text = path.read_text("utf-8").replace("[optim]\n", "[optim]\nema = 0.5\nclip_grad_norm = 1.0\n")
    path.write_text(text, "utf-8")
    alone = digest(read_recipe(path))
    train_part(path, tmp_path / "whole")
    path.write_text(text.replace("[optim]\n", "[optim]\nshard = true\n"), "utf-8")
    assert alone == digest(read_recipe(path))
    run = tmp_path / "divided"
    first, _ = on_ranks(2, train_part, path, run)
    assert "step 5: zero-shot on pairs" in first
    assert metrics(run)[-1].keys() == metrics(tmp_path / "whole")[-1].keys()

    names = ("model.safetensors", "model-ema.safetensors")
    expected = {name: load_file(run / name) for name in names}
    for size, exactly in ((2, True), (1, False)):
        for name in names:
            (run / name).unlink()
        first, *_ = on_ranks(size, train_part, path, run, resume=True)
        assert "from step 8" in first
        for name in names:
            for kind, others in ((exactly, expected[name]), (False, load_file(tmp_path / "whole" / name))):
                for key, tensor in load_file(run / name).items():
                    if kind:
                        assert torch.equal(tensor, others[key]), key
                    elif "k_proj.bias" not in key:
                        torch.testing.assert_close(tensor, others[key], rtol=0, atol=1e-5)
    assert load_model(run, SourceOptions(weights="ema")).model.training is not None
