import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_export.checkpoints.training_run import load_training_run
from model_export.errors import SourceError
from service.model.manifest import FileEntry
from tests.support.tiny_run import write_tiny_run

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good run, to be copied."""
    return write_tiny_run(tmp_path_factory.mktemp("pristine") / "run")


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    """Return a copy of the good run, to be spoilt."""
    return Path(shutil.copytree(pristine, tmp_path / "run"))


def edit_config(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a run's config.json."""
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))


def edit_weights(run: Path, change: Callable[[Weights], object]) -> None:
    """Change a run's model.safetensors."""
    weights = load_file(run / "model.safetensors")
    change(weights)
    save_file(weights, run / "model.safetensors")


def refusal(run: Path) -> str:
    """Return the one line that a run is refused with."""
    with pytest.raises(SourceError) as caught:
        load_training_run(run)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_run_is_read_with_its_weights_and_provenance(run: Path) -> None:
    """Weights, scale, digest, recipe and card are those of the files; the model is ready to be evaluated."""
    loaded = load_training_run(run)

    expected = load_file(run / "model.safetensors")
    assert all(torch.equal(expected[name], tensor) for name, tensor in loaded.model.state_dict().items())
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.scoring.logit_scale == pytest.approx(math.exp(expected["logit_scale"].item()))
    assert loaded.provenance.source_sha256 == FileEntry.of(run / "model.safetensors").sha256
    assert loaded.provenance.licence == "CC0-1.0"
    assert loaded.provenance.card == (run / "card.md").read_text()


def test_a_card_is_optional(run: Path) -> None:
    """A run without card.md is a run."""
    (run / "card.md").unlink()
    assert load_training_run(run).provenance.card is None


def test_dates_of_a_recipe_become_text(run: Path) -> None:
    """JSON knows no dates."""
    (run / "recipe.toml").write_text("day = 2026-01-02")
    assert load_training_run(run).provenance.recipe == {"day": "2026-01-02"}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "recipe.toml"])
@pytest.mark.parametrize("content", [None, b"", b"\xff{broken", b"[1, 2"])
def test_a_missing_or_corrupt_file_is_named(run: Path, name: str, content: bytes | None) -> None:
    """Each file that is not there or not readable is a refusal that begins with its path."""
    if (name, content) == ("recipe.toml", b""):
        pytest.skip("an empty file is valid TOML")
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)

    assert refusal(run).startswith(f"{run / name}: ")


def test_a_truncated_weights_file_is_named(run: Path) -> None:
    """A copy that stopped half way is refused."""
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert refusal(run).startswith(f"{path}: is not a readable safetensors file")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A wrong path is said to be one."""
    assert refusal(tmp_path / "no") == f"{tmp_path / 'no'}: is not the folder of a training run"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("model"), "model: Field required"),
        (lambda c: c.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda c: c.update(name="No Slug"), "name: String should match pattern"),
        (lambda c: c["image"].update(height=64), "image is 64x32, the model takes 32x32"),
        (lambda c: c["model"]["image"].update(kind="mlp"), "model.image: "),
        (lambda c: c["templates"].pop("default"), "templates lacks the set 'default'"),
        (lambda c: c["templates"].update(default=["a photo"]), "needs exactly one {}"),
        (lambda c: c["templates"].update(none=[]), "templates.none: "),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    run: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """The field at fault is named."""
    edit_config(run, change)
    said = refusal(run)
    assert said.startswith(f"{run / 'config.json'}: ")
    assert message in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("logit_scale"), "lacks logit_scale"),
        (lambda w: w.update(extra=torch.zeros(1)), "has unknown extra"),
        (lambda w: w.update({"visual.proj.weight": torch.zeros(24, 7)}), "shape [24, 7], the model has [24, 24]"),
        (lambda w: w["text.text_projection"].fill_(math.nan), "text.text_projection holds NaN or infinity"),
        (
            lambda w: w.update({"logit_scale": torch.tensor(1)}),
            "logit_scale has dtype torch.int64, the model has torch.float32",
        ),
    ],
)
def test_weights_of_another_model_are_refused(run: Path, change: Callable[[Weights], object], message: str) -> None:
    """A missing, unknown, mis-shaped or non-finite tensor is named."""
    edit_weights(run, change)
    said = refusal(run)
    assert said.startswith(f"{run / 'model.safetensors'}: ")
    assert message in said


def test_weights_of_half_precision_are_taken(run: Path) -> None:
    """A run may store fp16: it is computed with in float32."""
    edit_weights(run, lambda w: w.update({k: v.half() if v.is_floating_point() else v for k, v in w.items()}))
    assert {p.dtype for p in load_training_run(run).model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(truncation=t["truncation"] or TRUNCATION), "truncates or pads"),
        (lambda t: t.update(post_processor=None), "does not end a text with the model's end-of-text id"),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_model_is_refused(
    run: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """It must end texts with the model's own end-of-text token and must never cut one."""
    path = run / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    change(tokenizer)
    path.write_text(json.dumps(tokenizer))
    assert message in refusal(run)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(run: Path) -> None:
    """Its last ids would have no embedding."""
    edit_config(run, lambda c: c["model"]["text"].update(vocab_size=100))
    assert "the model's text tower knows 100" in refusal(run)


TRUNCATION: dict[str, object] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
