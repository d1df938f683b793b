"""The image filter: sizes, trackers, flat colour, animations, broken pictures."""

import pickle
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from model_export.curation.image_filter import ImageFilter, ImageReason, is_animation
from model_export.curation.stage import run_stage
from model_export.errors import CurationError


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture of coloured patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST)


def encoded(image: Image.Image, kind: str = "JPEG", *frames: Image.Image) -> bytes:
    """Encode a picture, or an animation."""
    file = BytesIO()
    if frames:
        image.save(file, kind, save_all=True, append_images=frames)
    else:
        image.save(file, kind)
    return file.getvalue()


def reasons(*pictures: bytes | None, stage: ImageFilter | None = None) -> dict[str, int]:
    """Return the counted reasons of a table of these pictures."""
    ids = [str(row) for row in range(len(pictures))]
    table = pa.table({"id": ids, "image": pa.array(pictures, pa.binary())})
    return run_stage(stage or ImageFilter(), table).dropped


GOOD = encoded(picture(300, 240))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_picture_stays(kind: str) -> None:
    """A picture of any format that is large enough and shows something stays."""
    assert {} == reasons(encoded(picture(300, 240), kind))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (picture(1, 1), "tracker"),
        (picture(3, 2), "tracker"),
        (picture(199, 400), "small"),
        (picture(400, 199), "small"),
        (picture(200, 601), "aspect"),
        (picture(601, 200), "aspect"),
        (Image.new("RGB", (300, 300), (10, 200, 30)), "flat"),
        (Image.new("L", (300, 300), 255), "flat"),
    ],
)
def test_a_picture_that_shows_nothing_has_a_reason(image: Image.Image, reason: str) -> None:
    """Each kind of junk is named."""
    assert {reason: 1} == reasons(encoded(image, "PNG"))


def test_limits_are_inclusive() -> None:
    """A shorter side of 200 and an aspect of 3 stay."""
    assert {} == reasons(encoded(picture(200, 600)))


def test_grain_is_flat_and_a_gradient_is_not() -> None:
    """Noise averages out; a soft gradient is a picture."""
    grain = np.random.default_rng(1).integers(100, 140, (256, 256, 3), dtype=np.uint8)
    gradient = np.repeat(np.arange(100, 164, dtype=np.uint8)[:, None], 256, axis=1).repeat(4, axis=0)
    assert {"flat": 1} == reasons(encoded(Image.fromarray(grain)), encoded(Image.fromarray(gradient)))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_dropped(kind: str) -> None:
    """Several frames are an animation, one is a picture, in each format that has both."""
    moving = encoded(picture(300, 240), kind, picture(300, 240, 1), picture(300, 240, 2))
    assert {"animation": 1} == reasons(moving, encoded(picture(300, 240), kind))


def test_pages_of_a_tiff_are_no_animation() -> None:
    """A scan of several pages is a picture."""
    assert not is_animation(encoded(picture(300, 240), "TIFF", picture(300, 240, 1)))


def test_a_turned_picture_is_measured_upright() -> None:
    """The orientation of EXIF does not change the verdict."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = BytesIO()
    picture(601, 200).save(file, "JPEG", exif=exif)
    assert {"aspect": 1} == reasons(file.getvalue())


def test_broken_pictures_are_counted() -> None:
    """Bytes of no picture, of a damaged one, of a bomb, and none at all are reasons, never errors."""
    bomb = encoded(Image.new("1", (9_000, 9_000)), "PNG")
    broken = (b"", b"no picture", GOOD[:100], GOOD[:4], encoded(picture(300, 240), "PNG")[:500], bomb)
    assert {"broken": 6, "missing": 1} == reasons(*broken, None, GOOD)


def test_damage_anywhere_is_never_an_error() -> None:
    """A byte changed anywhere, or the rest cut off, gives a verdict."""
    chance = np.random.default_rng(2)
    sources = [encoded(picture(220, 220), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF")]
    sources.append(encoded(picture(220, 220), "GIF", picture(220, 220, 1)))
    damaged = []
    for source in sources:
        for _ in range(40):
            content = bytearray(source[: int(chance.integers(1, len(source) + 1))])
            content[int(chance.integers(len(content)))] ^= int(chance.integers(1, 256))
            damaged.append(bytes(content))
    assert set(reasons(*damaged)) <= {"broken", "tracker", "animation", "small", "aspect", "flat"}


def test_settings_decide() -> None:
    """Each setting moves its limit, and changes the digest."""
    small = encoded(picture(100, 450))
    assert {} == reasons(small, stage=ImageFilter(shorter_side=100, aspect=4.5))
    assert {"aspect": 1} == reasons(small, stage=ImageFilter(shorter_side=100))
    assert {"broken": 1} == reasons(GOOD, stage=ImageFilter(max_pixels=1_000))
    assert {"flat": 1} == reasons(GOOD, stage=ImageFilter(flat=255))
    stages = (ImageFilter(), ImageFilter(100), ImageFilter(aspect=2), ImageFilter(flat=1), ImageFilter(max_pixels=9))
    assert len(stages) == len({stage.digest for stage in stages})
    assert ImageFilter(100) == pickle.loads(pickle.dumps(ImageFilter(100)))  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shorter_side": 0}, "at least 1"),
        ({"aspect": 0.5}, "aspect 0.5"),
        ({"aspect": float("nan")}, "aspect nan"),
        ({"flat": 256}, "from 0 to 255"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float], message: str) -> None:
    """The message gives the limit."""
    with pytest.raises(CurationError, match=message):
        ImageFilter(**settings)  # type: ignore[arg-type]


def test_pairs_without_pictures_are_refused() -> None:
    """The message names the column."""
    with pytest.raises(CurationError, match="no column 'image'"):
        ImageFilter().run(pa.table({"id": ["1"], "text": ["A dog"]}))


def test_every_reason_is_documented() -> None:
    """The table of the docs has each reason."""
    page = (Path(__file__).parents[3] / "docs" / "curation.md").read_text(encoding="utf-8")
    section = page.partition("## Filter pictures")[2].partition("\n## ")[0]
    assert set(ImageReason) == set(re.findall(r"^\| `([a-z ]+)` \|", section, re.MULTILINE))
