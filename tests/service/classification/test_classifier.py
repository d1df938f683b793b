import asyncio
import math
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from service.classification.types import Classification, LabelQuery, ScoringOptions, Timings
from service.errors import (
    AnyclassError,
    DeadlineExceeded,
    InferenceFailed,
    InvalidImage,
    InvalidLabels,
    InvalidScoring,
    InvalidTemplates,
    NonFiniteOutput,
    NotReady,
    Overloaded,
    PromptTooLong,
    TooManyLabels,
    UnknownModel,
    UnsupportedImageFormat,
)
from service.lanes import Lane
from service.model.manifest import SigmoidScoring
from service.model.tokenizer import Tokenizer
from tests.support.classifying import Rig, classifying, picture, tiny_engine, until
from tests.support.redis_server import running_redis


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A classifier on a fake engine, four to a batch."""
    async with classifying(tmp_path / "bundle", max_batch=4, max_waiting=8) as rig:
        yield rig


def waiting(rig: Rig, kind: str) -> float:
    """Return how many images, or texts, wait for the device; those on it do not."""
    return rig.count("anyclass_waiting", model="tiny", kind=kind)


def at_device(rig: Rig, kind: str) -> int:
    """Return how many images, or texts, wait for the device or are on it."""
    batcher = rig.registry.get()._batcher
    entries = [*batcher._waiting, *(entry for batch in batcher._at_work for entry in batch.entries)]
    return sum(entry.size for entry in entries if entry.group.kind == kind)


def run_on(rig: Rig, kind: str) -> list[int]:
    """Return the sizes of the batches of one kind that have begun."""
    return [shape[0] for each, shape in rig.engine.batches if each == kind]


async def gone(task: "asyncio.Task[Any]") -> None:
    """Cancel a request, and wait for its end."""
    task.cancel()
    await asyncio.wait([task])


def computed(rig: Rig) -> Counter[tuple[int, ...]]:
    """How often each text was computed."""
    return Counter(rig.engine.texts)


async def test_a_red_picture_is_red(tmp_path: Path) -> None:
    """With real encoders, the client's spelling, and everything an answer says."""
    engine = await asyncio.to_thread(tiny_engine, tmp_path / "engine")
    async with classifying(tmp_path / "bundle", engine=engine) as rig:
        answer = await rig.classify(" green", "Red ", "blue", templates="default")
    assert answer.predictions[0].label == "Red "
    assert math.isclose(sum(prediction.score for prediction in answer.predictions), 1, abs_tol=1e-6)
    assert (answer.model, answer.labels, answer.labels_cached) == ("tiny", 3, 0)
    assert answer.revision == rig.registry.describe()[0].revision


async def test_invisible_characters_make_no_other_text(rig: Rig) -> None:
    """The vector is found under the key of the visible label, and the answer has the client's spelling."""
    await rig.classify("cat", "blackbird")
    answer = await rig.classify("\ufeffcat", "black\u00adbird")
    assert (2, 2) == (answer.labels, answer.labels_cached)
    assert {"\ufeffcat", "black\u00adbird"} == {each.label for each in answer.predictions}


