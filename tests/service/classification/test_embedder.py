import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.classification.embedder import Embedded, Embedder, EmbedQuery, scores_of
from service.errors import (
    InvalidImage,
    InvalidRequest,
    InvalidScoring,
    InvalidTemplates,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    PromptTooLong,
    UnknownModel,
    UnsupportedImageFormat,
)
from service.settings import Settings
from tests.support.classifying import Rig, classifying, picture, until

RED, GREEN = picture("red"), picture("green")


def embedder(rig: Rig, **settings: Any) -> Embedder:
    """Return an embedder on the rig's pipeline."""
    return Embedder(rig.pipeline, Settings(**settings))


async def test_images_and_texts_in_their_order(tmp_path: Path) -> None:
    """Each input has its own vector; texts that are the same once normalised are computed once."""
    async with classifying(tmp_path / "b") as rig:
        done = await embedder(rig).embed(EmbedQuery([RED, GREEN, RED], ["b", "a", "b ", "b"]))
        assert [(3, rig.engine.dim), (4, rig.engine.dim)] == [done.images.shape, done.texts.shape]
        np.testing.assert_array_equal(done.images[0], done.images[2])
        np.testing.assert_array_equal(done.texts[[0, 0]], done.texts[[2, 3]])
        assert not np.array_equal(done.images[0], done.images[1])
        assert not np.array_equal(done.texts[0], done.texts[1])
        assert 2 == len(rig.engine.texts)
        # start and end, and one token for the letter
        assert 4 * 3 == done.tokens


async def test_texts_alone_and_images_alone(tmp_path: Path) -> None:
    """What is not asked for costs nothing and is an empty matrix."""
    async with classifying(tmp_path / "b") as rig:
        texts = await embedder(rig).embed(EmbedQuery(texts=["a"]))
        images = await embedder(rig).embed(EmbedQuery([RED]))
        assert [(0, 16), (1, 16)] == [texts.images.shape, texts.texts.shape]
        assert [(1, 16), (0, 16)] == [images.images.shape, images.texts.shape]
        assert ["text", "image"] == [kind for kind, _ in rig.engine.batches]


async def test_vectors_are_shared_with_classification(tmp_path: Path) -> None:
    """A label that was classified with needs no text encoder, and its scores are those of the classification."""
    async with classifying(tmp_path / "b") as rig:
        answer = await rig.classify("a", "b")
        done = await embedder(rig).embed(EmbedQuery([RED], ["a", "b"]))
        assert 2 == len(rig.engine.texts)
        scores = dict(zip(("a", "b"), scores_of(done)[0].tolist(), strict=True))
        assert scores == pytest.approx({each.label: each.score for each in answer.predictions}, abs=1e-6)


async def test_templates_are_filled_and_counted(tmp_path: Path) -> None:
    """A text in templates is a class vector; its tokens are those of all its prompts."""
    async with classifying(tmp_path / "b") as rig:
        plain = await embedder(rig).embed(EmbedQuery(texts=["a"]))
        filled = await embedder(rig).embed(EmbedQuery(texts=["a"], templates=("{}", "a photo of a {}.")))
        named = await embedder(rig).embed(EmbedQuery(texts=["a"], templates="none"))
        np.testing.assert_array_equal(plain.texts, named.texts)
        assert not np.array_equal(plain.texts, filled.texts)
        assert filled.tokens > 2 * plain.tokens
        with pytest.raises(InvalidTemplates):
            await embedder(rig).embed(EmbedQuery(texts=["a"], templates=("no gap",)))


async def test_many_images_go_in_the_background(tmp_path: Path) -> None:
    """A single image that comes later is not kept waiting by a large request; the large one is answered whole."""
    async with classifying(tmp_path / "b", max_batch=2, max_waiting=50) as rig:
        rig.engine.gate.clear()
        large = asyncio.create_task(embedder(rig).embed(EmbedQuery([RED] * 12)))
        await until(lambda: len(rig.engine.batches) == 1)
        single = asyncio.create_task(embedder(rig).embed(EmbedQuery([GREEN])))
        await until(
            lambda: rig.count("anyclass_stage_seconds_count", model="tiny", stage="decode") == 4 + 1
        )  # four decoded ahead
        order: list[str] = []
        large.add_done_callback(lambda _: order.append("large"))
        single.add_done_callback(lambda _: order.append("single"))
        rig.engine.gate.set()
        assert (12, 16) == (await large).images.shape
        await single
        assert ["single", "large"] == order
        assert 13 == rig.count("anyclass_images_total", model="tiny", outcome="ok")


