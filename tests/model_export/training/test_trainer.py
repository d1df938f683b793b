"""Tests of the trainer's choices: reads of the device, averaged weights, precision, compiled towers, micro-batches."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import RecipeError, SourceError, TrainingError
from model_export.training import trainer as trainers
from model_export.training.optimizer import Optimizer
from model_export.training.precision import chosen
from model_export.training.run import train
from model_export.training.trainer import Trainer
from tests.model_export.test_cli import in_this_process
from tests.model_export.training.test_run import VIT, WHITENING, metrics, quiet, recipe
from tests.support.tiny_run import write_tiny_run


def with_keys(path: Path, section: str, keys: str) -> Path:
    """Add keys to a section of a recipe."""
    text = path.read_text("utf-8")
    assert f"[{section}]\n" in text
    path.write_text(text.replace(f"[{section}]\n", f"[{section}]\n{keys}\n"), "utf-8")
    return path


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the numbers that are read from the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and go on."""
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_losses_are_read_when_they_are_logged_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps between two lines of metrics do not wait for the device: twice as many steps, as many reads."""
    counts = []
    loop = Trainer.loop

    def counted(self: Trainer, *arguments: Any) -> None:
        with Reads() as reads:
            loop(self, *arguments)
        counts.append(reads.count)

    monkeypatch.setattr(Trainer, "loop", counted)
    for epochs in ("1", "2"):
        path = recipe(tmp_path, rows=160, epochs=epochs, checkpoint_every="100", validation_every="0", **VIT)
        path.write_text(path.read_text("utf-8").replace("log_every = 1", "log_every = 100"), "utf-8")
        run = train(path, out=tmp_path / epochs, device="cpu", console=quiet())
        assert 2 == sum("loss" in line for line in metrics(run))

    assert 0 < counts[0] == counts[1]


def test_a_loss_between_two_lines_stops_the_run_before_the_next_checkpoint(tmp_path: Path) -> None:
    """Nothing is logged at that step, and yet no checkpoint of broken weights is written."""
    path = recipe(tmp_path, epochs="2", lr="1e30", checkpoint_every="6")
    path.write_text(path.read_text("utf-8").replace("log_every = 1", "log_every = 100"), "utf-8")
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at step [2-6];"):
        train(path, out=tmp_path / "run", device="cpu", console=quiet())
    assert not list((tmp_path / "run").rglob("step-*"))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fused_optimiser_is_adamw(layout: torch.memory_format) -> None:
    """Its steps are those of torch's plain AdamW, in any memory layout of a kernel."""
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(8 * 36, 4))
        model.to(memory_format=layout)  # type: ignore[call-overload]
        optimizer = Optimizer(model, lr=0.1, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-6)
        groups = optimizer._adamw.param_groups
        assert [True, True] == [group["fused"] for group in groups]
        for group in groups:
            group["fused"] = fused
        for _ in range(4):
            model.zero_grad()
            model(torch.randn(2, 3, 8, 8)).square().sum().backward()
            optimizer.step(1.0)
        found.append([parameter.detach() for parameter in model.parameters()])

    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train with a moving average; return the recipe and the run."""
    folder = tmp_path_factory.mktemp("averaged")
    path = with_keys(
        recipe(folder, rows=160, epochs="2", checkpoint_every="7", evaluate_every="9", **WHITENING),
        "optim",
        "ema = 0.5",
    )
    return path, train(path, out=folder / "run", device="cpu", console=quiet())


def test_the_average_follows_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step moves it by one minus the decay towards the weights, whitened stem and batch norms included."""
    path = with_keys(recipe(tmp_path, rows=80, epochs="1", **WHITENING), "optim", "ema = 0.5")
    seen: list[dict[str, torch.Tensor]] = []
    step = Trainer._step

    def watched(self: Trainer, batch: Any) -> Any:
        if not seen:
            seen.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        values = step(self, batch)
        seen.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        return values

    monkeypatch.setattr(trainers.Trainer, "_step", watched)
    run = train(path, out=tmp_path / "run", device="cpu", console=quiet())

    average = {name: tensor.double() for name, tensor in seen[0].items()}
    for n, weights in enumerate(seen[1:]):
        decay = min(0.5, (1 + n) / (10 + n))
        for name, tensor in weights.items():
            average[name] = decay * average[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor
    for name, tensor in load_file(run / "model-ema.safetensors").items():
        torch.testing.assert_close(tensor, average[name].to(tensor.dtype), rtol=1e-5, atol=1e-6)


def test_an_averaged_run_resumes_to_the_bit(averaged: tuple[Path, Path], tmp_path: Path) -> None:
    """The average is in the checkpoint: resumed, both files hold the bits of the undisturbed run."""
    path, run = averaged
    names = ("model.safetensors", "model-ema.safetensors")
    whole = {name: load_file(run / name) for name in names}
    cut = tmp_path / "cut"
    train(path, out=cut, device="cpu", console=quiet())
    (cut / names[0]).unlink()
    (cut / names[1]).unlink()
    shutil.rmtree(max((cut / "checkpoints").iterdir()))

    train(path, out=cut, resume=True, device="cpu", console=quiet())

    for name in names:
        again = load_file(cut / name)
        assert all(torch.equal(tensor, again[key]) for key, tensor in whole[name].items()), name
    assert not torch.equal(whole[names[0]]["text.text_projection"], whole[names[1]]["text.text_projection"])


def test_averaged_weights_are_measured_and_exported(averaged: tuple[Path, Path], tmp_path: Path) -> None:
    """Validation shows both; `--weights ema` exports and verifies the average, and refuses what has none."""
    _, run = averaged
    lines = [line for line in metrics(run) if "pairs/top1" in line]
    assert 2 == len(lines)
    assert all("pairs/ema_top1" in line and "pairs/ema_top5" in line for line in lines)
    last, ema = (load_model(run, SourceOptions(weights=weights)) for weights in ("last", "ema"))
    assert last.provenance.source_sha256 != ema.provenance.source_sha256
    assert ema.provenance.source.endswith("moving average of the weights")
    out = tmp_path / "bundle"
    assert 0 == in_this_process("export", run, out, "--weights", "ema").returncode
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    assert ema.provenance.source_sha256 == manifest["provenance"]["source_sha256"]
    assert 0 == in_this_process("verify", out, "--run", run, "--weights", "ema").returncode
    assert "failed: reference" in in_this_process("verify", out, "--run", run).stdout

    other = write_tiny_run(tmp_path / "other")
    with pytest.raises(SourceError, match=r"model-ema\.safetensors: is missing; its recipe needs optim\.ema"):
        load_model(other, SourceOptions(weights="ema"))
    with pytest.raises(SourceError, match="is no training run, so it has no moving average"):
        load_model(run / "model.safetensors", SourceOptions(weights="ema"))


def test_a_run_in_micro_batches_has_the_same_losses(tmp_path: Path) -> None:
    """Step after step, they are those of the run without them."""
    losses = []
    for name, keys in (("whole", ""), ("parts", "micro_batch = 5")):
        path = with_keys(recipe(tmp_path, rows=80, epochs="1", **VIT), "optim", keys)
        run = train(path, out=tmp_path / name, device="cpu", console=quiet())
        losses.append([line["loss"] for line in metrics(run) if "loss" in line])
    assert 4 == len(losses[0])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_batch_norms_in_micro_batches_must_be_accepted(tmp_path: Path) -> None:
    """Their statistics would be those of fewer pairs; the message has both numbers and both ways out."""
    path = with_keys(recipe(tmp_path, rows=80, epochs="1"), "optim", "micro_batch = 4")
    with pytest.raises(
        RecipeError, match=r"batch norms, which would see 4 pairs in place of 16; set accept_batch_norm"
    ):
        train(path, out=tmp_path / "run", device="cpu", console=quiet())
    assert not (tmp_path / "run").exists()
    with_keys(path, "optim", "accept_batch_norm = true")
    assert (train(path, out=tmp_path / "run", device="cpu", console=quiet()) / "model.safetensors").exists()


def test_fp16_on_a_cpu_is_refused(tmp_path: Path) -> None:
    """The message says why, and what to use."""
    with pytest.raises(TrainingError, match=r"optim.precision is fp16, which is for GPUs .* use \"bf16\" or \"fp32\""):
        train(recipe(tmp_path, precision='"fp16"'), out=tmp_path / "run", device="cpu", console=quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16", "bf16"])
def test_auto_is_bf16_where_the_device_has_it(instruction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without the instructions computes bf16 in software, several times more slowly than fp32."""
    cpu = torch.device("cpu")

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, instruction: True})
    assert chosen("auto", cpu) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": True, instruction: False})
    assert chosen("auto", cpu) == "fp32"
    assert chosen("bf16", cpu) == "bf16"


def test_a_slow_precision_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bf16 that was asked for is computed, after a note; the line of the run says the precision."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    said = StringIO()
    console = Console(file=said, width=200)

    train(recipe(tmp_path, precision='"bf16"'), out=tmp_path / "run", device="cpu", console=console)
    train(recipe(tmp_path, precision='"auto"'), out=tmp_path / "other", device="cpu", console=console)

    text = said.getvalue()
    assert ", in bf16\n" in text
    assert ", in fp32\n" in text
    assert text.count('take optim.precision = "auto" or "fp32"') == 1


@pytest.mark.parametrize("muon_lr", [None, 0.02])
def test_a_gradient_scaler_changes_no_step_and_skips_an_overflow(muon_lr: float | None) -> None:
    """Scaled gradients are scaled back before both optimisers; with an infinite one, no parameter moves."""
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = Optimizer(model, lr=0.1, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-6, muon_lr=muon_lr)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=1024.0)
        for _ in range(3):
            model.zero_grad()
            torch.autograd.backward(scaler.scale(model(torch.randn(2, 3, 8, 8)).square().sum()))
            scaler.unscale_(optimizer)  # type: ignore[arg-type]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer, 1.0)  # type: ignore[arg-type]
            scaler.update()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
        if enabled:
            next(model.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]
            scaler.unscale_(optimizer)  # type: ignore[arg-type]
            scaler.step(optimizer, 1.0)  # type: ignore[arg-type]
            assert all(torch.equal(one, p) for one, p in zip(found[1], model.parameters(), strict=True))

    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own use
def test_compiling_without_a_compiler_is_refused(tmp_path: Path) -> None:
    """One line names the compiler and the key, before the data are read."""
    from torch._inductor import config  # slow to import

    path = with_keys(recipe(tmp_path), "optim", "compile = true")
    with (
        config.patch({"cpp.cxx": ("/nonexistent/g++",)}),
        pytest.raises(TrainingError, match=r"optim.compile needs a C\+\+ compiler such as g\+\+, .* compile = false"),
    ):
        train(path, out=tmp_path / "run", device="cpu", console=quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own use
@pytest.mark.long
@pytest.mark.timeout(600)
def test_compiled_towers_train_the_same_model(tmp_path: Path) -> None:
    """Names of weights stay, and losses are those of the run that was not compiled, but for rounding."""
    weights, losses = [], []
    for name, keys in (("eager", ""), ("compiled", "compile = true\nema = 0.9")):
        path = with_keys(recipe(tmp_path, rows=16, epochs="2", validation_every="0", **VIT), "optim", keys)
        run = train(path, out=tmp_path / name, device="cpu", console=quiet())
        weights.append(load_file(run / "model.safetensors"))
        losses.append([line["loss"] for line in metrics(run) if "loss" in line])
    assert weights[0].keys() == weights[1].keys()
    assert 2 == len(losses[0])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
