from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from model_export.cli import app
from model_export.errors import SourceError
from model_export.families.clip.config import ClipConfig
from model_export.families.clip.model import ClipModel
from model_export.families.family import NamedSize
from model_export.families.sizes import SIZES, named_size
from model_export.families.table import family_of

# Counting the largest builds thousands of modules, on a busy machine for some ten seconds.
pytestmark = pytest.mark.timeout(300)

# name -> millions of parameters, side of the picture, width of the joint space: open_clip's docs/model_profile.csv
PROFILE = {
    "RN50": (102.01, 224, 1024),
    "RN101": (119.69, 224, 512),
    "RN50x4": (178.3, 288, 640),
    "RN50x16": (290.98, 384, 768),
    "RN50x64": (623.26, 448, 1024),
    "ViT-B-32": (151.28, 224, 512),
    "ViT-B-16": (149.62, 224, 512),
    "ViT-L-14": (427.62, 224, 768),
    "ViT-L-14-336": (427.94, 336, 768),
    "ViT-H-14": (986.11, 224, 1024),
    "ViT-g-14": (1366.68, 224, 1024),
    "ViT-bigG-14": (2539.57, 224, 1280),
    "ViT-B-16-SigLIP": (203.16, 224, 768),
    "ViT-B-16-SigLIP-256": (203.2, 256, 768),
    "ViT-B-16-SigLIP-384": (203.45, 384, 768),
    "ViT-B-16-SigLIP-512": (203.79, 512, 768),
    "ViT-L-16-SigLIP-256": (652.15, 256, 1024),
    "ViT-L-16-SigLIP-384": (652.48, 384, 1024),
    "ViT-SO400M-14-SigLIP": (877.36, 224, 1152),
    "ViT-SO400M-14-SigLIP-384": (877.96, 384, 1152),
}


def test_every_size_is_compared_with_what_is_published() -> None:
    """The table and the published profile name the same sizes, input and embedding, and counts that round the same."""
    assert PROFILE == {
        size.name: (round(size.parameters / 1e6, 2), size.image_size, size.embed_dim) for size in SIZES.values()
    }


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_size_has_the_published_number_of_parameters(size: NamedSize) -> None:
    """A model built from the entry's configuration has its parameters, to the last one; nothing is allocated."""
    with torch.device("meta"):
        model = family_of(size.config).build(size.config)

    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ViT-B-32", "ViT-B-32"),
        ("ViT-B/32", "ViT-B-32"),
        ("vit-b-32", "ViT-B-32"),
        (" VIT_B_32 ", "ViT-B-32"),
        ("ViT-B-32-quickgelu", "ViT-B-32"),
        ("openai/clip-vit-base-patch32", "ViT-B-32"),
        ("ViT-L/14@336px", "ViT-L-14-336"),
        ("ViT-L-14-336", "ViT-L-14-336"),
        ("rn50X64", "RN50x64"),
        ("ViT-g/14", "ViT-g-14"),
        ("ViT-G/14", "ViT-bigG-14"),
        ("vit-bigg-14", "ViT-bigG-14"),
        ("ViT-B-16-SigLIP-224", "ViT-B-16-SigLIP"),
        ("google/siglip-so400m-patch14-384", "ViT-SO400M-14-SigLIP-384"),
    ],
)
def test_a_size_is_found_under_each_of_its_spellings(spelling: str, name: str) -> None:
    """OpenAI's, open_clip's and the hub's way of writing a name find the same entry."""
    assert SIZES[name] is named_size(spelling)