async def test_known_labels_are_not_tokenised_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings that depend on tokens are kept with the matrix of the list."""
    first = await rig.classify("red", "RED")
    tokenised: list[object] = []
    monkeypatch.setattr(Tokenizer, "pieces", lambda *arguments: tokenised.append(arguments))
    again = await rig.classify("red", "RED")
    assert first.warnings == again.warnings
    assert ["labels_equal_to_model"] == [each.code for each in again.warnings]
    assert [] == tokenised


async def test_what_was_computed_before_is_cached(rig: Rig) -> None:
    """The same set, a part of it in another order, and one label more."""
    counts = []
    for labels in (["a", "b", "c"], ["a", "b", "c"], ["c", "a"], ["b", "d"], ["A"]):
        answer = await rig.classify(*labels)
        counts.append((answer.labels, answer.labels_cached))
    assert counts == [(3, 0), (3, 3), (2, 2), (2, 1), (1, 0)]


async def test_vectors_do_not_depend_on_what_was_cached(rig: Rig) -> None:
    """Scores are the same from the encoder, the matrix cache, and single vectors."""
    first = await rig.classify("a", "bb", "ccc", method="cosine", templates=("x {}", "the {}."))
    again = await rig.classify("a", "bb", "ccc", method="cosine", templates=("x {}", "the {}."))
    turned = await rig.classify("ccc", "bb", "a", method="cosine", templates=("x {}", "the {}."))
    assert first.predictions == again.predictions == turned.predictions


async def test_each_missing_label_is_computed_once_however_many_want_it(rig: Rig) -> None:
    """Forty overlapping requests at once."""
    sets = [[f"label {number % 30}" for number in range(start, start + 10)] for start in range(40)]
    answers = await asyncio.gather(*(rig.classify(*labels, image=picture()) for labels in sets[:8]))
    more = await asyncio.gather(*(rig.classify(*labels) for labels in sets[8:16]), return_exceptions=True)
    assert all(isinstance(answer, Classification) for answer in [*answers, *more])
    assert set(computed(rig).values()) == {1}
    assert rig.count("anyclass_labels_computed_total", model="tiny") == len(computed(rig))


async def test_a_request_that_goes_away_takes_nothing_from_the_others(rig: Rig) -> None:
    """The one that began a computation is cancelled; the one that joined it is answered from it."""
    rig.engine.gate.clear()
    first = asyncio.create_task(rig.classify("a", "b"))
    await until(lambda: len(rig.engine.batches) > 0)
    second = asyncio.create_task(rig.classify("b", "c"))
    await until(lambda: at_device(rig, "text") == 3)
    await gone(first)
    rig.engine.gate.set()
    assert (await second).labels == 2
    assert first.cancelled()
    assert set(computed(rig).values()) == {1}


async def test_work_that_nobody_waits_for_is_dropped(rig: Rig) -> None:
    """A big label set whose only request goes away stops after what is on the device."""
    rig.engine.gate.clear()
    big = asyncio.create_task(rig.classify(*(f"label {number}" for number in range(1_000))))
    await until(lambda: at_device(rig, "text") > 0)
    assert rig.registry.get().texts[Lane.BACKGROUND].occupied == 1_000
    await gone(big)
    await until(lambda: waiting(rig, "text") == 0)
    rig.engine.gate.set()
    await rig.classify("another")
    assert len(rig.engine.texts) < 20
    assert rig.registry.get().texts[Lane.BACKGROUND].occupied == 0


async def test_a_failure_reaches_every_waiter_and_is_not_cached(rig: Rig) -> None:
    """All requests that wait for a label get its failure; the next request computes it again."""

    def fail(kind: str, batch: Any) -> None:
        if kind == "text":
            raise RuntimeError("driver trouble")

    rig.engine.before = fail
    answers = await asyncio.gather(*(rig.classify("a", "b") for _ in range(5)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [InferenceFailed] * 5
    rig.engine.before = None
    assert (await rig.classify("a", "b")).labels_cached == 0


async def test_an_answer_that_is_not_finite_is_never_cached(rig: Rig) -> None:
    """A text encoder that gives NaN: NonFiniteOutput each time, counted, and nothing is kept."""

    def fail(kind: str, batch: Any) -> None:
        if kind == "text":
            raise NonFiniteOutput("The model's answer is not finite.")

    rig.engine.before = fail
    for _ in range(2):
        with pytest.raises(NonFiniteOutput):
            await rig.classify("a")
    assert rig.count("anyclass_text_cache_lookups_total", layer="memory", result="hit") == 0
    assert rig.count("anyclass_inference_failures_total", model="tiny", kind="text", reason="non-finite") == 2


async def test_a_label_that_is_too_long_fails_its_own_request_only(rig: Rig) -> None:
    """Another request that waits for a good label of the same computation gets it."""
    rig.engine.gate.clear()
    long = "word " * 100
    bad = asyncio.create_task(rig.classify("good", long))
    good = asyncio.create_task(rig.classify("good", "fine"))
    await until(lambda: at_device(rig, "text") == 2)
    rig.engine.gate.set()
    with pytest.raises(PromptTooLong, match="Label 1 ") as caught:
        await bad
    assert caught.value.index == 1
    assert (await good).labels == 2
    assert set(computed(rig).values()) == {1}


@pytest.mark.parametrize(
    ("error", "request_"),
    [
        (InvalidLabels, {"labels": []}),
        (InvalidLabels, {"labels": ["a", " a "]}),
        (TooManyLabels, {"labels": [str(number) for number in range(10_001)]}),
        (InvalidTemplates, {"labels": ["a"], "templates": "unknown"}),
        (InvalidTemplates, {"labels": ["a"], "templates": ("no place",)}),
        (InvalidScoring, {"labels": ["a"], "method": "sigmoid"}),
        (InvalidScoring, {"labels": ["a"], "temperature": 0.0}),
        (InvalidScoring, {"labels": ["a"], "top_k": 0}),
        (InvalidScoring, {"labels": ["a"], "min_score": math.nan}),
        (UnknownModel, {"labels": ["a"], "model": "other"}),
        (UnsupportedImageFormat, {"labels": ["a"]}),
    ],
)
async def test_what_costs_nothing_is_checked_first(
    rig: Rig, error: type[AnyclassError], request_: dict[str, Any]
) -> None:
    """The image, no image at all, is only looked at where everything else is in order; nothing reaches the device."""
    labels = request_.pop("labels")
    with pytest.raises(error):
        await rig.classify(*labels, image=b"no image", **request_)
    await rig.registry.close()  # runs all that waits for the device
    assert error is UnsupportedImageFormat or rig.engine.batches == []
    assert rig.count("anyclass_images_total", model="tiny", outcome=error.__name__) == (error is not UnknownModel)


async def test_a_bad_image_ends_the_computation_of_its_labels(rig: Rig) -> None:
    """Where one half fails the other is cancelled, not finished for nothing."""
    rig.engine.gate.clear()
    with pytest.raises(InvalidImage):
        await rig.classify(*(f"label {number}" for number in range(500)), image=picture()[:50])
    rig.engine.gate.set()
    await until(lambda: waiting(rig, "text") == 0)
    assert len(rig.engine.texts) < 100


async def test_scoring_options(tmp_path: Path) -> None:
    """Sigmoid is the default of a model with a bias; `top_k` and `min_score` shorten the answer."""
    scoring = SigmoidScoring(logit_scale=10.0, logit_bias=-1.0)
    async with classifying(tmp_path / "bundle", bundle={"scoring": scoring}) as rig:
        everything = await rig.classify("a", "b", "c", method="cosine")
        scores = [prediction.score for prediction in everything.predictions]
        assert scores == sorted(scores, reverse=True)
        default = await rig.classify("a", "b", "c")
        expected = [1 / (1 + math.exp(1 - 10 * score)) for score in scores]
        assert [prediction.score for prediction in default.predictions] == pytest.approx(expected, abs=1e-5)
        assert (await rig.classify("a", "b", "c", method="cosine", top_k=1)).predictions == everything.predictions[:1]
        assert (await rig.classify("a", "b", "c", method="cosine", min_score=scores[1])).predictions == (
            everything.predictions[:2]
        )


async def test_concurrent_requests_share_image_batches(rig: Rig) -> None:
    """Inference runs in one thread, which is not the event loop's."""
    await rig.classify("a")
    rig.engine.gate.clear()
    requests = [asyncio.create_task(rig.classify("a", image=picture(colour))) for colour in ("red", "blue") * 4]
    await until(lambda: at_device(rig, "image") == 8)
    rig.engine.gate.set()
    await asyncio.gather(*requests)
    sizes = [shape[0] for kind, shape in rig.engine.batches if kind == "image"]
    assert sum(sizes) == 9
    assert 4 in sizes
    assert max(sizes) == 4
    assert len(rig.engine.threads) == 1
    assert threading.current_thread().name not in rig.engine.threads


