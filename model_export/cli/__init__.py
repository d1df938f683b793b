"""``anyclass-export``: train, average, experiment, export, verify, evaluate, embed, score, curate.

Exit codes: 0 for success; 1 if a bundle fails a check, an evaluation meets unreadable images, or a process or the
server of the data is lost; 2 for wrong input or usage; 3 if a package is missing. Commands import everything heavy
themselves, so that ``--help`` is quick, and ``verify``, ``evaluate``, ``embed``, ``score`` and ``curate`` need no
torch.
"""

import os
import sys

import typer

from model_export.cli.bundles import export, list_sizes, verify
from model_export.cli.curation import curate
from model_export.cli.embedding import embed, score
from model_export.cli.evaluation import evaluate
from model_export.cli.experiments import experiment
from model_export.cli.output import FAILED, INTERRUPTED, PACKAGE_MISSING, stop
from model_export.cli.training import average, train
from model_export.errors import LostRankError, ModelExportError, OtherRankError, ParityError, ServerError
from service.errors import AnyclassError
from service.installation import how_to_add

INSTALLS = "ANYCLASS_EXPORT_INSTALLS"
"""Set by `scripts/model.sh`, which installs a missing package and tries again: only the exit code reports it then."""

_EXTRAS = {
    "curate": "curate",
    "embed": "curate",
    "score": "curate",
    "verify": "convert",
    "evaluate": "evaluate",
}
"""The extra with a command's packages; all other commands need ``train``."""
_PACKAGES = {
    "onnxruntime": "cpu",
    "open_clip": "open-clip",
    "ray": "scale",
    "torch": "train",
    "torchvision": "open-clip",
}
"""The extra with a package, whatever the command."""

app = typer.Typer(
    name="anyclass-export",
    help="Train CLIP models, export them to bundles that anyclass serves, verify and evaluate bundles, embed pictures, "
    "curate pairs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (train, average, experiment, export, verify, evaluate, embed, score):
    app.command()(command)
app.command("list")(list_sizes)
app.add_typer(curate)


def main() -> None:
    """Run the command line; expected errors are one line on stderr, never a traceback."""
    try:
        app()
    except (ParityError, LostRankError, ServerError) as exc:
        stop(str(exc), FAILED)
    except OtherRankError:
        raise SystemExit(FAILED) from None
    except ModelExportError as exc:
        stop(str(exc))
    except AnyclassError as exc:
        stop(exc.detail)
    except ModuleNotFoundError as exc:
        if exc.name and exc.name.partition(".")[0] in {"model_export", "service"}:
            raise
        if os.environ.get(INSTALLS):
            raise SystemExit(PACKAGE_MISSING) from None
        command = sys.argv[1] if len(sys.argv) > 1 else ""
        package = (exc.name or "").partition(".")[0]
        extra = _PACKAGES.get(package) or _EXTRAS.get(command, "train")
        stop(f"{package} is not installed; this needs the extra {extra}: {how_to_add(extra)}", PACKAGE_MISSING)
    except KeyboardInterrupt:
        stop("stopped", INTERRUPTED)
