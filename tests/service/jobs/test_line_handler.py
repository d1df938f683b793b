from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.classification.embedder import Embedder, EmbedQuery
from service.classification.types import LabelQuery, ScoringOptions
from service.errors import InvalidImage, UnknownModel
from service.lanes import Lane
from service.settings import Settings
from tests.support.classifying import Rig, classifying, picture

QUERY = LabelQuery(("a", "b"), "none")
OPTIONS = ScoringOptions()


@contextmanager
def noted_lanes(rig: Rig) -> Iterator[set[Lane]]:
    """Collect the lanes of all work submitted in the block."""
    batcher = rig.registry.get(None)._batcher
    submit, lanes = batcher.submit, set[Lane]()

    async def noted(*arguments: Any, **options: Any) -> Any:
        lanes.add(options.get("lane", Lane.INTERACTIVE))
        return await submit(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batcher, "submit", noted)
        yield lanes


async def test_a_line_goes_in_the_background_lane(tmp_path: Path) -> None:
    """Its labels do too, and its answer equals that of a request."""
    async with classifying(tmp_path) as rig:
        with noted_lanes(rig) as lanes:
            line = await rig.classifier.classify_in_background(picture("blue"), QUERY, OPTIONS)
        assert {Lane.BACKGROUND} == lanes
        alone = await rig.classify("a", "b", image=picture("blue"))
    assert alone.predictions == line.predictions


async def test_what_is_wrong_with_a_line_is_raised(tmp_path: Path) -> None:
    """The errors are those of a request."""
    async with classifying(tmp_path) as rig:
        with pytest.raises(InvalidImage):
            await rig.classifier.classify_in_background(picture("red")[:-30], QUERY, OPTIONS)
        with pytest.raises(UnknownModel):
            await rig.classifier.classify_in_background(picture("red"), QUERY, OPTIONS, model="other")


async def test_a_line_of_embeddings_goes_in_the_background_lane(tmp_path: Path) -> None:
    """Its texts do too, and its vectors equal those of a request."""
    query = EmbedQuery([picture("red")], ["a text"])
    async with classifying(tmp_path) as rig:
        embedder = Embedder(rig.pipeline, Settings())
        with noted_lanes(rig) as lanes:
            line = await embedder.embed(query, background=True)
        assert {Lane.BACKGROUND} == lanes
        alone = await embedder.embed(query)
    np.testing.assert_array_equal(alone.images, line.images)
    np.testing.assert_array_equal(alone.texts, line.texts)