async def test_a_request_is_admitted_whole_and_before_decoding(tmp_path: Path) -> None:
    """What does not fit is refused at once, though it could not even be decoded, and the room is given back."""
    async with classifying(tmp_path / "b", max_batch=8, max_waiting=4) as rig:
        rig.engine.gate.clear()
        first = asyncio.create_task(embedder(rig).embed(EmbedQuery([RED])))
        await until(lambda: len(rig.engine.batches) == 1)
        second = asyncio.create_task(embedder(rig).embed(EmbedQuery([RED] * 3)))
        await until(lambda: rig.registry.get().images.occupied == 3)
        with pytest.raises(Overloaded):
            await embedder(rig).embed(EmbedQuery([b"no image"] * 2))
        assert 3 == rig.registry.get().images.occupied
        rig.engine.gate.set()
        await asyncio.gather(first, second)
        assert 0 == rig.registry.get().images.occupied


async def test_one_that_goes_away_gives_its_room_back(tmp_path: Path) -> None:
    """A cancelled request leaves nothing behind in the queue."""
    async with classifying(tmp_path / "b", max_batch=1) as rig:
        rig.engine.gate.clear()
        first = asyncio.create_task(embedder(rig).embed(EmbedQuery([RED])))
        await until(lambda: len(rig.engine.batches) == 1)
        second = asyncio.create_task(embedder(rig).embed(EmbedQuery([RED] * 5)))
        await until(lambda: rig.registry.get().images.occupied > 0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert 0 == rig.registry.get().images.occupied
        rig.engine.gate.set()
        await first


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        (EmbedQuery(texts=["a", " "]), InvalidRequest, "Text 1 is empty"),
        (EmbedQuery(texts=["a", "a", "x" * 1001]), InvalidRequest, "Text 2 has 1001 characters"),
        (EmbedQuery(texts=["b", "b", "a " * 100]), PromptTooLong, "Text 2 has more tokens than this model reads, 64"),
        (EmbedQuery([RED, b"%!PS"]), UnsupportedImageFormat, "Image 1: "),
        (EmbedQuery([RED[:45]]), InvalidImage, "Image 0: "),
        (EmbedQuery([RED] * 257), PayloadTooLarge, "257 images; 256"),
        (EmbedQuery(texts=["a"] * 2_049), PayloadTooLarge, "2049 texts; 2048"),
    ],
)
async def test_inputs_that_cannot_be_embedded(
    tmp_path: Path, query: EmbedQuery, error: type[Exception], words: str
) -> None:
    """The error says which of the inputs it is, counted as the client sent them."""
    async with classifying(tmp_path / "b") as rig:
        with pytest.raises(error, match=words):
            await embedder(rig).embed(query)


async def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    """It is refused before any work."""
    async with classifying(tmp_path / "b") as rig:
        with pytest.raises(UnknownModel):
            await embedder(rig).embed(EmbedQuery([RED]), model="other")
        assert [] == rig.engine.batches


async def test_closing_waits_for_vectors_too(tmp_path: Path) -> None:
    """An accepted request is answered; a later one is refused."""
    async with classifying(tmp_path / "b") as rig:
        rig.engine.gate.clear()
        accepted = asyncio.create_task(embedder(rig).embed(EmbedQuery([RED])))
        await until(lambda: len(rig.engine.batches) == 1)
        closing = asyncio.create_task(rig.classifier.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        with pytest.raises(NotReady):
            await embedder(rig).embed(EmbedQuery([RED]))
        rig.engine.gate.set()
        assert isinstance(await accepted, Embedded)
        await closing


async def test_scores_are_checked(tmp_path: Path) -> None:
    """A model without a bias does not score by sigmoid."""
    async with classifying(tmp_path / "b") as rig:
        done = await embedder(rig).embed(EmbedQuery([RED], ["a"]))
        with pytest.raises(InvalidScoring):
            scores_of(done, "sigmoid")


async def test_scoring_is_checked_before_any_work(tmp_path: Path) -> None:
    """A request that could not be scored reaches no encoder."""
    async with classifying(tmp_path / "b") as rig:
        with pytest.raises(InvalidScoring):
            await embedder(rig).embed(EmbedQuery([RED], ["a"], method="sigmoid"))
        assert [] == rig.engine.batches
