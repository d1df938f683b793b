import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model_export.architectures.encoders import ImageEncoder
from model_export.checkpoints.assembly import Found, assemble
from model_export.checkpoints.model_source import SourceOptions
from model_export.checkpoints.preprocessing import image_section
from model_export.families.clip.config import ClipConfig
from model_export.families.clip.family import CLIP
from model_export.families.clip.model import ClipModel
from model_export.families.family import Family, HuggingFaceLayout, ImageDefaults, OnnxLayout, OpenClipLayout
from model_export.families.sizes import SIZES
from model_export.families.table import FAMILIES, family_of
from model_export.families.tokenizers import TextTokens
from model_export.published_onnx.scoring import read_scoring
from service.model.manifest import SigmoidScoring

FAMILY_FOLDERS = Path(__file__).parents[3] / "model_export" / "families"

PARTS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "title": str,
    "config": type,
    "default": object,
    "build": object,
    "sizes": tuple,
    "named": object,
    "padding": str,
    "has_bias": bool,
    "images": ImageDefaults,
    "hugging_face": HuggingFaceLayout,
    "open_clip": OpenClipLayout,
    "onnx": OnnxLayout,
    "relatives": dict,
}
"""What a family must bring."""

MODULES = {"family.py", "config.py", "model.py", "sizes.py", "tokenizer.py", "hugging_face.py", "open_clip.py"}
"""What its folder holds at least."""


def lacking(family: Family[Any]) -> list[str]:
    """Name the parts that a row lacks."""
    return [
        part
        for part, kind in PARTS.items()
        if not isinstance(getattr(family, part), kind) or getattr(family, part) in (None, "", ())
    ]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_row_brings_every_part(family: Family[Any]) -> None:
    """Each part is there, its functions can be called, and the folder has a module for each layout."""
    assert PARTS.keys() == {field.name for field in dataclasses.fields(Family)}
    assert [] == lacking(family)
    functions = [
        *(family.build, family.named),
        *(getattr(family.hugging_face, name) for name in ("read", "image_size", "configure", "convert")),
        *(getattr(family.open_clip, name) for name in ("matches", "read", "read_tokenizer", "complete", "convert")),
        family.onnx.read_tokenizer,
    ]
    assert all(callable(function) for function in functions)
    assert isinstance(family.default, family.config)
    assert all(isinstance(size.config, family.config) for size in family.sizes)
    assert not family.relatives.keys() & FAMILIES.keys()
    assert family.default.architecture.startswith(f"{family.name}/")
    assert family.onnx.architecture == family.default.architecture
    assert MODULES <= {path.name for path in (FAMILY_FOLDERS / family.name).iterdir()}


@pytest.mark.parametrize("part", ["sizes", "images", "hugging_face", "open_clip", "onnx"])
def test_a_row_that_lacks_a_part_is_seen(part: str) -> None:
    """An empty part is named."""
    empty: dict[str, Any] = {part: () if part == "sizes" else None}
    assert [part] == lacking(dataclasses.replace(CLIP, **empty))


def test_every_folder_has_its_row() -> None:
    """A family is known by the name of its folder; no size and no image processor is two families'."""
    folders = {path.parent.name for path in FAMILY_FOLDERS.glob("*/family.py")}
    assert FAMILIES.keys() | {"metaclip_2", "open_clip_torch"} == folders
    assert FAMILIES.keys() == {family.name for family in FAMILIES.values()}
    assert len(SIZES) == sum(len(family.sizes) for family in FAMILIES.values())
    processors = [name for family in FAMILIES.values() for name in family.images.processors]
    assert len(processors) == len(set(processors))


def test_the_default_is_what_a_configuration_may_leave_out() -> None:
    """An empty config.json and the row agree, so that graphs and weights are read alike."""
    for family in FAMILIES.values():
        said = family.hugging_face.read({}, Path("config.json"))
        text, default = said.text_config, family.default
        assert default.image.image_size == family.hugging_face.image_size(said)
        assert (default.text.vocab_size, default.text.context_length) == (
            text.vocab_size,
            text.max_position_embeddings,
        )


