"""TIFFs whose samples lie in planes, that come from cameras, or whose samples have no white."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from service.errors import InvalidImage, UnsupportedImageFormat
from service.images.decoding import open_rgb
from tests.support.pictures import encode, grey_tiff, quadrants, tiff

WIDTH, HEIGHT, TILE = 24, 20, 16
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK, LAB = 0, 1, 2, 5, 8


def _planar(
    samples: npt.NDArray[Any],
    photometric: int,
    *,
    planes: int,
    order: str = "<",
    tiled: bool = False,
    alpha: bool = False,
) -> bytes:
    """Write samples `[planes, height, width]`, in planes of their own (`planes` 2) or together (1)."""
    bits, count = samples.dtype.itemsize * 8, len(samples)
    tags = {256: [WIDTH], 257: [HEIGHT], 258: [bits] * count, 259: [1], 262: [photometric], 277: [count], 284: [planes]}
    tags |= {338: [2]} if alpha else {}
    tags |= {322: [TILE], 323: [TILE]} if tiled else {278: [HEIGHT]}
    layers = samples.astype(f"{order}u{samples.dtype.itemsize}")
    if planes == 1:
        layers = np.moveaxis(layers, 0, 2)[None]
    pieces = []
    for layer in layers:
        if not tiled:
            pieces.append(layer.tobytes())
            continue
        padded = np.zeros((2 * TILE, 2 * TILE, *layer.shape[2:]), layer.dtype)
        padded[:HEIGHT, :WIDTH] = layer
        pieces += [padded[y : y + TILE, x : x + TILE].tobytes() for y in (0, TILE) for x in (0, TILE)]
    return tiff(pieces, tags, order=order, tiled=tiled)


def _samples(count: int, bits: int) -> npt.NDArray[Any]:
    kind = np.uint16 if bits == 16 else np.uint8
    return np.random.default_rng(count).integers(0, 2**bits, (count, HEIGHT, WIDTH), dtype=kind)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tiled", [False, True], ids=["strips", "tiles"])
@pytest.mark.parametrize(
    ("photometric", "count", "bits"),
    [(RGB, 3, 16), (RGB, 4, 16), (RGB, 3, 8), (RGB, 4, 8), (CMYK, 4, 8), (WHITE_IS_ZERO, 1, 8), (BLACK_IS_ZERO, 1, 16)],
)
def test_planes_are_the_same_picture_as_samples_together(
    photometric: int, count: int, bits: int, tiled: bool, order: str
) -> None:
    """Uncompressed, in each depth, colour and byte order."""
    samples = _samples(count, bits)
    alpha = (photometric, count) == (RGB, 4)
    apart, together = (
        open_rgb(_planar(samples, photometric, planes=planes, order=order, tiled=tiled, alpha=alpha))
        for planes in (2, 1)
    )
    assert together.tobytes() == apart.tobytes()


@pytest.mark.parametrize(("photometric", "bits"), [(CMYK, 16), (LAB, 8)])
def test_planes_that_would_be_read_wrong_are_refused(photometric: int, bits: int) -> None:
    """The message says how to save them."""
    with pytest.raises(InvalidImage, match="save it with its samples together"):
        open_rgb(_planar(_samples(4 if photometric == CMYK else 3, bits), photometric, planes=2))


DIRECTORY = {256: [2], 257: [1], 258: [8], 259: [1], 262: [1], 277: [1], 278: [1]}


@pytest.mark.parametrize(
    "tags",
    [{50706: [1]}, {254: [1], 330: [8], 271: [8]}, {259: [34713], 271: [8]}, {259: [32767], 271: [8]}],
    ids=["DNG", "thumbnail of a raw file", "Nikon", "Sony"],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_cameras_raw_file_is_named(tags: dict[int, list[int]], order: str) -> None:
    """It begins as a TIFF, and its first picture is often a thumbnail."""
    with pytest.raises(UnsupportedImageFormat, match=r"a camera's raw file.*develop it first"):
        open_rgb(tiff([b"\0\xff"], DIRECTORY | tags, order=order))


def test_a_first_page_that_is_reduced_is_a_picture() -> None:
    """Without the other marks of a raw file; and a photo in TIFF names its camera."""
    for tags in ({254: [1]}, {271: [8]}, {330: [8]}):
        assert (2, 1) == open_rgb(tiff([b"\0\xff"], DIRECTORY | tags)).size


def test_the_refusal_of_samples_without_a_white_names_them() -> None:
    """Signed ones of 16 bits are not of 32."""
    signed = DIRECTORY | {258: [16], 339: [2]}
    with pytest.raises(InvalidImage, match="signed samples of 16 bits"):
        open_rgb(tiff([bytes(4)], signed))
    with pytest.raises(InvalidImage, match="has samples of 32 bits"):
        open_rgb(encode(Image.new("F", (4, 4)), "TIFF"))


@pytest.mark.parametrize(
    "data", [b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0+\0\x08\0\0" + b"\xff" * 8, b"II*\0\x08\0\0\0\xff\xff"]
)
def test_a_directory_that_breaks_off_is_a_corrupt_image(data: bytes) -> None:
    """Wherever it does."""
    with pytest.raises(InvalidImage, match="corrupt"):
        open_rgb(data)


def test_quarters_are_read_from_a_plain_tiff() -> None:
    """Nothing of the above touches it."""
    assert quadrants().tobytes() == open_rgb(encode(quadrants(), "TIFF")).tobytes()
    assert (2, 1) == open_rgb(grey_tiff(2, 1, b"\0\xff", bits=8, photometric=0)).size
