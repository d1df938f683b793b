"""The sizes that have a name, for people and for programs."""

import json
from typing import assert_never

from rich.table import Table

from model_export.families.clip.config import ModifiedResNetConfig, ResidualConvConfig, VisionTransformerConfig
from model_export.families.siglip.config import SiglipConfig
from model_export.families.sizes import SIZES, NamedSize


def sizes_table() -> Table:
    """Return every named size as a table that fits 80 columns."""
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption="towers: layers × width, image + text; top-1: ImageNet zero-shot accuracy, %",
        caption_justify="left",
    )
    for header in ("name", "towers"):
        table.add_column(header, no_wrap=True)
    for header in ("params", "embed", "input", "top-1"):
        table.add_column(header, justify="right", no_wrap=True)
    for size in SIZES.values():
        table.add_row(
            size.name,
            f"{_image_tower(size)} + {size.config.text.layers}×{size.config.text.width}",
            f"{size.parameters / 1e6:.1f}M",
            str(size.embed_dim),
            str(size.image_size),
            "" if size.imagenet_top1 is None else f"{size.imagenet_top1:.1f}",
        )
    return table


def sizes_json() -> str:
    """Return every named size as a JSON array."""
    entries = [
        {
            "name": size.name,
            "aliases": size.aliases,
            "parameters": size.parameters,
            "embed_dim": size.embed_dim,
            "image_size": size.image_size,
            "context_length": size.context_length,
            "imagenet_top1": size.imagenet_top1,
            "kind": "siglip" if isinstance(size.config, SiglipConfig) else "clip",
            "config": size.config.model_dump(mode="json"),
        }
        for size in SIZES.values()
    ]
    return json.dumps(entries, indent=2)


def _image_tower(size: NamedSize) -> str:
    if isinstance(size.config, SiglipConfig):
        return f"ViT {size.config.image.layers}×{size.config.image.width}"
    image = size.config.image
    match image:
        case VisionTransformerConfig():
            return f"ViT {image.layers}×{image.width}"
        case ModifiedResNetConfig():
            return f"RN {','.join(map(str, image.layers))}×{image.width}"
        case ResidualConvConfig():
            return f"conv {','.join(map(str, image.widths))}"
        case _:  # pragma: no cover - the union is closed
            assert_never(image)
