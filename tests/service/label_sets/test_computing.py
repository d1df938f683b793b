import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import (
    LabelSetComputing,
    LabelSetFailed,
    PromptTooLong,
    UnknownLabelSet,
)
from service.label_sets.storage import BLOCK
from service.state.protocol import StateStore
from tests.support.classifying import until
from tests.support.label_set_parts import many, ready, replica


async def test_a_label_is_the_mean_of_its_descriptions(tmp_path: Path) -> None:
    """The mean over descriptions × templates is normalised; two labels may share a description."""
    templates = ["a {}.", "the {}"]
    async with replica(tmp_path) as one:
        await one.put("s", "cat", "dog", "pup", templates=templates, cat=["tabby", "house cat", "kitten"], pup=["dog"])
        found = await one.sets.resolve("s", one.model)
        prompts = [template.replace("{}", text) for text in ("tabby", "house cat", "kitten") for template in templates]
        embeddings = one.engine.encode_texts(one.model.tokenizer.pad(one.model.tokenizer.tokenize(prompts)))
    mean = embeddings.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(found.vectors[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(found.vectors[1], found.vectors[2])
    assert ("cat", "dog", "pup") == found.labels
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)


async def test_a_large_set_is_computed_in_the_background(tmp_path: Path) -> None:
    """The status shows its progress; until it is ready, requests get a time to retry."""
    labels = many(2 * BLOCK + 100)
    async with replica(tmp_path, label_set_inline_prompts=50) as one:
        one.engine.gate.clear()
        status = await one.put("large", *labels)
        assert ("computing", 0, len(labels)) == (status.state, status.models[0].done, status.models[0].total)
        assert status.retry_after_s is not None
        with pytest.raises(LabelSetComputing) as caught:
            await one.classify("large")
        assert 1 <= caught.value.retry_after_s <= 60
        small = asyncio.create_task(one.put("small", "a", "b"))
        one.engine.gate.set()
        await small
        await ready(one, "large")
        answer = await one.classify("large")
        assert len(labels) == answer.labels
        np.testing.assert_array_equal(
            (await one.sets.resolve("large", one.model)).vectors,
            (await one.pipeline.label_vectors.matrix(one.model, labels, ("{}",))).vectors,
        )
    assert len(set(one.engine.texts)) == len(one.engine.texts)


async def test_a_restart_goes_on_where_the_process_ended(tmp_path: Path) -> None:
    """Blocks that were computed before the restart are not computed again."""
    labels = many(4 * BLOCK)
    async with replica(tmp_path, label_set_inline_prompts=0) as one:
        stop_after = BLOCK + BLOCK // 2

        def hold(kind: str, batch: Any) -> None:
            if len(one.engine.texts) > stop_after:
                one.engine.gate.clear()

        one.engine.before = hold
        await one.put("large", *labels)
        await until(lambda: not one.engine.gate.is_set())
        assert await one.state("large") == "computing"
        closing = asyncio.create_task(one.sets.close())
        one.engine.before = None
        one.engine.gate.set()
        await closing
    async with replica(tmp_path, label_set_inline_prompts=0) as two:
        await until(lambda: len(two.engine.texts) >= 3 * BLOCK)
        await ready(two, "large")
        assert 3 * BLOCK == len(two.engine.texts)
        assert len(labels) == (await two.classify("large")).labels


async def test_replicas_share_the_work(tmp_path: Path, shared: StateStore) -> None:
    """Two replicas compute few blocks twice, and their blocks form one set."""
    labels = many(12 * BLOCK)
    options: dict[str, Any] = {"label_set_inline_prompts": 0, "max_batch": 128}
    async with replica(tmp_path, shared, **options) as one, replica(tmp_path, shared, **options) as two:
        for each in (one, two):
            each.engine.delay_s = 0.003
        await one.put("large", *labels)
        assert await two.state("large") == "computing"
        await ready(two, "large")
        assert len(labels) == (await one.classify("large")).labels == (await two.classify("large")).labels
        shares = [len(each.engine.texts) for each in (one, two)]
    assert min(shares) >= BLOCK
    assert sum(shares) < 2 * len(labels)


async def test_each_numerics_has_its_own_vectors(tmp_path: Path, shared: StateStore) -> None:
    """A replica on another device computes its own vectors on first use; the others' stay."""
    async with replica(tmp_path, shared) as one, replica(tmp_path, shared, precision="fp16", start=False) as two:
        await one.put("s", "a", "b")
        assert (await one.classify("s")).labels == (await two.classify("s")).labels
        assert 2 == len(one.engine.texts) == len(two.engine.texts)
        await one.put("t", *many(30))
        async with replica(tmp_path, shared, precision="int8", label_set_inline_prompts=1) as three:
            with pytest.raises(LabelSetComputing):
                await three.classify("t")
            await ready(three, "t")
            assert 30 == (await three.classify("t")).labels


async def test_a_label_that_is_too_long(tmp_path: Path) -> None:
    """A small set with such a label is refused; a large one fails with the reason, until it is written again."""
    long = "word " * 100
    async with replica(tmp_path, label_set_inline_prompts=100) as one:
        with pytest.raises(PromptTooLong, match="Label 1 "):
            await one.put("s", "a", long)
        with pytest.raises(PromptTooLong, match="Label 1 "):
            await one.put("s", "a", "b", b=["fine", long])
        with pytest.raises(UnknownLabelSet):
            await one.sets.status("s")
        labels = [*many(BLOCK + 5), long, "b"]
        await one.put("s", *labels)

        async def failed() -> bool:
            return await one.state("s") == "failed"

        await until(failed)
        status = await one.sets.status("s")
        assert f"Label {BLOCK + 5} " in str(status.models[0].reason)
        assert status.retry_after_s is None
        with pytest.raises(LabelSetFailed, match=f"Label {BLOCK + 5} "):
            await one.classify("s")
        again, _ = await one.sets.put("s", one.definition(*labels))
        assert "computing" == again.state
        await one.put("s", "short")
        assert 1 == (await one.classify("s")).labels


@pytest.mark.parametrize("described", [False, True])
async def test_a_label_is_counted_over_the_whole_set(tmp_path: Path, described: bool) -> None:
    """The index in the error counts all labels, although many templates split the set into small parts."""
    templates = [f"{{}} {number}" for number in range(50)]
    labels = many(200)
    descriptions = {label: [label, f"the {label}"] for label in labels[100:]} if described else {}
    if described:
        descriptions[labels[170]] = ["fine", "word " * 100]
    else:
        labels[170] = "word " * 100
    async with replica(tmp_path, label_set_inline_prompts=100_000) as one:
        with pytest.raises(PromptTooLong, match="Label 170 ") as caught:
            await one.sets.put("s", one.definition(*labels, templates=templates, **descriptions))
        assert 170 == caught.value.index


async def test_a_driver_that_stumbles_does_not_lose_a_large_set(tmp_path: Path) -> None:
    """A device batch that fails once is retried."""
    async with replica(tmp_path, label_set_inline_prompts=0) as one:
        failures = [1]

        def fail(kind: str, batch: Any) -> None:
            if failures:
                failures.pop()
                raise RuntimeError("driver trouble")

        one.engine.before = fail
        await one.put("s", "a", "b")
        await ready(one, "s")
        assert 2 == (await one.classify("s")).labels
