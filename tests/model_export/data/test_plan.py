from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.held_out import is_held_out
from model_export.data.plan import Phase, TrainingPlan, epoch_order

Groups = list[np.ndarray]


def groups_of(sizes: list[int]) -> Groups:
    """Number the rows of row groups of these sizes."""
    starts = np.cumsum([0, *sizes])
    return [np.arange(a, a + n, dtype=np.int64) for a, n in zip(starts, sizes, strict=False)]


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 5),
    window=st.integers(1, 9),
)
def test_an_epoch_visits_each_row_once(sizes: list[int], seed: int, epoch: int, window: int) -> None:
    """Shuffling loses and repeats nothing."""
    order = epoch_order(groups_of(sizes), seed=seed, epoch=epoch, window=window)

    assert list(range(sum(sizes))) == sorted(order.tolist())


@given(sizes=st.lists(st.integers(1, 20), min_size=2, max_size=12), window=st.integers(1, 4))
def test_a_reader_needs_no_more_groups_than_the_window(sizes: list[int], window: int) -> None:
    """A row group is touched in one window only, so data larger than memory can be streamed."""
    groups = groups_of(sizes)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    order = owner[epoch_order(groups, seed=3, epoch=0, window=window)]

    open_groups: set[int] = set()
    left = dict(enumerate(sizes))
    for number in order.tolist():
        open_groups.add(number)
        left[number] -= 1
        assert len(open_groups) <= window
        if all(left[other] == 0 for other in open_groups) and len(open_groups) == window:
            open_groups.clear()


def test_epochs_differ_and_seeds_differ() -> None:
    """The order is not the file's, nor the last epoch's, nor another seed's."""
    groups = groups_of([50, 50])
    orders = [
        epoch_order(groups, seed=seed, epoch=epoch, window=2).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]

    assert list(range(100)) not in orders
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


@given(first_step=st.integers(0, 24))
def test_a_resumed_plan_continues_with_the_same_batches(first_step: int) -> None:
    """From any step on, the batches are those of the uninterrupted plan, rows, seeds and sizes."""
    plan = TrainingPlan(
        groups_of([13, 20, 9]),
        seed=5,
        batch_size=5,
        epochs=3,
        window=2,
        phases=[Phase(0.0, 16), Phase(0.5, 24, 0.3)],
    )

    whole = list(plan.batches())
    rest = list(plan.batches(first_step))

    assert plan.total_steps == len(whole) == 24
    assert len(whole) - first_step == len(rest)
    for a, b in zip(whole[first_step:], rest, strict=True):
        assert (a.step, a.seed, a.image_size, a.zoom_share) == (b.step, b.seed, b.image_size, b.zoom_share)
        np.testing.assert_array_equal(a.rows, b.rows)
    assert {(16, 0.0), (24, 0.3)} == {(batch.image_size, batch.zoom_share) for batch in whole}


@pytest.mark.parametrize(("every", "expected"), [(4, [3, 7]), (0, [])])
def test_every_nth_row_is_held_out(every: int, expected: list[int]) -> None:
    """The split follows from the row number alone, so no run ever trains on another's validation rows."""
    rows = np.arange(10)

    assert expected == rows[is_held_out(rows, every)].tolist()