def test_every_name_and_alias_finds_its_own_size() -> None:
    """No alias hides another size."""
    for size in SIZES.values():
        for spelling in (size.name, *size.aliases):
            assert size is named_size(spelling)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ViT-B-33", "did you mean ViT-B-32 or ViT-B-16"),
        ("RN-50", "did you mean RN50"),
        ("VIT-G-14", "did you mean ViT-g-14 or ViT-bigG-14?"),
        ("a cat", "'a cat' names no size; `anyclass-export list` shows every one"),
        ("", "'' names no size; `anyclass-export list`"),
    ],
)
def test_an_unknown_size_is_an_error_that_names_its_neighbours(name: str, hint: str) -> None:
    """One line says what was meant, and where all names are; where only capitals tell two apart, both are named."""
    with pytest.raises(SourceError) as caught:
        named_size(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_mlp_width_of_either_tower_can_be_stated_and_is_left_out_otherwise() -> None:
    """Four times the width is the default; a configuration that does not state it reads and writes as it always did."""
    image = {"kind": "vit", "image_size": 32, "width": 32, "layers": 1, "heads": 2}
    text = {"width": 16, "layers": 1, "heads": 2}
    plain = ClipConfig.model_validate({"image": image, "text": text})
    stated = ClipConfig.model_validate({"image": image | {"mlp_width": 50}, "text": text | {"mlp_width": 20}})

    for config, widths in ((plain, (128, 64)), (stated, (50, 20))):
        weights = ClipModel(config).state_dict()
        assert widths == tuple(len(weights[f"{tower}.blocks.0.mlp.c_fc.weight"]) for tower in ("visual", "text"))
    assert "mlp_width" not in plain.model_dump_json()
    assert stated == ClipConfig.model_validate_json(stated.model_dump_json())
    with pytest.raises(ValidationError, match="mlp_width"):
        ClipConfig.model_validate({"image": image | {"mlp_width": 0}})


PROFILED = {
    "RN50": (12.22, 5.96),
    "RN101": (19.54, 5.96),
    "RN50x4": (42.56, 9.27),
    "RN50x16": (149.39, 13.3),
    "RN50x64": (529.11, 23.55),
    "ViT-B-32": (8.82, 5.96),
    "ViT-B-16": (35.13, 5.96),
    "ViT-L-14": (162.03, 13.3),
    "ViT-L-14-336": (381.92, 13.3),
    "ViT-H-14": (334.59, 47.09),
    "ViT-g-14": (534.06, 47.09),
    "ViT-bigG-14": (967.5, 97.86),
    "ViT-B-16-SigLIP": (35.42, 11.02),
    "ViT-B-16-SigLIP-256": (46.82, 11.02),
    "ViT-B-16-SigLIP-384": (112.13, 11.02),
    "ViT-B-16-SigLIP-512": (216.24, 11.02),
    "ViT-L-16-SigLIP-256": (162.56, 39.06),
    "ViT-L-16-SigLIP-384": (383.85, 39.06),
    "ViT-SO400M-14-SigLIP": (220.35, 13.19),
    "ViT-SO400M-14-SigLIP-384": (670.35, 53.13),
}
"""GFLOPs of image and text tower in open_clip's ``docs/model_profile.csv`` (commit 3b37473)."""


@pytest.mark.parametrize("name", SIZES)
def test_operations_are_those_of_the_published_profile(name: str) -> None:
    """To a thousandth, where a hundredth is wanted."""
    assert SIZES[name].operations.gflops == pytest.approx(PROFILED[name], rel=1e-3)


def test_list_shows_every_size_in_80_columns() -> None:
    """A line each with towers, parameters, operations, input and accuracy; none is cut."""
    done = CliRunner().invoke(app, ["list"], env={"COLUMNS": "80", "NO_COLOR": "1"})

    assert 0 == done.exit_code
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert [*SIZES] == [name for row in rows for name in SIZES if row.startswith(f"{name} ")]
    assert "ViT-B-32 ViT 12×768+12×512 151M 8.82+5.96 224 63.2" in rows
    assert "RN50x64 RN 3,15,36,10×128+12×1024 623M 529+23.5 448 73.9" in rows
    assert "ViT-SO400M-14-SigLIP-384 ViT 27×1152+27×1152 878M 670+53.1 384 83.1" in rows
    assert "…" not in done.stdout


def test_list_needs_no_torch() -> None:
    """It is a table of names, which an environment that only serves can show."""
    program = (
        "import sys; sys.modules.update(torch=None, onnx=None, safetensors=None); "
        "sys.argv = ['anyclass-export', 'list']; from model_export.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    assert "ViT-B-32" in done.stdout


def test_list_is_json_for_programs() -> None:
    """`--json` gives every size with its aliases and its configuration."""
    done = CliRunner().invoke(app, ["list", "--json"])

    assert 0 == done.exit_code
    entries = {entry.pop("name"): entry for entry in json.loads(done.stdout)}
    assert [*SIZES] == [*entries]
    entry = entries["ViT-L-14-336"]
    assert {"image", "text"} == entry.pop("gflops").keys()
    assert SIZES["ViT-L-14-336"].config == ClipConfig.model_validate(entry.pop("config"))
    assert {
        "aliases": ["ViT-L-14-336-quickgelu", "openai/clip-vit-large-patch14-336"],
        "kind": "clip",
        "parameters": 427_944_193,
        "embed_dim": 768,
        "image_size": 336,
        "context_length": 77,
        "imagenet_top1": 76.2,
    } == entry
    assert "siglip" == entries["ViT-SO400M-14-SigLIP"]["kind"]
    assert 16 == entries["ViT-SO400M-14-SigLIP"]["context_length"]
