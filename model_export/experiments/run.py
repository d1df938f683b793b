"""Run an experiment from its recipe to its report."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from model_export.errors import TrainingError
from model_export.experiments.catalogue import experiment_named
from model_export.experiments.harness import check_folder, run_arms
from model_export.experiments.material import open_material
from model_export.experiments.models import check_features
from model_export.experiments.recipe import read_experiment
from model_export.experiments.report import PLOT, write_report
from model_export.files import locked
from model_export.plots import check_plot
from model_export.training.joining import joined
from model_export.training.precision import check_device
from model_export.training.progress import duration


def run_experiment(
    name: str,
    recipe_path: Path,
    *,
    out: Path | None = None,
    data: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    console: Console | None = None,
) -> Path:
    """Train every arm of an experiment whose result is not in the folder yet, and write the report.

    Args:
        name: of the experiment.
        recipe_path: a TOML file.
        out: folder of the results; by default ``experiments/NAME`` in the current folder.
        data: folder of the recipe's data files; the recipe's own by default.
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA if available.
        threads: of torch on the CPU; one for each core by default.
        console: shows the progress.

    Returns:
        The folder: ``results.json``, ``results.md``, ``plot.png``, and ``arms`` with a file for each arm.

    Raises:
        RecipeError: the name or the recipe is wrong, or the folder holds results that cannot be compared.
        DataError: a file cannot be read, or a picture that accuracy is measured on is also trained on.
        TrainingError: the folder is in use, the device does not exist, or a loss became non-finite.
    """
    experiment = experiment_named(name)
    recipe = read_experiment(recipe_path, data=data)
    variants = experiment.variants(recipe)
    if any(variant.objective == "captioning" for variant in variants):
        check_features(recipe.model.image)
    out = out or Path("experiments") / name
    out.mkdir(parents=True, exist_ok=True)
    check_plot(out / PLOT, "evaluate")
    console = console or Console()
    if threads is not None:
        torch.set_num_threads(threads)
    with joined(device) as ranks, locked(out, TrainingError(f"{out}: is in use by another experiment; wait for it")):
        check_device(recipe.training(seed=0, rate=recipe.optim.rates[0], budget=recipe.budgets[0]), ranks.device)
        console.print(f"[bold]{name}[/]: reading the data, and comparing the splits byte by byte", highlight=False)
        material = open_material(name, recipe, variants)
        check_folder(out, material.facts)
        console.print(
            f"{len(material.trained):,} pairs to train, {len(material.validation.labels):,} pictures to choose the "
            f"learning rate, {len(material.test.labels):,} to measure, {len(material.test.class_names)} classes",
            highlight=False,
            soft_wrap=True,
        )
        results = run_arms(variants, material, out, ranks, console)
        write_report(out, name, results, experiment.report(results), console)
        console.print(f"{out}: {duration(results.spent_s)} of training", highlight=False, markup=False, soft_wrap=True)
    return out