async def test_too_much_waiting_is_refused_at_once(rig: Rig) -> None:
    """The error estimates when to retry; accepted requests are answered and free their capacity."""
    await rig.classify("a")
    rig.engine.gate.clear()
    images = rig.registry.get().images
    accepted = [asyncio.create_task(rig.classify("a")) for _ in range(8)]
    # The batch on the device and the one that follows it free their places; after them the device takes no more.
    await until(lambda: at_device(rig, "image") == 8 and len(rig.registry.get()._batcher._at_work) == 2)
    accepted += [asyncio.create_task(rig.classify("a")) for _ in range(8 - images.occupied)]
    await until(lambda: images.occupied == 8)
    with pytest.raises(Overloaded) as caught:  # at once: the gate is closed, so no place becomes free
        await rig.classify("a", image=b"not even looked at")
    with pytest.raises(Overloaded):
        rig.classifier.check_admission()
    assert 1 <= caught.value.retry_after_s <= 60
    rig.engine.gate.set()
    assert len(await asyncio.gather(*accepted)) == len(accepted)
    await rig.classify("a")
    assert rig.registry.get().images.occupied == 0


async def test_too_many_new_texts_are_refused(tmp_path: Path) -> None:
    """One big request is let in where nothing else waits; the next is refused, a small one is not."""
    async with classifying(tmp_path / "bundle", max_batch=4, max_waiting_texts=50) as rig:
        rig.engine.gate.clear()
        big = asyncio.create_task(rig.classify(*(f"first {number}" for number in range(200))))
        await until(lambda: rig.registry.get().texts[Lane.BACKGROUND].occupied == 200)
        with pytest.raises(Overloaded):
            await rig.classify(*(f"second {number}" for number in range(200)))
        small = asyncio.create_task(rig.classify("small"))
        await until(lambda: rig.registry.get().texts[Lane.INTERACTIVE].occupied == 1)
        rig.engine.gate.set()
        assert [answer.labels for answer in await asyncio.gather(big, small)] == [200, 1]


