"""SigLIP 2 NaFlex whose pictures keep their aspect: as transformers, from bytes to logits, and over HTTP."""

import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base
from rich.console import Console
from torch.nn import functional
from transformers import Siglip2Model, Siglip2Tokenizer
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorPil,
    get_image_size_for_max_num_patches,
)
from typer.testing import CliRunner

from model_export.checkpoints.at_hand import at_hand
from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import SourceOptions
from model_export.cli import app
from model_export.errors import SourceError
from model_export.export.console import Narrator
from model_export.export.convert import Conversion, convert
from model_export.families.siglip.naflex_model import NaflexImageTower
from service.images.decoding import decode
from service.model.choices import Preprocessing
from service.model.engine.engine import OnnxEngine
from service.model.loading import load_bundle
from service.model.manifest import ImageSection, SigmoidScoring
from service.model.resizing import fitting_size, packed
from service.model.tokenizer import Tokenizer
from tests.support.http_server import http_server
from tests.support.pictures import encode, noise
from tests.support.tiny_hugging_face import write_tiny_siglip
from tests.support.tiny_multilingual import LABELS, write_naflex

ATOL = 1e-4
SIZES = ((80, 60), (30, 90), (64, 64), (200, 20), (17, 130), (3, 2), (400, 16))
"""Width and height of pictures, pixels."""

WAYS: tuple[Preprocessing, ...] = ("exact", "fast")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a miniature with a budget of 16 patches of 8 pixels."""
    return write_naflex(tmp_path_factory.mktemp("naflex") / "model")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    """Return its bundle."""
    out = folder.parent / "bundle"
    convert(Conversion(str(folder), SourceOptions(keep_aspect=True)), out, narrator=Narrator(Console(quiet=True)))
    return out


def pictures() -> list[bytes]:
    """Return PNGs of several aspects."""
    return [encode(noise(*size), "PNG") for size in SIZES]


def test_pictures_of_any_aspect_are_transformers(folder: Path, bundle: Path) -> None:
    """From files to logits, all in one batch."""
    opened = load_bundle(bundle)
    section, scoring = opened.manifest.image, opened.manifest.scoring
    assert ("aspect", "bilinear", "none", 17, 64) == (
        section.resize,
        section.interpolation,
        section.crop,
        section.height,
        section.width,
    )
    assert isinstance(scoring, SigmoidScoring)
    assert "fixed grid" not in json.dumps(opened.manifest.provenance.recipe)
    engine = OnnxEngine.load(opened, "cpu", threads=1)
    texts = engine.encode_texts(Tokenizer.from_bundle(opened).encode(LABELS))
    vectors = engine.encode_images(np.stack([decode(data, section) for data in pictures()]))
    engine.close()
    logits = scoring.logit_scale * vectors @ texts.T + scoring.logit_bias

    tokenizer: Any = Siglip2Tokenizer.from_pretrained(folder)
    ids = tokenizer(list(LABELS), padding="max_length", max_length=32, return_tensors="pt")["input_ids"]
    model: Any = Siglip2Model.from_pretrained(folder).eval()
    batch = Siglip2ImageProcessorPil.from_pretrained(folder)(
        [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures()], return_tensors="pt"
    )
    assert len({tuple(shape.tolist()) for shape in batch["spatial_shapes"]}) > 4
    with torch.no_grad():
        said = model(input_ids=ids, **batch)
    torch.testing.assert_close(torch.from_numpy(logits), said.logits_per_image, atol=ATOL, rtol=0)
    assert np.ptp(logits, axis=0).min() > 100 * ATOL  # pictures differ, so that agreement says something


def test_pictures_of_several_aspects_are_served_at_once(bundle: Path, tmp_path: Path) -> None:
    """Over HTTP, where the batcher puts them together, each has the answer that it has alone."""
    labels = ["고양이", "강아지 사진"]
    with http_server(bundle, tmp_path) as server:

        def scores(data: bytes) -> list[float]:
            answer = httpx.post(
                f"{server.url}/v1/classify",
                files={"image": ("noise.png", data, "image/png")},
                data={"labels": labels},
                timeout=60,
            )
            assert 200 == answer.status_code, answer.text
            return sorted(each["score"] for each in answer.json()["predictions"])

        alone = [scores(data) for data in pictures()]
        with ThreadPoolExecutor(len(SIZES)) as pool:
            together = list(pool.map(scores, pictures()))
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert len({round(each[0], 7) for each in alone}) == len(SIZES)


def section_of(patches: int, patch: int) -> ImageSection:
    """Return a section for so many patches of so many pixels."""
    return ImageSection(
        height=patches + 1,
        width=patch**2,
        resize="aspect",
        interpolation="bilinear",
        crop="none",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def test_sizes_are_transformers() -> None:
    """Of small, narrow and large pictures, as of those with the most pixels that are decoded."""
    section = section_of(256, 16)
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 9000), (50_000_000, 1), (7000, 7000), *np.exp(rng.uniform(0, 9, (60, 2))).astype(int).tolist()]
    for width, height in sizes:
        theirs = get_image_size_for_max_num_patches(height, width, 16, 256)
        assert theirs[::-1] == fitting_size((width, height), section)
        assert math.prod(theirs) <= 256 * 16**2


def test_a_picture_is_packed_by_patches() -> None:
    """The first row has the grid less 1; a patch's row its pixels; the rest is zero."""
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    out = packed(pixels, section_of(9, 2))
    assert (10, 4, 3) == out.shape
    assert [1, 2, 0] == out[0, 0].tolist()
    assert not out[0, 1:].any()
    np.testing.assert_array_equal(out[1 + 4], pixels[2:, 2:4].reshape(4, 3))  # the patch below, in the middle
    assert not out[7:].any()


