"""Tests of distillation: a teacher in torch or as a bundle, and teachers that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import ModelExportError, RecipeError, TrainingError
from model_export.export.from_weights import export_model
from model_export.training.objective import distillation_loss
from model_export.training.run import train
from tests.model_export.conftest import Heard
from tests.model_export.training.test_run import metrics, quiet
from tests.model_export.training.test_start import TEXTS, recipe, write_captions
from tests.support.tiny_hugging_face import write_tiny_clip, write_tiny_siglip

STUDENT = """
[model]
embed_dim = 8
[model.image]
kind = "vit"
image_size = 32
patch_size = 16
width = 16
layers = 1
heads = 2
[model.text]
context_length = 24
width = 16
layers = 1
heads = 2
"""


def test_a_model_that_answers_as_its_teacher_has_nothing_to_learn() -> None:
    """The loss is the cross-entropy of the teacher's softmax both ways; it is least for the teacher's own vectors."""
    generator = torch.Generator().manual_seed(0)
    images, texts, other_images, other_texts = (torch.randn(5, dim, generator=generator) for dim in (8, 8, 3, 3))
    log_scale = torch.tensor(2.0, requires_grad=True)
    images.requires_grad_()
    texts.requires_grad_()
    student = [images, texts]

    own = distillation_loss(
        images,
        texts,
        log_scale,
        taught_images=images.detach(),
        taught_texts=texts.detach(),
        taught_scale=log_scale.exp().item(),
    )
    for gradient in torch.autograd.grad(own, [*student, log_scale]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)

    other = distillation_loss(
        images, texts, log_scale, taught_images=other_images, taught_texts=other_texts, taught_scale=5.0
    )
    cosines = functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T
    taught = 5.0 * functional.normalize(other_images, dim=1) @ functional.normalize(other_texts, dim=1).T
    logits = log_scale.exp() * cosines
    wanted = (
        functional.cross_entropy(logits, taught.softmax(1)) + functional.cross_entropy(logits.T, taught.T.softmax(1))
    ) / 2
    torch.testing.assert_close(other, wanted)
    assert any(gradient.abs().max() > 1e-3 for gradient in torch.autograd.grad(other, student))


@pytest.mark.timeout(600)
def test_a_new_student_takes_its_teachers_tokenizer_and_learns_its_similarities(tmp_path: Path) -> None:
    """Towers and joint space are the recipe's; a bundle teaches as its checkpoint does, in micro-batches too."""
    teacher = write_tiny_clip(tmp_path / "teacher")
    source = load_model(teacher, SourceOptions())
    export_model(source, tmp_path / "bundle", listener=Heard())
    write_captions(tmp_path / "captions.parquet", TEXTS * 2)
    losses = {}
    for name, keys in (("teacher", ""), ("bundle", ""), ("parts", "micro_batch = 5")):
        taught = f'[distillation]\nteacher = "{"teacher" if name == "parts" else name}"\nweight = 1.0\n{STUDENT}'
        path = recipe(tmp_path, TEXTS * 2, optim=keys, rest=taught)
        path.write_text(path.read_text("utf-8").replace("epochs = 1", "epochs = 12").replace("1e-4", "5e-3"), "utf-8")
        run = train(path, out=tmp_path / f"run-{name}", device="cpu", console=quiet())
        losses[name] = [line["loss"] for line in metrics(run) if "loss" in line]

    assert losses["bundle"] == pytest.approx(losses["teacher"], abs=1e-3)
    assert losses["parts"] == pytest.approx(losses["teacher"], abs=1e-3)
    assert losses["teacher"][-1] < losses["teacher"][0] - 0.05
    student = load_model(tmp_path / "run-teacher", SourceOptions())
    assert 8 == student.dim
    assert (source.tokenizer, source.text) == (student.tokenizer, student.text)
    assert 12 == len(losses["teacher"])