async def test_thousands_of_new_labels_do_not_hold_up_images(tmp_path: Path) -> None:
    """While they are computed, batch by batch, others are answered; texts go to the device sorted by length."""
    async with classifying(tmp_path / "bundle", max_batch=32, max_batch_texts=32, request_timeout_s=100) as rig:
        await rig.classify("known")
        rig.engine.delay_s = 0.002
        big = asyncio.create_task(rig.classify(*(f"{'x' * (number % 7)} {number}" for number in range(3_000))))
        await until(lambda: len(rig.engine.batches) > 10)
        for _ in range(5):
            before = len(rig.engine.batches)
            await rig.classify("known")
            assert len(rig.engine.batches) - before <= 6
        assert not big.done()
        assert (await big).labels == 3_000
    shapes = [shape for kind, shape in rig.engine.batches if kind == "text"]
    assert max(shape[0] for shape in shapes) == 32
    assert len({shape[1] for shape in shapes}) > 3
    assert set(computed(rig).values()) == {1}


async def test_a_request_has_a_time_limit(tmp_path: Path) -> None:
    """The device hangs: DeadlineExceeded, and its room is free again."""
    async with classifying(tmp_path / "bundle", request_timeout_s=0.1) as rig:
        rig.engine.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await rig.classify("a")
        assert rig.registry.get().images.occupied == 0


async def test_timings_are_filled_in(rig: Rig) -> None:
    """Every stage took some time, and is in the metrics."""
    timings = Timings()
    rig.engine.delay_s = 0.002
    await rig.classify("a", timings=timings)
    assert min(timings.decode_s, timings.queue_s, timings.score_s) > 0
    assert min(timings.text_s, timings.image_s) >= 0.002
    for stage in ("decode", "queue", "text", "image", "score"):
        assert rig.count("anyclass_stage_seconds_count", model="tiny", stage=stage) == 1


async def test_closing_answers_what_was_accepted(tmp_path: Path) -> None:
    """And refuses what comes, in one request and in many."""
    async with classifying(tmp_path / "bundle") as rig:
        rig.engine.gate.clear()
        accepted = asyncio.create_task(rig.classify("a"))
        await until(lambda: rig.pipeline._active == 1)
        closing = asyncio.create_task(rig.classifier.close())
        await until(lambda: rig.pipeline._closing)
        with pytest.raises(NotReady):
            await rig.classify("a")
        with pytest.raises(NotReady):
            await anext(rig.classifier.classify_many([b""], LabelQuery(("a",)), ScoringOptions()))
        rig.engine.gate.set()
        await closing
        assert (await accepted).labels == 1


@pytest.mark.parametrize("trouble", ["kill", "freeze"])
async def test_redis_goes_away_in_the_middle_of_requests(tmp_path: Path, trouble: str) -> None:
    """Every request is answered while it is away; after its return its vectors are used again."""
    with running_redis(tmp_path) as redis:
        options: dict[str, Any] = {"redis_url": SecretStr(redis.url), "cache_max_entries": 1, "cache_matrices_mib": 0}
        async with classifying(tmp_path / "bundle", max_waiting=1_000, **options) as rig:
            rig.engine.delay_s = 0.001
            answered = 0

            def hits() -> float:
                return rig.count("anyclass_text_cache_lookups_total", layer="redis", result="hit")

            async def client(number: int) -> None:
                nonlocal answered
                while not done.is_set():
                    answer = await rig.classify(*(f"label {(number + index) % 20}" for index in range(5)))
                    assert len(answer.predictions) == 5
                    answered += 1

            done = asyncio.Event()
            clients = [asyncio.create_task(client(number)) for number in range(8)]
            await until(lambda: hits() > 20)
            getattr(redis, trouble)()
            during = answered
            await until(lambda: answered > during + 100)
            await asyncio.to_thread(redis.start if trouble == "kill" else redis.thaw)
            before = hits()
            await until(lambda: hits() > before)
            done.set()
            await asyncio.gather(*clients)
            assert rig.count("anyclass_text_cache_failures_total", operation="read", reason="skipped") > 0


