import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidLabels, TooManyLabels
from service.labels.cache_keys import labels_digest
from service.labels.checked_labels import KnownLabels
from service.model.prompts import normalise_labels

LIMITS = {"max_labels": 20, "max_chars": 50}


def outcome(labels: list[str]) -> tuple[str, ...] | str:
    """Return normalised labels, or the reason for their refusal."""
    try:
        return normalise_labels(labels, max_labels=LIMITS["max_labels"], max_chars=LIMITS["max_chars"])
    except InvalidLabels as refusal:
        return refusal.detail


@given(st.lists(st.lists(st.text("ab \0é\ud800", max_size=4), max_size=4), max_size=8))
async def test_a_known_list_is_treated_like_a_new_one(lists: list[list[str]]) -> None:
    """Earlier lists, in any form, do not change the labels or the refusal."""
    known = KnownLabels(**LIMITS)
    for labels in lists * 2:
        expected = outcome(labels)
        if isinstance(expected, str):
            with pytest.raises(InvalidLabels) as caught:
                await known.check(labels)
            assert expected == caught.value.detail
        else:
            checked = await known.check(labels)
            assert (expected, labels_digest(expected)) == (checked.labels, checked.digest)


async def test_a_list_that_comes_again_is_not_checked_again() -> None:
    """The same list gives the same object; another order gives another digest."""
    known = KnownLabels(**LIMITS)
    first = await known.check(["cat", "a  dog"])
    assert first is await known.check(("cat", "a  dog"))
    other = await known.check(["a  dog", "cat"])
    assert first.digest != other.digest
    assert first.digest == (await known.check([" cat ", "a dog"])).digest


class Watched(list[str]):
    """Stops a thread that iterates at the hundredth label, until it is released; notes how far the thread comes."""

    def __init__(self, labels: Iterable[str]) -> None:
        super().__init__(labels)
        self.seen = 0
        self.reached, self.release = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[str]:
        for index, label in enumerate(super().__iter__()):
            if threading.current_thread() is not threading.main_thread():
                self.seen = index
                if index == 100:
                    self.reached.set()
                    self.release.wait(60)
            yield label


async def test_work_on_labels_ends_with_its_request() -> None:
    """Ordering thousands of marks takes seconds, and later requests would wait for an abandoned answer."""
    known = KnownLabels(max_labels=5_000, max_chars=50)
    labels = Watched(map(str, range(5_000)))
    abandoned = asyncio.create_task(known.check(labels))
    assert await asyncio.to_thread(labels.reached.wait, 60)
    abandoned.cancel()
    with suppress(asyncio.CancelledError):
        await abandoned
    labels.release.set()
    others = [f"b{number}" for number in range(5_000)]
    assert tuple(others) == (await known.check(others)).labels
    assert labels.seen < 200


async def test_memory_is_bounded() -> None:
    """The least recently used list is evicted; one that is larger than the limit is never kept."""
    known = KnownLabels(**LIMITS, max_bytes=2_000)
    lists = [[f"label {number}"] for number in range(4)]
    kept = [await known.check(labels) for labels in lists]
    assert kept[-1] is await known.check(lists[-1])
    assert kept[0] is not await known.check(lists[0])
    large = ["x" * 49 + str(number) for number in range(10)]
    known = KnownLabels(**LIMITS, max_bytes=600)
    assert await known.check(large) is not await known.check(large)


async def test_too_many_labels_are_refused_before_they_are_hashed() -> None:
    """And so are none."""
    known = KnownLabels(**LIMITS)
    with pytest.raises(TooManyLabels):
        await known.check([str(number) for number in range(21)])
    with pytest.raises(InvalidLabels):
        await known.check([])


async def test_a_long_list_is_checked_in_a_thread() -> None:
    """With the same result; a failure comes through."""
    known = KnownLabels(max_labels=5_000, max_chars=50)
    labels = [f" label {number} " for number in range(3_000)]
    assert normalise_labels(labels, max_labels=5_000, max_chars=50) == (await known.check(labels)).labels
    with pytest.raises(InvalidLabels):
        await known.check([*labels, "label 7"])