def test_a_picture_decoded_at_a_smaller_scale_has_the_same_grid() -> None:
    """Preprocessing `fast` of a large JPEG, also of one that is shown turned: nearly the pixels of `exact`."""
    across = np.linspace(0, 255, 1200, dtype=np.uint8)
    ramp = np.stack(
        [np.broadcast_to(across, (500, 1200)), np.full((500, 1200), 90), across[::-1] * np.ones((500, 1))], 2
    )
    turned = Image.Exif()
    turned[Base.Orientation] = 6
    for exif in (Image.Exif(), turned):
        file = io.BytesIO()
        Image.fromarray(ramp.astype(np.uint8)).save(file, "JPEG", quality=95, exif=exif)
        exact, fast = (decode(file.getvalue(), section_of(16, 8), preprocessing=way) for way in WAYS)
        assert ([2, 4, 0] if exif is not turned else [4, 2, 0]) == exact[0, 0].tolist()
        np.testing.assert_array_equal(exact[0], fast[0])
        np.testing.assert_allclose(exact[1:].astype(int), fast[1:].astype(int), atol=4)


def test_positions_are_interpolated_as_torch_does(folder: Path) -> None:
    """For grids that are larger and smaller than the square of embeddings, along either axis."""
    tower = load_model(folder, SourceOptions(keep_aspect=True)).model.visual
    assert isinstance(tower, NaflexImageTower)
    square = tower.positional_embedding.T.reshape(1, -1, 4, 4)
    for rows, columns in ((4, 4), (1, 16), (2, 7), (5, 3), (1, 1)):
        wanted = functional.interpolate(square, (rows, columns), mode="bilinear", antialias=True)[0].flatten(1).T
        place = torch.arange(rows * columns)[None]
        counts = torch.tensor([[rows, columns]], dtype=torch.float32)
        found = tower._positions(place // columns, place % columns, counts[:, :1], counts[:, 1:])[0]
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_what_cannot_keep_the_aspect_is_refused(folder: Path, tmp_path: Path) -> None:
    """One line: another model, a file, a budget of more patches than a bundle states."""
    other = write_tiny_siglip(tmp_path / "siglip")
    keep = SourceOptions(keep_aspect=True)
    with pytest.raises(SourceError, match="is of a SigLIP; only pictures of a SigLIP 2 NaFlex keep their aspect"):
        at_hand(str(other), keep)
    with pytest.raises(SourceError, match="is a file; --keep-aspect is for the folder"):
        load_model(other / "model.safetensors", keep)
    many = tmp_path / "many"
    many.mkdir()
    for file in folder.iterdir():
        (many / file.name).write_bytes(file.read_bytes())
    Siglip2ImageProcessorPil(max_num_patches=1024, patch_size=8).save_pretrained(many)
    with pytest.raises(SourceError, match="has a budget of 1024 patches a picture; 1 to 256 are read"):
        at_hand(str(many), keep)


def test_the_command_verifies_such_a_bundle(folder: Path, bundle: Path) -> None:
    """Against torch, whose model then keeps the aspect too."""
    done = CliRunner().invoke(app, ["verify", str(bundle), "--run", str(folder)])
    assert 0 == done.exit_code, done.output


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"width": 60}, "as many pixels as a square patch has"), ({"height": 1}, "1 to 256 patches, not 0")],
)
def test_a_section_that_no_picture_fits_is_refused(fields: dict[str, int], message: str) -> None:
    """Before a bundle is served."""
    with pytest.raises(ValueError, match=message):
        ImageSection.model_validate(section_of(16, 8).model_dump() | fields)