async def test_vectors_in_redis_serve_a_fresh_process(tmp_path: Path) -> None:
    """A second classifier computes no text, and its scores are the same to the bit."""
    with running_redis(tmp_path) as redis:
        options: dict[str, Any] = {"redis_url": SecretStr(redis.url), "redis_timeout_ms": 2_000}
        labels = [f"label {number}" for number in range(1_500)]
        answers = []
        for _ in range(2):
            async with classifying(tmp_path / "bundle", **options) as rig:
                answers.append(await rig.classify(*labels))
        assert [answer.labels_cached for answer in answers] == [0, 1_500]
        assert answers[0].predictions == answers[1].predictions
        assert rig.engine.texts == []


async def test_wrong_vectors_in_redis_are_computed_again_and_replaced(tmp_path: Path) -> None:
    """A fresh process answers as before, and the next one finds right vectors."""
    with running_redis(tmp_path) as redis:
        options: dict[str, Any] = {"redis_url": SecretStr(redis.url), "redis_timeout_ms": 2_000}
        answers = []
        for poisoned in (False, True, False):
            if poisoned:
                keys = [line for line in redis.command("KEYS", "*").decode().split("\r\n") if line.startswith("any")]
                for key in keys:
                    redis.command("SETRANGE", key, "16", "\0" * 8)
            async with classifying(tmp_path / "bundle", **options) as rig:
                answers.append(await rig.classify("cat", "dog"))
                found = [
                    rig.count("anyclass_text_cache_lookups_total", layer="redis", result=result)
                    for result in ("hit", "invalid")
                ]
            assert found == [[0, 0], [0, 2], [2, 0]][len(answers) - 1]
        assert answers[0].predictions == answers[1].predictions == answers[2].predictions


async def many(rig: Rig, images: Any, *labels: str) -> list[Any]:
    """All answers of a batch request."""
    query = LabelQuery(labels or ("a", "b"), "none")
    return [answer async for answer in rig.classifier.classify_many(images, query, ScoringOptions())]


async def test_many_images_are_answered_in_order_each_for_itself(rig: Rig) -> None:
    """A bad one spoils none of its neighbours, from a list as from a stream."""
    images = [picture(("red", "blue")[number % 2]) for number in range(30)]
    images[7], images[20] = b"no image", picture()[:50]

    async def stream() -> AsyncIterator[bytes]:
        for image in images:
            yield image

    from_list, from_stream = await many(rig, images), await many(rig, stream())
    assert [index for index, _ in from_list] == list(range(30))
    assert [index for index, answer in from_list if isinstance(answer, AnyclassError)] == [7, 20]
    assert [type(answer) for _, answer in from_list] == [type(answer) for _, answer in from_stream]
    red, blue = from_list[0][1].predictions, from_list[1][1].predictions
    assert red != blue
    assert all(answer.predictions == (red, blue)[index % 2] for index, answer in from_list if index not in (7, 20))


async def test_many_images_take_bounded_memory(rig: Rig) -> None:
    """Only two batches are taken from the source before an answer is, however fast the source is."""
    taken = 0

    async def stream() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield picture()

    await rig.classify("a", "b")
    rig.engine.gate.clear()
    answers = asyncio.create_task(many(rig, stream()))
    # All that was taken is at the device: what takes more takes it before.
    await until(lambda: at_device(rig, "image") == 2 * 4)
    assert taken <= 2 * 4 + 1
    rig.engine.gate.set()
    assert len(await answers) == 100


async def test_answers_come_as_soon_as_they_are_known(rig: Rig) -> None:
    """A source that is slow to give the next image does not hold back the last answer."""
    more = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        yield picture()
        await more.wait()
        yield picture()

    answers = rig.classifier.classify_many(stream(), LabelQuery(("a",), "none"), ScoringOptions())
    async with asyncio.timeout(60):
        assert (await anext(answers))[0] == 0
    more.set()
    assert [index async for index, _ in answers] == [1]


