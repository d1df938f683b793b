"""Decoding: what every accepted picture looks like, and what is refused."""

import math
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import ConfigurationError, InvalidImage, PayloadTooLarge, UnsupportedImageFormat
from service.images.decoding import ImageLimits, Undecoded, decode, open_rgb
from service.images.formats import FORMATS
from service.model.manifest import ImageSection
from service.model.resizing import preprocess
from tests.support.damaged import damaged
from tests.support.pictures import (
    LOSSLESS,
    LOSSY,
    bmp_with_alpha,
    bombs,
    encode,
    exif_of,
    grey_tiff,
    noise,
    png,
    png_rows,
    quadrants,
)

if "AVIF" not in FORMATS:  # a build of Pillow without it is served all the same
    LOSSY = {name: options for name, options in LOSSY.items() if name != "AVIF"}
EVERY = [*LOSSLESS, *LOSSY]
WHITE, BLACK, RED = [255, 255, 255], [0, 0, 0], [255, 0, 0]


def _section(size: int = 32, **changes: Any) -> ImageSection:
    fields: dict[str, Any] = {"height": size, "width": size, "resize": "shortest", "crop": "center"}
    fields |= {"interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return ImageSection(**(fields | changes))


def _pixels(image: Image.Image) -> npt.NDArray[np.int16]:
    return np.asarray(image).astype(np.int16)


def _difference(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return float(np.abs(_pixels(one) - _pixels(other)).mean())


def _opened(data: bytes) -> list[Any]:
    """Return the pixels, [height][width][3]."""
    rows: list[Any] = np.asarray(open_rgb(data)).tolist()
    return rows


# --- what is accepted ---


@pytest.mark.parametrize("name", EVERY)
def test_every_format_shows_the_same_picture(name: str) -> None:
    """To the bit where the format keeps every bit."""
    image = open_rgb(encode(quadrants(), name))
    assert "RGB" == image.mode
    assert _difference(quadrants(), image) <= (0 if name in LOSSLESS else 3)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in {"GIF", "BMP"}])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(name: str, orientation: int) -> None:
    """All eight, in every format that carries them."""
    stored_by_undoing: dict[int, Image.Transpose] = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = quadrants()
    stored = upright.transpose(stored_by_undoing[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert _difference(upright, open_rgb(encode(stored, name, exif=exif))) < 4


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as the module itself does, in a process without pytest
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff"])
def test_broken_metadata_does_not_spoil_a_good_picture(exif: bytes) -> None:
    """The pixels are all there."""
    assert _difference(quadrants(), open_rgb(encode(quadrants(), "JPEG", exif=exif))) < 4


def _without_adobe_marker(jpeg: bytes) -> bytes:
    marker = jpeg.index(b"\xff\xee")
    return jpeg[:marker] + jpeg[marker + 2 + int.from_bytes(jpeg[marker + 2 : marker + 4], "big") :]


def test_cmyk_is_converted() -> None:
    """JPEG stores it inverted, as Adobe began and all follow, whether the marker says so or not; TIFF does not."""
    cmyk = quadrants().convert("CMYK")
    jpeg = encode(cmyk, "JPEG")
    assert b"Adobe" in jpeg
    assert b"Adobe" not in _without_adobe_marker(jpeg)
    for data in (jpeg, _without_adobe_marker(jpeg), encode(cmyk, "TIFF")):
        assert _difference(quadrants(), open_rgb(data)) < 4


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_transparency_is_put_on_white(name: str) -> None:
    """What is hidden below alpha 0 stays hidden, half alpha is half white."""
    if name not in EVERY:
        pytest.skip("this Pillow has no AVIF")
    rgba = np.zeros((8, 24, 4), np.uint8)
    rgba[:, :8] = (255, 0, 0, 0)
    rgba[:, 8:16] = (255, 0, 0, 128)
    rgba[:, 16:] = (255, 0, 0, 255)
    row = _pixels(open_rgb(encode(Image.fromarray(rgba), name)))[4, [4, 12, 20]]
    assert np.abs(row - [[255, 255, 255], [255, 127, 127], [255, 0, 0]]).max() <= (1 if name in LOSSLESS else 6)


def test_grey_with_alpha_is_put_on_white() -> None:
    """In 8 bits and in 16."""
    la = np.array([[[0, 0], [0, 255], [100, 255]]], np.uint8)
    assert [[WHITE, BLACK, [100] * 3]] == _opened(encode(Image.fromarray(la), "PNG"))
    deep = png(3, 1, png_rows(la.astype(np.uint16) * 257), bit_depth=16, colour_type=4)
    assert [[WHITE, BLACK, [100] * 3]] == _opened(deep)


@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_palettes_are_expanded(name: str) -> None:
    """With one transparent entry, which becomes white."""
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert [[BLACK, RED, [0, 0, 255]]] == _opened(encode(image, name))
    assert [[BLACK, WHITE, [0, 0, 255]]] == _opened(encode(image, name, transparency=1))


def test_palettes_with_an_alpha_for_each_entry_are_expanded() -> None:
    """PNG's longer transparency chunk."""
    palette = (b"PLTE", bytes([255, 0, 0, 255, 0, 0, 0, 0, 0]))
    data = png(3, 1, b"\0\0\1\2", colour_type=3, chunks=[palette, (b"tRNS", bytes([0, 128, 255]))])
    assert [[WHITE, [255, 127, 127], BLACK]] == _opened(data)


@pytest.mark.parametrize(("depth", "row"), [(1, b"\0\x40"), (2, b"\0\x30"), (4, b"\0\x0f"), (8, b"\0\0\xff")])
def test_grey_of_few_bits_is_spread_to_full_range(depth: int, row: bytes) -> None:
    """The largest sample is white; a colour key is meant in the samples' own depth."""
    assert [[BLACK, WHITE]] == _opened(png(2, 1, row, bit_depth=depth, colour_type=0))
    for key, expected in ((0, [WHITE, WHITE]), (2**depth - 1, [BLACK, WHITE])):
        chunks = [(b"tRNS", key.to_bytes(2, "big"))]
        assert [expected] == _opened(png(2, 1, row, bit_depth=depth, colour_type=0, chunks=chunks))


def test_a_colour_key_of_deep_colour_is_found() -> None:
    """Samples and key are both brought to 8 bits."""
    samples = np.array([[[0x1234, 0x5678, 0x9ABC], [0, 0, 0]]], np.uint16)
    chunks = [(b"tRNS", samples[0, 0].astype(">u2").tobytes())]
    assert [[WHITE, BLACK]] == _opened(png(2, 1, png_rows(samples), bit_depth=16, chunks=chunks))


def test_sixteen_bits_are_the_same_picture_as_eight() -> None:
    """In PNG and TIFF, grey and colour, both byte orders."""
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    expected = np.repeat(grey[..., None], 3, axis=2).tolist()
    deep = grey * 257
    assert expected == _opened(png(16, 16, png_rows(deep), bit_depth=16, colour_type=0))
    assert expected == _opened(encode(Image.fromarray(deep), "TIFF"))
    assert expected == _opened(encode(Image.fromarray(deep.astype(">u2")), "TIFF"))
    colour = np.stack([deep, deep.T, deep[::-1]], axis=2)
    assert (colour >> 8).tolist() == _opened(png(16, 16, png_rows(colour), bit_depth=16))


def test_a_deep_colour_key_counts_in_all_sixteen_bits() -> None:
    """Colours that differ from it in a low byte are not transparent, upright or turned."""
    samples = np.full((2, 3, 3), 0x7F80, np.uint16)
    samples[0, 1] = (0x7F80, 0x7F81, 0x7F80)
    for key, expected in ((samples[0, 0], [WHITE, [127] * 3, WHITE]), (samples[0, 0] ^ [1, 0, 0], [[127] * 3] * 3)):
        chunks = [(b"tRNS", key.astype(">u2").tobytes())]
        assert expected == _opened(png(3, 2, png_rows(samples), bit_depth=16, chunks=chunks))[0]
        turned = [*chunks, (b"eXIf", exif_of(orientation=6))]
        assert expected == [row[-1] for row in _opened(png(3, 2, png_rows(samples), bit_depth=16, chunks=turned))]


def test_a_colour_key_has_the_bits_of_the_samples() -> None:
    """Higher bits do not count (PNG 11.3.1.1)."""
    chunks = [(b"tRNS", b"\x12\xff\x34\x00\x56\x00")]
    assert [[WHITE, BLACK]] == _opened(png(2, 1, b"\0\xff\0\0\0\0\0", chunks=chunks))
    assert [[BLACK, WHITE]] == _opened(png(2, 1, b"\0\0\x07", colour_type=0, chunks=[(b"tRNS", b"\x30\x07")]))


def test_a_transparent_sixteen_bit_grey_is_white() -> None:
    """Exactly that grey, not its neighbours."""
    samples = np.array([[1000, 1001, 0]], np.uint16)
    chunks = [(b"tRNS", (1000).to_bytes(2, "big"))]
    data = png(3, 1, png_rows(samples), bit_depth=16, colour_type=0, chunks=chunks)
    assert [[WHITE, [3, 3, 3], BLACK]] == _opened(data)


def test_tiff_greys_of_other_kinds() -> None:
    """Twelve bits, and white as zero in any depth."""
    assert [[BLACK, WHITE]] == _opened(grey_tiff(2, 1, b"\x00\x0f\xff", bits=12, photometric=1))
    assert [[WHITE, BLACK]] == _opened(grey_tiff(2, 1, b"\x00\x00\xff\xff", bits=16, photometric=0))
    assert [[WHITE, BLACK]] == _opened(grey_tiff(2, 1, b"\x00\xff", bits=8, photometric=0))


@pytest.mark.parametrize("name", ["PNG", "TIFF", "BMP", "GIF"])
def test_one_bit_is_black_and_white(name: str) -> None:
    """Not black and nearly black."""
    image = Image.fromarray(np.array([[True, False, True]]))
    assert "1" == image.mode
    assert [[WHITE, BLACK, WHITE]] == _opened(encode(image, name))


def test_a_bmp_that_is_transparent_everywhere_is_opaque() -> None:
    """Windows leaves the alpha of its clipboard empty; a single opaque pixel shows that it is meant."""
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 0] = 255
    assert [[RED, RED], [RED, RED]] == _opened(bmp_with_alpha(rgba))
    rgba[0, 0, 3] = 255
    assert [[RED, WHITE], [WHITE, WHITE]] == _opened(bmp_with_alpha(rgba))


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_an_animation_is_its_first_frame(name: str) -> None:
    """However many follow."""
    if name not in EVERY:
        pytest.skip("this Pillow has no AVIF")
    others = [Image.new("RGB", (48, 32), colour) for colour in ("black", "white")]
    data = encode(quadrants(), name, save_all=True, append_images=others)
    assert _difference(quadrants(), open_rgb(data)) < 4


def test_an_embedded_profile_is_ignored() -> None:
    """CLIP's own preprocessing does not look at it either."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert 0 == _difference(quadrants(), open_rgb(encode(quadrants(), "PNG", icc_profile=profile)))


def test_bytes_after_the_image_are_ignored() -> None:
    """A photo with a tail, an archive or a film, is a photo."""
    assert _difference(quadrants(), open_rgb(encode(quadrants(), "JPEG") + b"PK\3\4 and more")) < 4


def test_threads_decode_at_the_same_time() -> None:
    """Each gets its own picture."""
    pictures = [encode(noise(40, 30, seed), "PNG") for seed in range(24)]
    expected = [decode(data, _section()) for data in pictures]
    with ThreadPoolExecutor(8) as pool:
        for want, got in zip(expected, pool.map(lambda data: decode(data, _section()), pictures), strict=True):
            np.testing.assert_array_equal(want, got)


# --- what is refused ---


@pytest.mark.parametrize("name", [name for name in bombs() if name.split()[0] in EVERY])
def test_a_bomb_is_refused_from_its_header(name: str) -> None:
    """60,000 · 60,000 pixels: the file holds no pixels, so only the header can have been read."""
    with pytest.raises(InvalidImage, match="pixels|corrupt" if name == "AVIF" else "pixels"):
        open_rgb(bombs()[name])


def test_limits_are_inclusive() -> None:
    """A picture of exactly the limit passes, in bytes and in pixels."""
    data = encode(quadrants(10, 10), "PNG")
    open_rgb(data, ImageLimits(max_bytes=len(data), max_pixels=100))
    with pytest.raises(InvalidImage, match="10x10 pixels; the limit is 99"):
        open_rgb(data, ImageLimits(max_pixels=99))
    with pytest.raises(PayloadTooLarge, match=f"the limit is {len(data) - 1}"):
        open_rgb(data, ImageLimits(max_bytes=len(data) - 1))


def test_a_limit_above_pillows_own_is_a_mistake() -> None:
    """It would be promised and not kept."""
    with pytest.raises(ConfigurationError, match="178956970"):
        ImageLimits(max_pixels=178_956_971)


def test_an_endless_progressive_jpeg_is_refused() -> None:
    """Every scan passes over all pixels; a scan costs a sender a few bytes."""
    data = encode(quadrants(64, 64), "JPEG", progressive=True)
    limits = ImageLimits(max_pixels=64 * 64)
    assert "RGB" == open_rgb(data, limits).mode
    scan, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    with pytest.raises(InvalidImage, match="more than 16 scans"):
        open_rgb(data[:end] + data[scan:end] * 20 + data[end:], limits)


@pytest.mark.parametrize("name", EVERY)
def test_truncated_images_are_refused(name: str) -> None:
    """Nothing is guessed; only a file that lost no pixel may pass."""
    data = encode(noise(64, 48), name)
    for percent in range(0, 100, 7):
        with pytest.raises((InvalidImage, UnsupportedImageFormat)):
            open_rgb(data[: len(data) * percent // 100])


@pytest.mark.parametrize("name", EVERY)
def test_the_signature_alone_is_a_corrupt_image(name: str) -> None:
    """The format is accepted, the image is not."""
    with pytest.raises(InvalidImage, match=f"{name} image is corrupt"):
        open_rgb(encode(quadrants(), name)[:32] + bytes(100))


def _foreign() -> dict[str, bytes]:
    picture = quadrants()
    return {name: encode(picture, name) for name in ("EPS", "ICO", "PPM", "TGA", "PCX", "PDF", "JPEG2000", "ICNS")} | {
        "PSD": b"8BPS\0\1" + bytes(100),
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "HTML": b"<html></html>",
        "zip": b"PK\3\4" + bytes(100),
        "zeros": bytes(1000),
    }


@pytest.mark.parametrize(("name", "data"), _foreign().items(), ids=_foreign())
def test_other_formats_are_refused(name: str, data: bytes) -> None:
    """Also those that Pillow would gladly open, with programs of their own behind some."""
    with pytest.raises(UnsupportedImageFormat, match="JPEG, PNG, WEBP"):
        open_rgb(data)


def test_no_bytes_are_no_image() -> None:
    """A form sent without its file."""
    with pytest.raises(InvalidImage, match="empty"):
        open_rgb(b"")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_without_a_white_are_refused(mode: str) -> None:
    """A 32-bit sample has no defined brightness."""
    with pytest.raises(InvalidImage, match="32 bits"):
        open_rgb(encode(Image.new(mode, (4, 4)), "TIFF"))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", EVERY)
def test_damaged_images_give_pixels_or_our_errors(name: str) -> None:
    """Whatever is flipped, cut out or put in, both ways: some ten thousand over all formats."""
    limits = ImageLimits(max_pixels=200_000)
    outcomes = Counter[str]()
    for number, data in zip(range(1_430), damaged(name), strict=False):
        try:
            pixels = decode(data, _section(), limits, "fast" if number % 2 else "exact")
        except (InvalidImage, UnsupportedImageFormat) as exc:
            outcomes[type(exc).__name__] += 1
        else:
            outcomes["decoded"] += (32, 32, 3) == pixels.shape
    assert 1_430 == sum(outcomes.values())
    assert outcomes["InvalidImage"] > 100
    assert outcomes["decoded"] > 10


# --- preprocessing ---


def _torchvision(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Resize(size, BICUBIC) and CenterCrop(size), as torchvision 0.2x writes their arithmetic."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = size, int(size * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    resized = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    top = int(round((new_height - size) / 2.0))  # noqa: RUF046 - as it stands there
    left = int(round((new_width - size) / 2.0))  # noqa: RUF046 - as it stands there
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 48))
@settings(max_examples=80, deadline=None)
@example(width=3, height=5, size=3)  # a crop of exactly half a pixel, which rounds to even
@example(width=7, height=3, size=3)
@example(width=32, height=32, size=32)  # nothing to do
def test_preprocessing_is_the_reference_to_the_bit(width: int, height: int, size: int) -> None:
    """Any size to any size."""
    image = noise(width, height)
    np.testing.assert_array_equal(_torchvision(image, size), preprocess(image, _section(size)))


def _cubic_weights(source: int, target: int) -> npt.NDArray[np.float64]:
    """Keys' cubic, a = -1/2, widened to the scale when shrinking: `[target, source]`."""
    scale = source / target
    width = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale
    x = np.abs((np.arange(source)[None] + 0.5 - centres) / width)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    normalised: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised


@pytest.mark.parametrize(("width", "height"), [(100, 60), (20, 33)])
def test_resizing_is_antialiased_bicubic(width: int, height: int) -> None:
    """By the filter's formula; within the rounding of two passes to 8 bits."""
    smooth = noise(8, 8).resize((width, height), Image.Resampling.BICUBIC)
    rows, columns = _cubic_weights(height, 32), _cubic_weights(width, 32)
    exact = np.einsum("yh,hwc,xw->yxc", rows, np.asarray(smooth, np.float64), columns).clip(0, 255)
    answer = preprocess(smooth, _section(32, resize="squash", crop="none"))
    assert np.abs(exact - answer).max() <= 2


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_squashing_keeps_everything(interpolation: str) -> None:
    """Both sides go to size, nothing is cut off."""
    section = _section(height=20, width=30, resize="squash", crop="none", interpolation=interpolation)
    expected = noise(50, 70).resize((30, 20), getattr(Image.Resampling, interpolation.upper()))
    np.testing.assert_array_equal(np.asarray(expected), preprocess(noise(50, 70), section))


@given(st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=40, deadline=None)
def test_inputs_that_are_not_square_are_covered(width: int, height: int) -> None:
    """The picture always fills height and width."""
    section = _section(height=20, width=30)
    pixels = preprocess(Image.new("RGB", (width, height), "white"), section)
    assert (20, 30, 3) == pixels.shape
    assert (pixels == 255).all()


@pytest.mark.parametrize("size", [(1, 171), (171, 1), (3, 512), (512, 3)])
def test_extreme_shapes_are_cropped_first_to_the_same_pixels(size: tuple[int, int]) -> None:
    """Where the whole resized picture is too large, as it is from 8,388,608 pixels, only the window is computed."""
    image = noise(*size)
    side = 224
    assert side * side * max(size) / min(size) > 2**23
    difference = _torchvision(image, side).astype(np.int16) - preprocess(image, _section(side))
    assert np.abs(difference).max() <= 1


_EXTREME = """
import resource, sys
from io import BytesIO
from PIL import Image
from service.images.decoding import decode
from service.model.manifest import ImageSection
resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))
for size in ((1, 2_500_000), (2_500_000, 1)):
    stream = BytesIO()
    Image.new("1", size, 1).save(stream, "TIFF", compression="group4")
    for resize, crop in (("shortest", "center"), ("squash", "none")):
        section = ImageSection(height=224, width=224, resize=resize, crop=crop, interpolation="bicubic",
                               mean=(0, 0, 0), std=(1, 1, 1))
        for preprocessing in ("exact", "fast"):
            assert (decode(stream.getvalue(), section, preprocessing=preprocessing) == 255).all()
print("bounded")
"""


def test_extreme_shapes_cost_bounded_memory() -> None:
    """A line of 2.5 million pixels would be 500 GB when resized by its short side, and 2 GB if first made wide.

    1.5 GB of address space is enough.
    """
    answer = subprocess.run([sys.executable, "-c", _EXTREME], capture_output=True, text=True, check=False)
    assert "bounded\n" == answer.stdout, answer.stderr


def test_preprocessing_takes_rgb_only() -> None:
    """Anything else is a mistake of the caller, and would be resized wrongly."""
    with pytest.raises(ValueError, match="not RGBA"):
        preprocess(Image.new("RGBA", (4, 4)), _section())


def test_messages_speak_of_no_content() -> None:
    """They may end up in a log."""
    for data in (b"secret" * 100, b"\xff\xd8\xff secret"):
        with pytest.raises((InvalidImage, UnsupportedImageFormat)) as caught:
            open_rgb(data)
        assert not re.search("secret", caught.value.detail)


# --- fast ---


def _soft(width: int, height: int) -> Image.Image:
    """A picture in which a shift or a turn shows, and a block's highest frequencies are next to nothing."""
    return noise(7, 5).resize((width, height), Image.Resampling.BICUBIC)


def _fast_difference(data: bytes, section: ImageSection) -> int:
    fast = decode(data, section, preprocessing="fast").astype(np.int16)
    return int(np.abs(fast - decode(data, section)).max())


@pytest.mark.parametrize("size", [(128, 128), (640, 480), (515, 1001), (1003, 769), (1001, 257)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2, "quality": 80}], ids=str)
def test_fast_is_nearly_exact(size: tuple[int, int], options: dict[str, Any]) -> None:
    """At every scale, also where the sides are no multiple of it."""
    data = encode(_soft(*size), "JPEG", **options)
    for section in (_section(), _section(resize="squash", crop="none"), _section(height=20, width=60)):
        assert _fast_difference(data, section) <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fast_minds_the_orientation(orientation: int) -> None:
    """In the scale, whose sides are those of the stored picture, and in the part of a pixel at its edges."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(_soft(523, 261), "JPEG", exif=exif)
    for section in (_section(), _section(height=60, width=20), _section(height=20, width=60, resize="squash")):
        assert _fast_difference(data, section) <= 3


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_fast_minds_the_colours(mode: str) -> None:
    """Grey and CMYK are decoded at the smaller scale in their own colours."""
    data = encode(_soft(640, 480).convert(mode), "JPEG")
    assert _fast_difference(data, _section()) <= 4
    assert 640 * 480 / 16 == Undecoded(data, _section(), preprocessing="fast").pixels


def test_fast_reads_the_first_of_several_pictures() -> None:
    """Cameras store a preview, or the other eye's picture, behind the first."""
    data = encode(_soft(640, 480), "MPO", save_all=True, append_images=[_soft(64, 48).rotate(180)])
    assert _fast_difference(data, _section()) <= 3


