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
        return normalise_labels(labels, **LIMITS)
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