async def test_stopping_early_drops_the_rest(rig: Rig) -> None:
    """Closing the iterator cancels what is under way; nothing is left waiting."""
    query = LabelQuery(("a",), "none")
    async with aclosing(rig.classifier.classify_many([picture()] * 50, query, ScoringOptions())) as answers:
        async for index, _ in answers:
            if index == 3:
                break
    await until(lambda: waiting(rig, "image") == 0)
    assert sum(run_on(rig, "image")) <= 3 + 1 + 2 * 4
    assert (await rig.classify("a")).labels == 1


async def test_a_batch_request_that_is_wrong_as_a_whole_is_refused_before_the_first_answer(rig: Rig) -> None:
    """So that it can still have a status of its own."""
    with pytest.raises(InvalidLabels):
        await many(rig, [picture()], "a", "a")


async def test_a_source_that_fails_ends_the_answers_with_its_error(rig: Rig) -> None:
    """What came before is still answered."""

    async def stream() -> AsyncIterator[bytes]:
        yield picture()
        raise ConnectionResetError

    answers = rig.classifier.classify_many(stream(), LabelQuery(("a",), "none"), ScoringOptions())
    assert (await anext(answers))[0] == 0
    with pytest.raises(ConnectionResetError):
        await anext(answers)


async def test_interactive_requests_overtake_batch_requests(rig: Rig) -> None:
    """They wait for the batch that runs and at most one more, not for the whole batch request."""
    await rig.classify("a", "b")
    rig.engine.delay_s = 0.005
    bulk = asyncio.create_task(many(rig, [picture()] * 200))
    await until(lambda: len(rig.engine.batches) > 6)
    before = len(rig.engine.batches)
    await rig.classify("a", "b")
    assert len(rig.engine.batches) - before <= 4
    assert not bulk.done()
    await bulk


async def test_too_many_batch_requests_are_refused(tmp_path: Path) -> None:
    """Each holds a request's memory until it is done."""
    async with classifying(tmp_path / "bundle", max_batch_requests=1) as rig:
        rig.engine.gate.clear()
        first = asyncio.create_task(many(rig, [picture()]))
        await until(lambda: rig.classifier.batch_places.working == 1)
        with pytest.raises(Overloaded):
            await many(rig, [picture()])
        rig.engine.gate.set()
        assert len(await first) == 1
        assert len(await many(rig, [picture()])) == 1


async def test_a_batch_that_waits_for_its_client_leaves_its_place_to_others(tmp_path: Path) -> None:
    """Up to `max_batch_requests` such batches wait; further ones would be refused, as their results take memory."""
    async with classifying(tmp_path / "bundle", max_batch_requests=1) as rig:
        places = rig.classifier.batch_places
        first = rig.classifier.classify_many([picture()] * 3, LabelQuery(("a",), "none"), ScoringOptions())
        async with aclosing(first) as unread:
            await anext(unread)
            await until(lambda: not places.working)
            crowded = [places.crowded]
            second = rig.classifier.classify_many([picture()] * 3, LabelQuery(("a",), "none"), ScoringOptions())
            async with aclosing(second):
                await anext(second)
                await until(lambda: not places.working)
                crowded.append(places.crowded)
                with pytest.raises(Overloaded):
                    await many(rig, [picture()])
            assert [False, True] == crowded
            assert 1 == len(await many(rig, [picture()]))
            assert 2 == len([each async for each in unread])
        assert (0, 0) == (places.open, places.working)


async def test_no_image_encoder_output_is_shared_between_answers(rig: Rig) -> None:
    """Every image of a batch gets its own scores."""
    colours = ["red", "green", "blue", "white", "black", "yellow", "purple", "orange"]
    alone = [(await rig.classify("a", "b", image=picture(colour))).predictions for colour in colours]
    together = await asyncio.gather(*(rig.classify("a", "b", image=picture(colour)) for colour in colours))
    for one, other in zip(alone, together, strict=True):
        assert [prediction.score for prediction in other.predictions] == pytest.approx(
            [prediction.score for prediction in one], abs=1e-6
        )
    assert len({one[0].score for one in alone}) == len(colours)
    assert np.isfinite([one[0].score for one in alone]).all()