def test_a_run_goes_on_with_its_teacher(tmp_path: Path) -> None:
    """Resumed in another folder's recipe or not, the loss at a step is that of the undisturbed run."""
    write_tiny_clip(tmp_path / "teacher")
    write_captions(tmp_path / "captions.parquet", TEXTS * 2)
    path = recipe(tmp_path, TEXTS, rest=f'[distillation]\nteacher = "teacher"\n{STUDENT}')
    path.write_text("checkpoint_every = 1\n" + path.read_text("utf-8"), "utf-8")
    run = train(path, out=tmp_path / "run", device="cpu", console=quiet())
    whole = metrics(run)
    (run / "model.safetensors").unlink()
    train(path, out=run, resume=True, device="cpu", console=quiet())
    assert [line["loss"] for line in whole] == [line["loss"] for line in metrics(run)]


@pytest.mark.parametrize("form", ["checkpoint", "bundle"])
@pytest.mark.timeout(600)
def test_a_run_does_not_go_on_with_another_teacher_under_the_same_name(tmp_path: Path, form: str) -> None:
    """Told by its weights: one number of them is another."""
    teacher = tmp_path / "teacher"
    folder = write_tiny_clip(tmp_path / "checkpoint")

    def put() -> None:
        shutil.rmtree(teacher, ignore_errors=True)
        if form == "bundle":
            export_model(load_model(folder, SourceOptions()), teacher, listener=Heard())
        else:
            shutil.copytree(folder, teacher)

    put()
    write_captions(tmp_path / "captions.parquet", TEXTS * 2)
    path = recipe(tmp_path, TEXTS, rest=f'[distillation]\nteacher = "teacher"\n{STUDENT}')
    path.write_text("checkpoint_every = 1\n" + path.read_text("utf-8"), "utf-8")
    run = train(path, out=tmp_path / "run", device="cpu", console=quiet())
    (run / "model.safetensors").unlink()
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"][0, 0] += 0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    put()

    with pytest.raises(TrainingError, match="teacher: is not the teacher that the run was started with"):
        train(path, out=run, resume=True, device="cpu", console=quiet())
    assert not (run / "model.safetensors").exists()


def other_size(folder: Path) -> None:
    """Resize with another filter."""
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"resample": 2}), "utf-8")


@pytest.mark.parametrize(
    ("write", "spoil", "rest", "message"),
    [
        (
            write_tiny_clip,
            other_size,
            STUDENT,
            r"another way than the student \(interpolation bilinear, the student bic",
        ),
        (write_tiny_siglip, None, STUDENT, "scores with sigmoids; a teacher needs a softmax"),
        (write_tiny_clip, None, STUDENT.replace("= 24", "= 32"), "context_length is 32, .* of a model with 24"),
        (write_tiny_clip, None, f'{STUDENT}\n[objective]\nloss = "sigmoid"', "leave it out with the sigmoid loss"),
        (None, None, STUDENT, "is neither a file or folder nor a hub id"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    tmp_path: Path, write: Any, spoil: Any, rest: str, message: str
) -> None:
    """One line says which teacher and why; nothing is written."""
    if write:
        write(tmp_path / "teacher")
    if spoil:
        spoil(tmp_path / "teacher")
    write_captions(tmp_path / "captions.parquet", TEXTS)
    path = recipe(tmp_path, TEXTS, rest=f'[distillation]\nteacher = "teacher"\n{rest}')
    with pytest.raises(ModelExportError, match=message) as caught:
        train(path, out=tmp_path / "run", device="cpu", console=quiet())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_student_with_its_own_tokenizer_needs_a_teacher_with_the_same(tmp_path: Path) -> None:
    """A start and a teacher with different tokenizers cannot read one batch."""
    write_tiny_clip(tmp_path / "teacher")
    start = write_tiny_clip(tmp_path / "start")
    config = json.loads((start / "tokenizer_config.json").read_text("utf-8"))
    assert config
    tokenizer = json.loads((start / "tokenizer.json").read_text("utf-8"))
    tokenizer["normalizer"] = None
    (start / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    write_captions(tmp_path / "captions.parquet", TEXTS)
    path = recipe(tmp_path, TEXTS, rest='[distillation]\nteacher = "teacher"\n')
    with pytest.raises(RecipeError, match="reads texts in another way than the student"):
        train(path, out=tmp_path / "run", start_from=start, device="cpu", console=quiet())
