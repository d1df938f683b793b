from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from model_export.errors import DataError, RecipeError
from model_export.experiments.recipe import read_experiment
from model_export.experiments.run import run_experiment
from tests.support.experiments import experiment_recipe
from tests.support.pairs import write_pairs

OBJECTIVES = """
[objectives]
words = [1]
reach = [0.5, 0.99]

[objectives.decoder]
width = 32
heads = 2
"""


def run(name: str, recipe: Path, out: Path) -> tuple[dict[str, Any], str]:
    """Run an experiment; return its JSON and its output."""
    console = Console(file=io.StringIO(), width=200)
    run_experiment(name, recipe, out=out, device="cpu", threads=1, console=console)
    return json.loads((out / "results.json").read_text("utf-8")), console.file.getvalue()  # type: ignore[attr-defined]


def accuracy(found: dict[str, Any], variant: str, budget: int) -> float:
    """Return the mean accuracy of a variant."""
    values = [a["accuracy"]["test"] for a in found["arms"] if (a["variant"], a["budget"]) == (variant, budget)]
    assert 2 == len(values)
    return float(sum(values) / 2)


def test_every_objective_learns_the_colours_from_one_image_tower(tmp_path: Path) -> None:
    """None is a straw man: each names held-out pictures, though captions hold a word that nothing decides."""
    recipe = experiment_recipe(tmp_path, budgets="[512]", rates="[3e-3, 1e-2, 2e-2]", sections=OBJECTIVES)
    found, shown = run("objectives", recipe, tmp_path / "out")

    for objective in ("contrastive", "bag of words", "captioning"):
        assert accuracy(found, f"{objective}, 1 word", 512) >= 0.6
    for seed in (0, 1):
        arms = [arm for arm in found["arms"] if arm["seed"] == seed]
        assert (1, 1) == (len({arm["tower"] for arm in arms}), len({arm["batches"] for arm in arms}))
    assert 2 == len({arm["tower"] for arm in found["arms"]})
    assert all(arm["gflops"] > 0 for arm in found["arms"])
    assert "arm 12/12" in shown
    first, second = found["figures"]["reach"]
    assert 512 == first["pairs"]["contrastive"]
    assert (0.5, 0.99) == (first["accuracy"], second["accuracy"])


def test_a_stopped_experiment_goes_on_arm_by_arm(tmp_path: Path) -> None:
    """Only the arm that is missing is trained, and the whole gives the same; smaller budgets share their rate."""
    recipe, out = experiment_recipe(tmp_path, budgets="[32, 64]"), tmp_path / "out"
    found, shown = run("projection", recipe, out)
    assert "arm 12/12" in shown
    assert "left" in shown
    assert {"results.json", "results.md", "plot.png", "arms"} <= {path.name for path in out.iterdir()}
    assert b"PNG" == (out / "plot.png").read_bytes()[1:4]
    assert 4 == len(found["rates"])
    for name in ("linear", "MLP"):
        assert 1 == len({found["rates"][f"{name} projection, {budget} pairs"] for budget in (32, 64)})

    lost, *kept = sorted((out / "arms").iterdir())
    before = {path.name: path.stat().st_mtime_ns for path in kept}
    lost.unlink()
    again, shown = run("projection", recipe, out)
    assert 11 == shown.count("from before")
    assert before == {path.name: path.stat().st_mtime_ns for path in kept}
    assert [arm["accuracy"] for arm in found["arms"]] == [arm["accuracy"] for arm in again["arms"]]


def test_false_captions_cost_accuracy(tmp_path: Path) -> None:
    """With every caption exchanged among the rows nothing is left to learn; with none, the colours are."""
    recipe = experiment_recipe(tmp_path, budgets="[288]", sections="[noise]\nshares = [0.0, 1.0]")
    found, shown = run("noise", recipe, tmp_path / "out")

    clean, false = accuracy(found, "0% false", 288), accuracy(found, "100% false", 288)
    assert clean >= 0.8
    assert false <= clean - 0.2
    (lost,) = found["figures"]["lost"]
    assert lost["lost"] == pytest.approx(clean - false)
    assert "with 100% false captions" in shown


def test_projections_are_compared_seed_by_seed(tmp_path: Path) -> None:
    """Both start from one tower; the MLP costs more operations, and the difference comes with its error."""
    found, shown = run("projection", experiment_recipe(tmp_path, budgets="[288]"), tmp_path / "out")

    linear, mlp = (
        [arm for arm in found["arms"] if arm["variant"] == f"{name} projection"] for name in ("linear", "MLP")
    )
    assert {arm["tower"] for arm in linear} == {arm["tower"] for arm in mlp}
    assert all(a["gflops"] < b["gflops"] for a, b in zip(linear, mlp, strict=True))
    assert accuracy(found, "MLP projection", 288) >= 0.8
    assert "two standard errors" in shown
    (gain,) = found["figures"]["gain"]
    assert gain["gain"] == pytest.approx(
        accuracy(found, "MLP projection", 288) - accuracy(found, "linear projection", 288)
    )


def test_the_error_is_fitted_over_the_operations(tmp_path: Path) -> None:
    """Wider towers cost more; a seed's towers differ between widths alone, and the batches do not."""
    recipe = experiment_recipe(tmp_path, budgets="[32, 160]", sections="[scaling]\nwidths = [0.5, 1.0]")
    found, shown = run("scaling", recipe, tmp_path / "out")

    gflops = {(arm["variant"], arm["budget"]): arm["gflops"] for arm in found["arms"]}
    assert gflops["width × 0.5", 160] < gflops["width × 1", 160]
    assert 4 == len({arm["tower"] for arm in found["arms"]})
    assert 4 == len({arm["batches"] for arm in found["arms"]})
    assert found["figures"]["slope"] < 0
    assert f"slope {found['figures']['slope']:.3f}" in shown


