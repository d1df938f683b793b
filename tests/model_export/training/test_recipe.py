from __future__ import annotations

import re
from pathlib import Path

import pytest

from model_export.errors import RecipeError
from model_export.training.recipe import read_recipe
from model_export.training.recipe_digest import digest
from tests.support.pairs import recipe_text
from tests.support.places import ROOT

RECIPES = ROOT / "model_export" / "recipes"


def written(folder: Path, text: str) -> Path:
    """Write a recipe into a folder."""
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.name)
def test_every_committed_recipe_is_valid(path: Path) -> None:
    """A recipe that ships can be read, and its data files are found relative to its own folder."""
    recipe = read_recipe(path)

    assert all(Path(file).is_absolute() for file in recipe.data.files)


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ("seed = 7", "seeds = 7", "seeds"),
        ("seed = 7", "seed = -1", "seed"),
        ("seed = 7", "seed = ", "TOML"),
        ('templates = ["a {} picture.", "{}"]', 'templates = ["a picture."]', "exactly once"),
        ('default = ["a {} picture."]', 'other = ["a {} picture."]', "default"),
        ("crop_area = [0.8, 1.0]", "crop_area = [0.8, 1.5]", "crop_area"),
        ("batch_size = 16", "batch_size = 1", "batch_size"),
        ('kind = "residual_conv"', 'kind = "vgg"', "vgg"),
        ("phases = []", "phases = [{start = 0.5, size = 8}]", "start at 0"),
        ('name = "colours"', 'name = "Two Words"', "name"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, before: str, after: str, word: str) -> None:
    """One line names the wrong key and the reason, before anything is read or written."""
    text = recipe_text([Path("pairs.parquet")])
    assert before in text

    with pytest.raises(RecipeError, match=word) as caught:
        read_recipe(written(tmp_path, text.replace(before, after)))

    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(RecipeError, match=r"absent\.toml"):
        read_recipe(tmp_path / "absent.toml")


def test_sizes_that_change_need_a_tower_that_takes_them(tmp_path: Path) -> None:
    """A ViT has one input size; a recipe that varies it is refused."""
    text = recipe_text(
        [Path("pairs.parquet")],
        kind='"vit"',
        tower="patch_size = 8\nwidth = 16\nlayers = 1\nheads = 2",
        phases="[{start = 0.0, size = 8}]",
    )

    with pytest.raises(RecipeError, match="residual_conv"):
        read_recipe(written(tmp_path, text))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seed = 7", "sed = 7", "sed: is not a key of a recipe; did you mean seed? (the top level has name, seed, "),
        (
            "stem_width = 8",
            "depth = 8\nstm_width = 8",
            "widths, mirror, shifts); model.image.residual_conv.stm_width: is not a key of a recipe; did you mean stem",
        ),
        (
            "phases = []",
            "phases = [{ start = 0, sizes = 16 }]",
            "phases.0.sizes: is not a key of a recipe; did you mean size? (optim.phases has start, size, zoom_share)",
        ),
    ],
)
def test_an_unknown_key_comes_with_the_known_ones(tmp_path: Path, before: str, after: str, message: str) -> None:
    """The message has every key of that place, and the most similar one."""
    text = recipe_text([Path("pairs.parquet")])
    assert before in text
    with pytest.raises(RecipeError, match=re.escape(message)):
        read_recipe(written(tmp_path, text.replace(before, after, 1)))


def test_the_digest_is_of_what_decides_the_weights(tmp_path: Path) -> None:
    """Workers and logging may change between a kill and its resumption; the learning rate may not."""
    files = [Path("pairs.parquet")]
    first = digest(read_recipe(written(tmp_path, recipe_text(files))))

    assert first == digest(read_recipe(written(tmp_path, recipe_text(files, workers="2", checkpoint_every="9"))))
    assert first != digest(read_recipe(written(tmp_path, recipe_text(files, lr="1e-3"))))
