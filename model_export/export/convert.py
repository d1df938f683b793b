"""Convert any source into a bundle of a given precision: the use case of ``export``.

Only weights need torch; published ONNX graphs do not import it.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_export.bundles.writer import check_destination
from model_export.checkpoints.at_hand import at_hand
from model_export.checkpoints.file_choice import FULL_PRECISION
from model_export.checkpoints.layouts import has_onnx_towers, holds_weights
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import ExportError
from model_export.export.console import Narrator
from model_export.published_onnx.source import OnnxOptions, read_published
from model_export.published_onnx.to_bundle import write_bundle
from service.model.loading import load_bundle
from service.model.manifest import Manifest, Precision

REDUCED: Final = ("fp16", "int8")
"""Precisions made from an fp32 bundle."""


@dataclass(frozen=True)
class Conversion:
    """The options of ``anyclass-export export``.

    Attributes:
        source: a hub id, or a path.
        options: facts that the source's files may lack.
        data: labelled images to compare a reduced precision on, and to calibrate with.
        calibrate: fix int8's ranges from ``data``.
        onnx: variant of the source's ONNX encoders to take instead of its weights.
        logit_scale: for ONNX encoders whose source does not state it; already exponentiated.
        logit_bias: the same for a sigmoid model.
    """

    source: str
    options: SourceOptions
    precision: Precision = "fp32"
    data: tuple[str, ...] = ()
    calibrate: bool = False
    onnx: str | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None

    def check(self) -> None:
        """Refuse contradictory options before fetching anything.

        Raises:
            ExportError: two options contradict each other; the message names them.
        """
        if self.precision not in REDUCED and (self.data or self.calibrate):
            raise ExportError(
                f"--data and --calibrate need --precision fp16 or int8; {self.precision} computes in fp32"
            )
        if self.calibrate and (self.precision != "int8" or not self.data):
            raise ExportError("--calibrate needs --precision int8 and real images; name them with --data")
        if self.onnx is not None and self.options.layout is not None:
            raise ExportError("--onnx takes ONNX encoders, and --layout is for weights; leave one of them out")
        if self.onnx not in {None, FULL_PRECISION} and self.precision != "fp32":
            raise ExportError(f"--onnx {self.onnx} sets the precision; leave --precision out")


def convert(wanted: Conversion, out: Path, *, narrator: Narrator, force: bool = False) -> Manifest:
    """Fetch, read, export, reduce and measure a source, as needed.

    Raises:
        SourceError: the source cannot be fetched or read.
        ExportError: ``out`` may not be replaced, or options contradict each other.
        DataError: the images to compare on cannot be read.
        ParityError: a graph does not agree with the model; nothing is written.
    """
    wanted.check()
    check_destination(out, force=force)
    if wanted.data:
        from model_export.export.sampling import check_data

        check_data(wanted.data)  # before the long work
    path, options = at_hand(
        wanted.source,
        wanted.options,
        console=narrator.console,
        graphs="without weights" if wanted.onnx is None else "instead of weights",
        variant=wanted.onnx or FULL_PRECISION,
    )
    if wanted.precision not in REDUCED:
        return _export(wanted, path, options, out, precision=wanted.precision, narrator=narrator, force=force)
    from model_export.export.reduce import reduce_bundle  # the converters are slow to import
    from model_export.export.sampling import draw_sample

    with tempfile.TemporaryDirectory(prefix="anyclass-") as folder:
        exact = Path(folder) / "fp32"
        _export(wanted, path, options, exact, precision="fp32", narrator=narrator, force=False)
        section = load_bundle(exact).manifest.image
        return reduce_bundle(
            exact,
            out,
            precision="fp16" if wanted.precision == "fp16" else "int8",
            listener=narrator,
            sample=draw_sample(wanted.data, section) if wanted.data else None,
            calibrate=wanted.calibrate,
            force=force,
        )


def _export(
    wanted: Conversion,
    path: Path,
    options: SourceOptions,
    out: Path,
    *,
    precision: Precision,
    narrator: Narrator,
    force: bool,
) -> Manifest:
    if wanted.onnx is not None or (has_onnx_towers(path) and not holds_weights(each.name for each in path.iterdir())):
        if precision != "fp32":
            raise ExportError(f"{wanted.source}: consists of ONNX graphs; leave --precision {precision} out")
        source = read_published(
            path,
            OnnxOptions(options, logit_scale=wanted.logit_scale, logit_bias=wanted.logit_bias),
            wanted.onnx or FULL_PRECISION,
        )
        narrator.introduce(source.name, source.architecture, source.image, f"ONNX graphs, {source.precision}")
        return write_bundle(source, out, listener=narrator, force=force)
    from model_export.checkpoints.load import load_model
    from model_export.export.from_weights import export_model

    if wanted.logit_scale is not None or wanted.logit_bias is not None:
        raise ExportError("--logit-scale and --logit-bias are for ONNX encoders; weights have their own")
    model = load_model(path, options)
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    narrator.introduce(
        model.name, model.architecture, model.image, f"{parameters / 1e6:.2f}M parameters", f"to {precision}"
    )
    return export_model(model, out, precision=precision, listener=narrator, force=force)