def test_template_sets_are_measured_on_the_same_models(tmp_path: Path) -> None:
    """Each arm has the accuracy of every set; gains are those on the bare names."""
    captions = """
[captions]
templates = ["a {} picture.", "{}"]
class_name_share = 1.0

[captions.template_sets]
default = ["a {} picture."]
none = ["{}"]
both = ["a {} picture.", "{}"]
"""
    found, shown = run("prompts", experiment_recipe(tmp_path, budgets="[320]", sections=captions), tmp_path / "out")

    assert "arm 4/4" in shown
    assert [{"test", "none", "both"}] * 2 == [set(arm["accuracy"]) for arm in found["arms"]]
    mean = {name: sum(arm["accuracy"][name] for arm in found["arms"]) / 2 for name in ("test", "none", "both")}
    assert min(mean.values()) >= 0.6
    gains = {each["set"]: each["gain"] for each in found["figures"]["gain"]}
    assert gains == pytest.approx({"default": mean["test"] - mean["none"], "both": mean["both"] - mean["none"]})


def test_prompts_need_bare_names_to_compare_with(tmp_path: Path) -> None:
    """The recipe's default has bare names alone; refused before the data are read."""
    with pytest.raises(RecipeError, match=r"captions\.template_sets: must hold one set of bare names"):
        run_experiment("prompts", experiment_recipe(tmp_path, rows=5), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_of_another_recipe_or_other_data_are_refused(tmp_path: Path) -> None:
    """A folder holds arms that can be compared, and no others; the message says what to do."""
    out = tmp_path / "out"
    run("projection", experiment_recipe(tmp_path, budgets="[32]"), out)

    with pytest.raises(RecipeError, match=r"out: holds results with another recipe, .* --out"):
        run("projection", experiment_recipe(tmp_path, budgets="[48]"), out)
    write_pairs(tmp_path / "pairs.parquet", 400, seed=1)
    with pytest.raises(RecipeError, match=r"out: holds results with another data"):
        run("projection", experiment_recipe(tmp_path, budgets="[32]"), out)


def test_arms_that_began_differently_are_refused(tmp_path: Path) -> None:
    """A seed stands for one image tower and one order of batches."""
    out = tmp_path / "out"
    run("projection", experiment_recipe(tmp_path, budgets="[32]"), out)
    path = next((out / "arms").glob("mlp-*-1.json"))
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**content, "tower": "other"}), "utf-8")

    with pytest.raises(RecipeError, match="MLP projection, seed 1: has other initial image tower"):
        run("projection", experiment_recipe(tmp_path, budgets="[32]"), out)
    path.write_text(json.dumps({**content, "batches": "other"}), "utf-8")
    with pytest.raises(RecipeError, match="seed 1: has other batches"):
        run("projection", experiment_recipe(tmp_path, budgets="[32]"), out)


def test_a_training_picture_in_the_test_is_refused_before_training(tmp_path: Path) -> None:
    """The same bytes on both sides would measure memory; the message names both rows and their number."""
    recipe = experiment_recipe(tmp_path, test='["test.parquet"]')
    table = pq.read_table(tmp_path / "pairs.parquet")
    pq.write_table(table.slice(100, 10), tmp_path / "test.parquet")

    with pytest.raises(
        DataError, match=r"test.parquet, row 0.*: is also a training picture \(.*pairs.parquet, row 100"
    ):
        run("projection", recipe, tmp_path / "out")
    assert not (tmp_path / "out/arms").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rates": "[1e-3, 2e-3]"}, "optim: rates must hold 3 different learning rates"),
        ({"seeds": "[1]"}, "seeds must hold two or more different numbers"),
        ({"budgets": "[640, 320]"}, "budgets must be different and ascending"),
        ({"budgets": "[16]"}, "the smallest budget must be two batches or more, 32 pairs"),
        ({"sections": "rate = 1"}, "optim.rate: is not a key of a recipe; did you mean rates?"),
        ({"sections": "[noise]\nshares = [0.5, 0.1]"}, "noise: shares must be between 0 and 1, and ascending"),
        ({"sections": "[scaling]\nwidths = [2.0, 1.0]"}, "scaling: widths must be different and ascending"),
        ({"sections": "[objectives]\nreach = [10.0]"}, "objectives: reach must hold accuracies between 0 and 1"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path: Path, overrides: dict[str, str], message: str) -> None:
    """Every fault is found before any data are read."""
    with pytest.raises(RecipeError) as raised:
        read_experiment(experiment_recipe(tmp_path, rows=5, **overrides))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_name_lists_the_experiments(tmp_path: Path) -> None:
    """Before the recipe is read."""
    with pytest.raises(
        RecipeError, match="'other' is not an experiment; take one of noise, objectives, projection, prompts, scaling"
    ):
        run_experiment("other", tmp_path / "none.toml")


def test_a_tower_without_features_cannot_caption(tmp_path: Path) -> None:
    """Refused before the data are read."""
    recipe = experiment_recipe(tmp_path, rows=5, kind='"modified_resnet"', tower="")
    recipe.write_text(recipe.read_text("utf-8").replace("image_size = 16", "image_size = 32"), "utf-8")
    with pytest.raises(RecipeError, match=r"model.image.kind: captions are predicted from"):
        run_experiment("objectives", recipe, out=tmp_path / "out")
