import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr, ValidationError

from service.classification.embedder import Embedder, EmbedQuery
from service.classification.types import Classification, LabelQuery, ScoringOptions
from service.settings import Settings
from tests.support.classifying import Rig, classifying, picture, until
from tests.support.redis_server import running_redis

LOOKUPS = "anyclass_image_cache_lookups_total"


def images_run(rig: Rig) -> int:
    """Return the number of images that the encoder has run."""
    return sum(shape[0] for kind, shape in rig.engine.batches if kind == "image")


async def test_a_picture_that_was_seen_before_is_not_computed_again(tmp_path: Path) -> None:
    """New labels get the same cosines as they do alone; other bytes of the same pixels are another picture."""
    async with classifying(tmp_path / "b", image_cache="memory") as rig:
        first = await rig.classify("a", "b", method="cosine")
        again = await rig.classify("b", "c", method="cosine")
        assert 1 == images_run(rig)
        assert {p.label: p.score for p in first.predictions}["b"] == {p.label: p.score for p in again.predictions}["b"]
        assert (1, 1) == tuple(rig.count(LOOKUPS, layer="memory", result=each) for each in ("hit", "miss"))
        assert rig.count("anyclass_image_cache_saved_seconds_total", model="tiny") > 0
        assert 2 == rig.count("anyclass_images_total", model="tiny", outcome="ok")
        await rig.classify("a", image=picture("red", 9))
        assert 2 == images_run(rig)


async def test_by_default_nothing_is_kept(tmp_path: Path) -> None:
    """Nor is anything looked up."""
    async with classifying(tmp_path / "b") as rig:
        await rig.classify("a")
        await rig.classify("a")
        assert 2 == images_run(rig)
        assert 0 == sum(rig.count(LOOKUPS, layer="memory", result=each) for each in ("hit", "miss"))


async def test_every_way_of_asking_shares_the_vectors(tmp_path: Path) -> None:
    """Batches and embeddings find what a classification has kept, and the other way round."""
    red, green, blue = (picture(colour) for colour in ("red", "green", "blue"))
    async with classifying(tmp_path / "b", image_cache="memory") as rig:
        await rig.classify("a", image=red)
        query, options = LabelQuery(("a", "b"), "none"), ScoringOptions()
        async for _, answer in rig.classifier.classify_many([red, green], query, options):
            assert isinstance(answer, Classification)
        done = await Embedder(rig.pipeline, Settings()).embed(EmbedQuery([green, red, blue]))
        alone = await Embedder(rig.pipeline, Settings()).embed(EmbedQuery([blue]), background=True)
        assert 3 == images_run(rig)
        np.testing.assert_array_equal(done.images[2], alone.images[0])


async def test_only_the_most_recently_used_are_kept(tmp_path: Path) -> None:
    """The setting limits how many."""
    async with classifying(tmp_path / "b", image_cache="memory", image_cache_max_entries=1) as rig:
        for colour in ("red", "green", "green", "red"):
            await rig.classify("a", image=picture(colour))
        assert 3 == images_run(rig)


async def test_a_known_picture_is_answered_while_the_device_is_busy(tmp_path: Path) -> None:
    """It takes no place in the queue."""
    async with classifying(tmp_path / "b", image_cache="memory") as rig:
        await rig.classify("a")
        rig.engine.gate.clear()
        held = asyncio.ensure_future(rig.classify("a", image=picture("green")))
        await until(lambda: images_run(rig) == 2)
        assert isinstance(await rig.classify("a"), Classification)
        assert not held.done()
        rig.engine.gate.set()
        await held


async def test_processes_share_them_through_redis_and_go_on_without_it(tmp_path: Path) -> None:
    """What decides the pixels is part of the key; a Redis that has gone is a miss."""
    with running_redis(tmp_path) as server:
        settings: dict[str, Any] = {
            "image_cache": "redis",
            "redis_url": SecretStr(server.url),
            "redis_timeout_ms": 2_000,
        }
        async with classifying(tmp_path / "b", **settings) as rig:
            await rig.classify("a")
        async with classifying(tmp_path / "b", **settings) as rig:
            await rig.classify("a")
            assert 0 == images_run(rig)
            assert 1 == rig.count(LOOKUPS, layer="redis", result="hit")
        async with classifying(tmp_path / "b", preprocessing="fast", **settings) as rig:
            await rig.classify("a")
            assert 1 == images_run(rig)
    async with classifying(tmp_path / "b", **settings) as rig:
        await rig.classify("a")
        await rig.classify("a")
        assert 1 == images_run(rig)


def test_redis_needs_an_address() -> None:
    """The start says so, in place of keeping nothing."""
    with pytest.raises(ValidationError, match="redis needs ANYCLASS_REDIS_URL"):
        Settings(image_cache="redis")
