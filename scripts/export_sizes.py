"""Export named sizes in full, with random weights of their true shape: parity, time, memory and size of each.

    python scripts/export_sizes.py ViT-B-32 RN50 --precisions fp32 fp16 int8 --data pictures.parquet

Each size runs in a process of its own, so that the memory that is reported is its own. Speed and memory do not depend
on the weights; how well int8 agrees with fp32 does, so those figures say little of a trained model: vectors of random
weights are all alike, and which label is nearest is decided by very little.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table


def main() -> int:
    """Export each size in a child process and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sizes", nargs="+", help="names of 'anyclass-export list'")
    parser.add_argument("--precisions", nargs="*", default=["fp32"], choices=("fp32", "fp16", "int8"))
    parser.add_argument("--data", action="append", default=[], help="compare fp16 and int8 with fp32 on these pictures")
    parser.add_argument("--calibrate", action="store_true", help="fix int8's ranges from --data")
    parser.add_argument("--keep", type=Path, help="put the bundles here; by default they are deleted")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _export(options)
        return 0
    table = Table(
        box=None, caption="answers: share of pictures with the same nearest label as in fp32", caption_justify="left"
    )
    for title in ("size", "params", "precision", "time", "files", "difference", "cosine", "answers", "memory"):
        table.add_column(title, justify="left" if title in {"size", "precision"} else "right")
    passed_on = [*(f"--data={path}" for path in options.data), *(["--calibrate"] if options.calibrate else [])]
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="anyclass-sizes-") as folder:
            keep = ["--keep", str(options.keep or folder)]
            command = [
                sys.executable,
                __file__,
                "--child",
                size,
                *keep,
                *passed_on,
                "--precisions",
                *options.precisions,
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for line in map(json.loads, done.stdout.splitlines()):
            table.add_row(
                size,
                f"{line['parameters'] / 1e6:.1f}M",
                line["precision"],
                f"{line['seconds']:.0f} s",
                f"{line['bytes'] / 1e6:,.0f} MB",
                f"{line['max_abs_difference']:.0e}",
                f"{line['min_cosine']:.7f}",
                "" if line["same_answers"] is None else f"{line['same_answers']:.1%}",
                f"{line['peak'] / 2**30:.2f} GiB",
            )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


class _Silent:
    """Collects figures for a table at the end."""

    def wrote(self, *_: object) -> None:
        pass

    measured = agreed = wrote


def _export(options: argparse.Namespace) -> None:
    """Export one size in this process; a line of JSON for each precision."""
    import torch

    from model_export.checkpoints.model_source import TEMPLATES, ModelSource, text_section
    from model_export.export.from_weights import export_model
    from model_export.export.reduce import Reduced, reduce_bundle
    from model_export.export.sampling import draw_sample
    from model_export.families.clip.bpe import END_OF_TEXT
    from model_export.families.clip.config import ClipConfig
    from model_export.families.sizes import named_size
    from model_export.families.table import family_of
    from model_export.training.tokenizer import MIN_VOCAB_SIZE, train_tokenizer
    from service.model.manifest import ImageSection, Provenance, SigmoidScoring, SoftmaxScoring

    size = named_size(options.sizes[0])
    folder: Path = options.keep
    tokenizer = train_tokenizer(["a photo of a cat"], MIN_VOCAB_SIZE)
    end = tokenizer.get_vocab()[END_OF_TEXT]
    config = size.config
    family = family_of(config)
    if isinstance(config, ClipConfig):
        # Without the published vocabulary, the embedding still keeps its size.
        config = config.model_copy(update={"text": config.text.model_copy(update={"end_of_text_id": end})})
    torch.manual_seed(0)
    model = family.build(config).eval().requires_grad_(requires_grad=False)
    side, context = size.image_size, size.context_length
    source = ModelSource(
        name=size.name.lower(),
        aliases=(),
        architecture=config.architecture,
        config=config,
        model=model,
        dim=size.embed_dim,
        image=ImageSection(
            height=side,
            width=side,
            resize="shortest",
            interpolation="bicubic",
            crop="center",
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
        ),
        text=text_section(context_length=context, pad_id=end, end_of_text_id=end, fixed=family.padding == "fixed"),
        scoring=SigmoidScoring(logit_scale=10.0, logit_bias=-10.0)
        if family.has_bias
        else SoftmaxScoring(logit_scale=100.0),
        templates=dict(TEMPLATES),
        tokenizer=tokenizer.to_str().encode(),
        provenance=Provenance(source="random weights"),
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    exact = folder / f"{source.name}-fp32"
    sample = draw_sample(options.data, source.image) if options.data else None
    for precision in dict.fromkeys(["fp32", *options.precisions]):
        out = folder / f"{source.name}-{precision}"
        shutil.rmtree(out, ignore_errors=True)
        started = time.monotonic()
        if precision == "fp32":
            manifest = export_model(source, out, listener=_Silent())
            del model, source.__dict__["model"]  # the lower precisions need no torch
        else:
            reduced: Reduced = "fp16" if precision == "fp16" else "int8"
            calibrate = options.calibrate and reduced == "int8"
            manifest = reduce_bundle(
                exact, out, precision=reduced, listener=_Silent(), sample=sample, calibrate=calibrate
            )
        assert manifest.parity is not None  # noqa: S101 - tells the type checker; both measure it
        line = {
            "parameters": parameters,
            "precision": precision,
            "seconds": time.monotonic() - started,
            "bytes": sum(entry.bytes for entry in manifest.files.values()),
            "max_abs_difference": manifest.parity.max_abs_difference,
            "min_cosine": manifest.parity.min_cosine,
            "same_answers": None if manifest.agreement is None else manifest.agreement.top1,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
