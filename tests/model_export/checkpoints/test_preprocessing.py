import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from model_export.checkpoints.preprocessing import image_section
from model_export.errors import SourceError
from model_export.families.table import FAMILIES
from service.images.decoding import decode
from service.model.arrays import Pixels
from service.model.manifest import ImageSection
from service.model.resizing import preprocess
from tests.support.pictures import noise
from tests.support.places import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.jpg"))

NEW: dict[str, Any] = {
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 32},
}
OLD: dict[str, Any] = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}
SQUASH: dict[str, Any] = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}

AS_READ = {"do_rescale": False, "do_normalize": False}
"""So that transformers stops at whole pixel values."""


def read(folder: Path, fields: object, family: str = "clip", image_size: int = 32) -> ImageSection:
    """Read a folder whose preprocessing says this."""
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return image_section(folder, family=FAMILIES[family], image_size=image_size)


def refusal(folder: Path, fields: object, family: str = "clip") -> str:
    """Return the one line that a folder is refused with, without the file's name."""
    with pytest.raises(SourceError) as caught:
        read(folder, fields, family)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{folder / 'preprocessor_config.json'}: ")
    return str(caught.value).removeprefix(f"{folder / 'preprocessor_config.json'}: ")


def theirs(processor: Any, image: Image.Image, **steps: object) -> Pixels:
    """Prepare a picture with transformers, up to whole pixel values: uint8 `[height, width, 3]`."""
    (pixels,) = processor(image, **{**AS_READ, **steps})["pixel_values"]
    return np.asarray(pixels).astype(np.uint8).transpose(1, 2, 0)


def centre(pixels: Pixels) -> Pixels:
    """Crop 32 by 32 with the rounding of torchvision's ``CenterCrop``."""
    top, left = (round((length - 32) / 2) for length in pixels.shape[:2])
    return pixels[top : top + 32, left : left + 32]


def test_the_fields_of_every_age_say_the_same(tmp_path: Path) -> None:
    """Numbers and objects, old class name and new, with and without the rescaling that was always there."""
    expected = ImageSection(
        height=32,
        width=32,
        resize="shortest",
        interpolation="bicubic",
        crop="center",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    )
    fast = {**NEW, "image_processor_type": "CLIPImageProcessorFast", "do_pad": False, "resample": None}

    assert [expected] * 4 == [read(tmp_path, fields) for fields in (NEW, OLD, {**OLD, **NEW}, fast)]


@pytest.mark.parametrize(
    ("family", "processor"), [("clip", CLIPImageProcessorPil), ("siglip", SiglipImageProcessorPil)]
)
def test_what_is_left_out_has_the_default_of_the_published_class(tmp_path: Path, family: str, processor: Any) -> None:
    """An empty file says what a processor without arguments does."""
    processor().save_pretrained(tmp_path)
    published = image_section(tmp_path, family=FAMILIES[family], image_size=224)

    assert published == read(tmp_path, {}, family, 224)
    assert ("shortest" if family == "clip" else "squash") == published.resize


def test_a_named_class_counts_more_than_the_models_type(tmp_path: Path) -> None:
    """A CLIP may come with SigLIP's preprocessing."""
    assert read(tmp_path, SQUASH, "clip") == read(tmp_path, SQUASH, "siglip")


def test_newer_folders_keep_it_in_the_processors_file(tmp_path: Path) -> None:
    """Where there is no file of its own, it stands under image_processor."""
    expected = read(tmp_path, NEW)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": NEW, "processor_class": "x"}))

    assert expected == image_section(tmp_path, family=FAMILIES["clip"], image_size=32)


def test_not_normalising_is_said_as_mean_0_and_deviation_1(tmp_path: Path) -> None:
    """The graph normalises always; so that it does nothing."""
    section = read(tmp_path, {**NEW, "do_normalize": False})
    assert ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) == (section.mean, section.std)


