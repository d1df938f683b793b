"""Lists the named sizes, for people and for programs."""

import json
from dataclasses import asdict

from rich.table import Table

from model_export.families.published import READ, REFUSED, forbids_commerce
from model_export.families.sizes import SIZES
from model_export.families.table import family_of


def sizes_table() -> Table:
    """Return every named size as a table that fits 80 columns."""
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption="towers: layers × width; image + text, as the GFLOPs; top-1: ImageNet, %",
        caption_justify="left",
    )
    for header in ("name", "towers"):
        table.add_column(header, no_wrap=True)
    for header in ("params", "GFLOPs", "input", "top-1"):
        table.add_column(header, justify="right", no_wrap=True)
    for size in SIZES.values():
        table.add_row(
            size.name,
            f"{size.config.image_shape}+{size.config.text.layers}×{size.config.text.width}",
            f"{size.parameters / 1e6:.0f}M",
            "+".join(_three_digits(each) for each in size.operations.gflops),
            str(size.image_size),
            "" if size.imagenet_top1 is None else f"{size.imagenet_top1:.1f}",
        )
    return table


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def families_table() -> Table:
    """Return the published families, those that are read first, with their licences."""
    table = Table(
        box=None, padding=(0, 1, 0, 0), pad_edge=False, caption="nc: no commercial use", caption_justify="left"
    )
    for header in ("family", "read from", "tokens", "scoring", "licence"):
        table.add_column(header)
    for read in READ:
        table.add_row(read.name, read.layouts, read.tokens, read.scoring, _marked(read.licence))
    for refused in REFUSED:
        table.add_row(refused.name, "not read", "", "", _marked(refused.licence))
    return table


def families_json() -> str:
    """Return the published families as a JSON object: ``read`` and ``refused``."""
    return json.dumps(
        {"read": [asdict(each) for each in READ], "refused": [asdict(each) for each in REFUSED]}, indent=2
    )


def _marked(licence: str) -> str:
    return f"{licence} (nc)" if forbids_commerce(licence) else licence


def sizes_json() -> str:
    """Return every named size as a JSON array."""
    entries = [
        {
            "name": size.name,
            "aliases": size.aliases,
            "parameters": size.parameters,
            "gflops": dict(zip(("image", "text"), size.operations.gflops, strict=True)),
            "embed_dim": size.embed_dim,
            "image_size": size.image_size,
            "context_length": size.context_length,
            "imagenet_top1": size.imagenet_top1,
            "kind": family_of(size.config).name,
            "config": size.config.model_dump(mode="json"),
        }
        for size in SIZES.values()
    ]
    return json.dumps(entries, indent=2)