def test_rows_need_no_torch() -> None:
    """Published graphs are read where it is not installed."""
    code = "import sys, model_export.families.sizes; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "False\n" == done.stdout


def test_generic_code_names_no_family() -> None:
    """Readers and tools consult the rows. OpenAI's layout and training runs are CLIP's alone."""
    root = FAMILY_FOLDERS.parent
    own = {root / "checkpoints" / "openai.py", root / "checkpoints" / "training_run.py", FAMILY_FOLDERS / "table.py"}
    own.add(FAMILY_FOLDERS / "published.py")  # for people
    rooms = ("checkpoints", "published_onnx", "architectures", "hub", "export", "bundles", "graphs")
    files = [path for room in rooms for path in (root / room).rglob("*.py")] + list(FAMILY_FOLDERS.glob("*.py"))
    for path in sorted({*files} - own):
        text = path.read_text(encoding="utf-8").lower()
        assert not any(f"families.{name}" in text for name in FAMILIES), path
        assert not any(name in text for name in FAMILIES.keys() - {"clip"}), path  # that is in open_clip's name too


class MadeUpConfig(ClipConfig):
    """The configuration of a family that does not exist."""

    @property
    def architecture(self) -> str:
        """Family and image tower."""
        return f"made-up/{self.image.kind}"


def made_up() -> Family[MadeUpConfig]:
    """Make the row of a family with CLIP's towers, SigLIP's padding and scoring, and preprocessing of its own."""
    image = {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2}
    text = {"vocab_size": 8, "context_length": 4, "width": 16, "layers": 1, "heads": 2, "end_of_text_id": 7}
    return Family(
        name="made-up",
        title="MadeUp",
        config=MadeUpConfig,
        default=MadeUpConfig.model_validate({"embed_dim": 16, "image": image, "text": text}),
        build=_WithBias,
        sizes=(),
        named=lambda config, _arch, _activation, _path: config,
        padding="fixed",
        has_bias=True,
        images=ImageDefaults(("MadeUpProcessor",), "squash", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        hugging_face=CLIP.hugging_face,  # type: ignore[arg-type] # is not called
        open_clip=CLIP.open_clip,  # type: ignore[arg-type] # is not called
        onnx=OnnxLayout("made-up/vit", ("image_embeds",), ("text_embeds",), CLIP.onnx.read_tokenizer),
        relatives={},
    )


class _WithBias(ClipModel):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        self.logit_bias = torch.nn.Parameter(torch.tensor(-2.0))


def test_a_made_up_family_is_assembled_by_its_row_alone(tmp_path: Path) -> None:
    """Padding, scoring and the name of the architecture follow from the row; preprocessing from its defaults."""
    family = made_up()
    config = family.default
    weights = _WithBias(config).state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 16, "width": 16}}))
    image = image_section(tmp_path, family=family, image_size=16)
    assert family.images.section(16) == image
    found = Found(
        path=tmp_path / "weights.pt",
        file=tmp_path / "weights.pt",
        weights=weights,
        convert=lambda given, _wanted, _path: dict(given),
        image=image,
        options=SourceOptions(name="tiny"),
        notes={"layout": "made-up"},
    )
    source = assemble(found, family, config, TextTokens(b"{}", 7, 3))

    assert ("made-up/vit", 16) == (source.architecture, source.dim)
    assert ("fixed", 4, 3, 7) == (
        source.text.padding,
        source.text.min_length,
        source.text.pad_id,
        source.text.end_of_text_id,
    )
    assert isinstance(source.scoring, SigmoidScoring)
    assert -2.0 == source.scoring.logit_bias
    pixels = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    assert (2, 16) == ImageEncoder(source.model, image.mean, image.std)(pixels).shape
    scoring, _ = read_scoring(tmp_path, family, logit_scale=3.0, logit_bias=-1.0)
    assert SigmoidScoring(logit_scale=3.0, logit_bias=-1.0) == scoring


def test_a_configuration_of_no_family_is_a_mistake_of_ours() -> None:
    """It is said at once."""

    class Stray:
        pass

    with pytest.raises(LookupError, match="Stray is of no model family"):
        family_of(Stray())  # type: ignore[arg-type]