@pytest.mark.parametrize("resample", [1, 2, 3])
@pytest.mark.parametrize("photo", EXAMPLES, ids=lambda photo: photo.stem)
def test_photos_are_resized_as_transformers_does(tmp_path: Path, photo: Path, resample: int) -> None:
    """Squashed or by the shorter side, with each of the filters: equal to the last bit."""
    image = Image.open(photo).convert("RGB")
    squash = SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=resample)
    shortest = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32, resample=resample)

    squashed = decode(photo.read_bytes(), read(tmp_path, {**SQUASH, "resample": resample}))
    covered = decode(photo.read_bytes(), read(tmp_path, {**NEW, "resample": resample}))

    np.testing.assert_array_equal(theirs(squash, image), squashed)
    np.testing.assert_array_equal(centre(theirs(shortest, image, do_center_crop=False)), covered)


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 32), (32, 34), (37, 32), (7, 50), (301, 199), (32, 63)])
def test_odd_sizes_are_prepared_as_transformers_does(tmp_path: Path, size: tuple[int, int]) -> None:
    """From a single pixel to what is many times as long as wide: equal to the last bit."""
    image = noise(*size)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    whole = theirs(processor, image, do_center_crop=False)

    ours = preprocess(image, read(tmp_path, NEW))

    np.testing.assert_array_equal(centre(whole), ours)
    margin = max(whole.shape[:2]) - 32
    if margin % 4 != 3:
        np.testing.assert_array_equal(theirs(processor, image), ours)


def test_a_crop_that_cannot_be_centred_is_rounded_as_clips_reference_does(tmp_path: Path) -> None:
    """Of a margin of 3 pixels, 2 are left of CLIP's crop (torchvision) and 1 is left of transformers'."""
    image = noise(35, 32)
    pixels = np.asarray(image)

    ours = preprocess(image, read(tmp_path, NEW))
    cropped = theirs(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32), image)

    np.testing.assert_array_equal(pixels[:, 2:34], ours)
    np.testing.assert_array_equal(pixels[:, 1:33], cropped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "does not resize"),
        ({"do_rescale": False}, "rescales by 1, a bundle by 1/255"),
        ({"rescale_factor": 1 / 127.5}, "rescales by 0.00784"),
        ({"resample": 0}, "resample 0 (nearest) is not supported"),
        ({"resample": 4}, "resample 4 (box) is not supported"),
        ({"resample": 9}, "resample 9 is not supported"),
        ({"do_center_crop": False}, "does not crop; a bundle needs pictures of one size"),
        ({"size": 36}, "resizes the shorter side to 36 and crops 32x32"),
        ({"crop_size": {"height": 32, "width": 16}}, "crops 32x16"),
        ({"crop_size": {"shortest_edge": 32}}, "crop_size must be a number, or height and width"),
        ({"size": {"longest_edge": 32}}, "size has longest_edge"),
        ({"size": {"height": 64, "width": 64}}, "resizes to 64x64 and then crops"),
        ({"size": 64, "crop_size": 64}, "prepares pictures of 64x64, the model takes 32x32"),
        ({"size": "large"}, "size"),
        ({"image_std": [0, 1, 1]}, "image_std.0: Input should be greater than 0"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"do_flip_channel_order": True}, "asks for do_flip_channel_order, which a bundle cannot express"),
        ({"do_pad": True}, "asks for do_pad"),
        ({"image_processor_type": "BlipImageProcessor"}, "is of a BlipImageProcessor; only "),
    ],
)
def test_what_a_bundle_cannot_say_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """The field at fault is named."""
    assert message in refusal(tmp_path, {**NEW, **change})


@pytest.mark.parametrize("fields", [[], "text", None])
def test_a_file_that_holds_no_object_is_refused(tmp_path: Path, fields: object) -> None:
    """JSON alone is not enough."""
    assert "must hold a JSON object" == refusal(tmp_path, fields)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Preprocessing is never guessed; a processor's file without it does not help."""
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    with pytest.raises(SourceError, match=r"preprocessor_config\.json: is missing; it says how pictures are prepared"):
        image_section(tmp_path, family=FAMILIES["clip"], image_size=32)


def test_a_picture_of_any_format_is_prepared_alike(tmp_path: Path) -> None:
    """What is decoded is what is prepared: a PNG of the same pixels gives the same input."""
    image, buffer = noise(50, 40), BytesIO()
    image.save(buffer, "PNG")
    section = read(tmp_path, NEW)
    np.testing.assert_array_equal(preprocess(image, section), decode(buffer.getvalue(), section))