@pytest.mark.parametrize("name", [name for name in EVERY if name != "JPEG"])
def test_fast_is_nearly_exact_in_other_formats(name: str) -> None:
    """They have no smaller scale; large ones are first reduced by averages."""
    for size in ((40, 30), (333, 517)):
        assert _fast_difference(encode(_soft(*size), name), _section()) <= 3


@pytest.mark.parametrize(
    ("side", "scale"), [(64, 1), (127, 1), (128, 2), (255, 2), (256, 4), (511, 4), (512, 8), (999, 8)]
)
def test_the_smallest_scale_with_a_margin_is_decoded(side: int, scale: int) -> None:
    """Twice the final side or more; exact decodes all."""
    data = encode(_soft(side, side), "JPEG")
    assert math.ceil(side / scale) ** 2 == Undecoded(data, _section(), preprocessing="fast").pixels
    assert side**2 == Undecoded(data, _section()).pixels


def test_a_progressive_picture_counts_in_full() -> None:
    """Its coefficients are all kept until the last scan, at whatever scale; so are those of separate colours."""
    assert (
        512**2 == Undecoded(encode(_soft(512, 512), "JPEG", progressive=True), _section(), preprocessing="fast").pixels
    )
    data = bytearray(encode(_soft(512, 512), "JPEG"))
    scan = data.index(b"\xff\xda")
    data[scan + 2 : scan + 14] = bytes([0, 8, 1, 1, 0, 0, 63, 0])  # of the first colour only
    assert 512**2 == Undecoded(bytes(data), _section(), preprocessing="fast").pixels


def test_fast_refuses_what_exact_refuses() -> None:
    """All checks come before the scale is chosen, and a truncated picture is seen at any scale."""
    data = encode(noise(512, 512), "JPEG")
    for broken, limits in (
        (data, ImageLimits(max_bytes=len(data) - 1)),
        (data, ImageLimits(max_pixels=512 * 512 - 1)),
        *((data[: len(data) * percent // 100], ImageLimits()) for percent in (30, 60, 99)),
    ):
        with pytest.raises((InvalidImage, PayloadTooLarge)) as exact:
            decode(broken, _section(), limits)
        with pytest.raises(type(exact.value)) as fast:
            decode(broken, _section(), limits, "fast")
        assert exact.value.detail == fast.value.detail
