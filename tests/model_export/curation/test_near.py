"""Signatures of pictures, their views, and pairs of near copies."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from model_export.curation import near as near_module
from model_export.curation.near import near_pairs
from model_export.curation.signatures import (
    BROKEN,
    EXACT,
    LUMA,
    NEAR,
    NEAR_BYTES,
    PIXELS,
    Sign,
    coefficients,
    signature,
)
from model_export.curation.stage import ID, IMAGE, run_stage
from model_export.curation.views import Coded, Rows, alike
from tests.support.curating import quiet
from tests.support.pictures import encode, exif_of
from tests.support.planted import COPIES, flag, scene

SIMILARITY = 0.92
ORIGINALS = 60


def signed(images: list[Image.Image]) -> Coded:
    """Return the coefficients of pictures."""
    return np.stack([np.frombuffer(signature(image).near, np.int8) for image in images])


def never(some: Rows, _: Rows) -> np.ndarray:
    """Return that no pictures are known to belong together."""
    return np.zeros(len(some), bool)


def pairs(near: Coded, folder: Path, joined: Callable[[Rows, Rows], np.ndarray] = never) -> set[tuple[int, int]]:
    """Return the pairs of near copies."""
    found = near_pairs(near, SIMILARITY, folder / "codes", joined, quiet())
    return {(int(first), int(second)) for each in found for first, second in each}


@pytest.fixture(scope="module")
def originals() -> list[Image.Image]:
    """Return pictures that are no copies of each other."""
    return [scene(seed) for seed in range(ORIGINALS)]


def test_a_signature_has_a_fixed_size_and_the_low_frequencies(originals: list[Image.Image]) -> None:
    """Coefficients are those of the orthonormal cosine transform, to a part of their size."""
    image = originals[0]
    small = np.asarray(image.resize((32, 32), Image.Resampling.BOX), np.float64) @ [77 / 256, 150 / 256, 29 / 256]
    points = (np.arange(32) + 0.5) * np.pi / 32
    found = coefficients(signed([image]))[0, : LUMA**2].reshape(LUMA, LUMA)
    for down, across in ((1, 0), (0, 1), (2, 3), (9, 9)):
        scale = (np.sqrt(2) if down else 1) * (np.sqrt(2) if across else 1) / 32
        expected = scale * (np.cos(down * points) @ small @ np.cos(across * points))
        assert found[down, across] == pytest.approx(expected, rel=0.1, abs=1.5)
    assert NEAR_BYTES == len(signature(image).near)


def test_a_stage_signs_pictures_as_the_service_decodes_them() -> None:
    """Exact digests are of upright pixels and their size; broken pictures are counted, and have no signature."""
    image = scene(1)
    turned = encode(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif_of(orientation=6))
    other = image.copy()
    other.putpixel((0, 0), (1, 2, 3))
    data = [encode(image, "PNG"), turned, encode(image, "BMP"), encode(other, "PNG"), b"GIF89a broken"]
    table = pa.table({ID: list("abcde"), IMAGE: pa.array(data, pa.binary()), "text": list("vwxyz")})

    result = run_stage(Sign(), table)

    exact = result.kept[EXACT].to_pylist()
    assert exact[0] == exact[1] == exact[2] != exact[3]
    assert [96 * 72] * 4 + [None] == result.kept[PIXELS].to_pylist()
    assert [None, None] == [result.kept[column][4].as_py() for column in (EXACT, NEAR)]
    assert {BROKEN: 1} == dict(result.notes)


@pytest.mark.parametrize("kind", COPIES)
def test_planted_copies_are_found_and_no_others(kind: str, originals: list[Image.Image], tmp_path: Path) -> None:
    """Of each kind at least 95% are found; no other pair is."""
    chance = np.random.default_rng(3)
    near = signed([*originals, *(COPIES[kind](image, chance) for image in originals)])

    found = pairs(near, tmp_path)

    planted = {(row, row + ORIGINALS) for row in range(ORIGINALS)}
    assert found <= planted
    assert 0.95 <= len(found) / ORIGINALS


def test_crops_of_flags_are_found(tmp_path: Path) -> None:
    """An edge near the border changes hash bits of neighbouring frequencies; bands without these find the crop."""
    flags, chance = [flag(seed) for seed in range(120)], np.random.default_rng(3)
    near = signed([*flags, *(COPIES["cropped by 10%"](image, chance) for image in flags)])

    found = pairs(near, tmp_path)

    assert found <= {(row, row + 120) for row in range(120)}
    assert 0.85 <= len(found) / 120  # 0.78 by bands that leave out any third of the bits


def test_parts_find_what_a_whole_band_finds(
    originals: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays that are made in parts, and blocks of few pictures, do not change the pairs."""
    chance = np.random.default_rng(4)
    near = signed([*originals, *(COPIES["all at once"](image, chance) for image in originals)])
    whole = pairs(near, tmp_path)
    monkeypatch.setattr(near_module, "_ENTRIES", 500)
    monkeypatch.setattr(near_module, "_BLOCK", 7)
    monkeypatch.setattr(near_module, "_PAIRS", 5)

    assert 50 < len(whole)
    assert whole == pairs(near, tmp_path)


def test_pairs_that_are_joined_are_not_measured(originals: list[Image.Image], tmp_path: Path) -> None:
    """Pictures in one group already are left out."""
    near = signed([*originals[:5], *originals[:5]])
    assert {(row, row + 5) for row in range(5)} == pairs(near, tmp_path)
    assert {(2, 7)} == pairs(near, tmp_path, lambda some, others: (some % 5 != 2) | (others % 5 != 2))


def test_many_alike_are_compared_with_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pictures that all look alike, each is measured with its neighbours in each band; they are still one chain."""
    count, neighbours = 200, 8
    image = scene(2)
    near = np.repeat(signed([image]), count, axis=0)
    near[:, 90] += np.arange(count, dtype=np.int16).astype(np.int8) % 3
    measured = []

    def counting(some: Coded, others: Coded, similarity: float) -> np.ndarray:
        measured.append(len(some))
        return alike(some, others, similarity)

    monkeypatch.setattr(near_module, "alike", counting)
    monkeypatch.setattr(near_module, "_NEIGHBOURS", neighbours)
    found = pairs(near, tmp_path)

    assert sum(measured) <= 15 * count * neighbours  # each with each in 15 bands would be 25 times as many
    reached, before = {0}, set[int]()
    while reached != before:
        before = set(reached)
        reached |= {end for pair in found if reached & set(pair) for end in pair}
    assert count == len(reached)


def test_colours_and_contrast_tell_pictures_apart() -> None:
    """The same brightness in other colours is no copy, nor is the same pattern much paler."""
    image = np.asarray(scene(5), np.float32)
    green = Image.fromarray(np.clip(image + np.array([-60, 31, 0], np.float32), 0, 255).astype(np.uint8))
    pale = Image.fromarray((128 + (image - 128) / 3).astype(np.uint8))
    near = signed([scene(5), green, pale])

    assert [True, False, False] == alike(near, near[[0, 0, 0]], SIMILARITY).tolist()


def test_no_pictures_and_one_have_no_pairs(tmp_path: Path) -> None:
    """Empty and single sets are no special case for the caller."""
    assert set() == pairs(np.zeros((0, NEAR_BYTES), np.int8), tmp_path)
    assert set() == pairs(signed([scene(1)]), tmp_path)
