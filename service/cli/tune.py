"""`anyclass tune`: time the ways to run a bundle on this machine, and keep the fastest for later starts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.options import examples, load_settings
from service.cli.reporting import FAILED, fail, print_error, print_json, print_note

if TYPE_CHECKING:
    from service.model.engine.measurement import Measurement
    from service.model.loading import Bundle

EXAMPLES = examples("anyclass tune", "anyclass tune bundles/vit-b-32", "anyclass tune bundles/vit-b-32 --json")


def tune(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="Folder of a model bundle; without it ANYCLASS_MODEL, or the demo."),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Time a bundle's image encoder on every provider, precision and number of threads that `auto` may choose.

    The fastest is kept, and later starts on this machine with the same settings take it. The machine should be idle.
    """
    from service.errors import AnyclassError
    from service.inference.registry import tuner
    from service.model.engine.measurement import THOROUGH
    from service.model.engine.provider_table import TABLE
    from service.model.engine.providers import resolve
    from service.model.loading import load_bundle
    from service.model.manifest import DEMO_BUNDLE

    settings = load_settings(model=bundle)
    if settings.provider != "auto":
        fail(f"ANYCLASS_PROVIDER={settings.provider} names the provider, so nothing is chosen; unset it to measure")
    try:
        loaded = load_bundle(settings.model or DEMO_BUNDLE)
        if loaded.manifest.precision == "fp16":
            fail(f"model {loaded.manifest.name} is fp16, which only GPUs compute")
        by_rule = resolve("auto", compute=settings.compute)
        if TABLE[by_rule.name].needs_cuda:
            fail("CUDA works here, and auto takes it without measuring")
        measuring = tuner(settings, by_rule)
        measured = measuring.measure(loaded, THOROUGH)
        key = measuring.key(loaded)
        kept = measuring.store.path(key) if measuring.store.write(key, measured.choice()) else None
    except AnyclassError as exc:
        fail(exc.detail)
    if as_json:
        print_json(_figures(measured, loaded, kept))
    else:
        _print_table(measured, loaded)
        if kept is not None:
            print_note(f"Kept in {kept}")
    if kept is None:
        print_error(f"the choice could not be kept in {measuring.store.path(key).parent}; see the log line above")
        raise typer.Exit(FAILED)


def _figures(measured: "Measurement", bundle: "Bundle", kept: Path | None) -> dict[str, Any]:
    from service.model.engine.candidates import computed_precision

    return {
        "model": bundle.manifest.name,
        "revision": bundle.manifest.revision,
        "candidates": [
            {
                "provider": trial.candidate.provider,
                "precision": computed_precision(trial.candidate, bundle.manifest.precision),
                "threads": trial.candidate.threads,
                "pictures_per_s": {str(batch): trial.rate(batch) for batch in measured.batches},
                "agreement": trial.agreement,
                "fault": trial.fault,
                "chosen": trial is measured.chosen,
            }
            for trial in measured.trials
        ],
        "because": measured.choice().reason,
        "kept_in": None if kept is None else str(kept),
    }


def _print_table(measured: "Measurement", bundle: "Bundle") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from service.cli.console.rendering import printable
    from service.model.engine.candidates import computed_precision

    table = Table(box=None, title=printable(bundle.manifest.name), title_justify="left")
    for title in ("provider", "precision"):
        table.add_column(title)
    for title in ("threads", *(f"pictures/s at {batch}" for batch in measured.batches), "agreement"):
        table.add_column(title, justify="right")
    table.add_column("chosen")
    for trial in measured.trials:
        rates = [trial.rate(batch) for batch in measured.batches]
        table.add_row(
            trial.candidate.provider,
            computed_precision(trial.candidate, bundle.manifest.precision),
            str(trial.candidate.threads),
            *("" if rate is None else f"{rate:.1f}" for rate in rates),
            "no probes" if trial.agreement is None else f"{trial.agreement:.5f}",
            "✓" if trial is measured.chosen else Text(printable(trial.fault or "")),
        )
    Console().print(table)
