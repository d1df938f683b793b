from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.held_out import is_held_out, trained_before, trained_row
from model_export.data.pairs import RowGroups
from model_export.data.plan import Phase, TrainingPlan

FILES = st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=6), min_size=1, max_size=4).filter(
    lambda files: sum(map(sum, files)) > 0
)
"""Sizes of the row groups of each file."""


def groups_of(files: list[list[int]]) -> RowGroups:
    """Number the rows of files with row groups of these sizes."""
    bounds = np.cumsum([0, *(size for file in files for size in file)])
    return RowGroups(bounds, bounds[np.cumsum([0, *map(len, files)])[:-1]])


def plan_of(files: list[list[int]], *, every: int = 0, seed: int = 5, batch: int = 1, window: int = 2) -> TrainingPlan:
    """Plan three epochs."""
    return TrainingPlan(
        groups_of(files),
        held_out_every=every,
        seed=seed,
        batch_size=batch,
        epochs=3,
        window=window,
        phases=[Phase(0.0, 16), Phase(0.5, 24, 0.3)],
    )


def order(plan: TrainingPlan, epoch: int = 0) -> list[int]:
    """Return the rows of an epoch in their order."""
    return [row for rows in plan.windows(epoch) for row in rows.tolist()]


@given(files=FILES, every=st.sampled_from([0, 2, 3, 7]), seed=st.integers(0, 99), window=st.integers(1, 9))
def test_an_epoch_visits_each_row_once_and_none_that_is_held_out(
    files: list[list[int]], every: int, seed: int, window: int
) -> None:
    """Shuffling loses and repeats nothing; of each file, the last of each `every` rows is left out."""
    sizes = list(map(sum, files))
    kept = [~is_held_out(np.arange(size), every) for size in sizes]
    plan = plan_of(files, every=every, seed=seed, window=window)

    assert np.flatnonzero(np.concatenate(kept)).tolist() == sorted(order(plan, 2))
    assert sum(map(np.sum, kept)) == plan.train_rows


@given(sizes=st.lists(st.integers(1, 20), min_size=2, max_size=12), window=st.integers(1, 4))
def test_a_reader_needs_no_more_groups_than_the_window(sizes: list[int], window: int) -> None:
    """A row group is touched in one window only, so data larger than memory can be streamed."""
    owner = np.repeat(np.arange(len(sizes)), sizes)

    touched = [set(owner[rows].tolist()) for rows in plan_of([sizes], window=window).windows(0)]

    assert all(len(groups) <= window for groups in touched)
    assert len(sizes) == sum(map(len, touched)) == len(set.union(*touched))


def test_epochs_differ_and_seeds_differ() -> None:
    """The order is not the file's, nor the last epoch's, nor another seed's."""
    plans = [plan_of([[50, 50]], seed=seed) for seed in (0, 1)]
    orders = [order(plans[0], 0), order(plans[0], 1), order(plans[1], 0)]

    assert list(range(100)) not in orders
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


@given(steps=st.lists(st.integers(0, 23), min_size=1, max_size=9))
def test_a_batch_follows_from_its_step_alone(steps: list[int]) -> None:
    """Asked for in any order, by a plan that went to another process, a step has the rows of the epoch's order."""
    plan = plan_of([[13, 20], [9]], batch=5)
    assert (8, 24) == (plan.steps_per_epoch, plan.total_steps)
    whole = [rows for epoch in range(3) for rows in np.array(order(plan, epoch)[:40]).reshape(8, 5).tolist()]
    other = pickle.loads(pickle.dumps(plan))  # noqa: S301 - our own bytes

    for step in steps:
        batch = other.batch(step)
        assert whole[step] == batch.rows.tolist()
        assert (step, step // 8) == (batch.step, batch.epoch)
        assert ((16, 0.0) if step < 12 else (24, 0.3)) == (batch.image_size, batch.zoom_share)


@given(step=st.integers(0, 23), cuts=st.lists(st.integers(0, 5), max_size=3))
def test_parts_of_a_batch_are_the_batch(step: int, cuts: list[int]) -> None:
    """The batch does not depend on the number of ranks that share it."""
    plan = plan_of([[13, 20], [9]], batch=5)
    bounds = [0, *sorted(cuts), 5]

    parts = [plan.batch(step, start=a, stop=b) for a, b in pairwise(bounds)]

    assert plan.batch(step).rows.tolist() == [row for part in parts for row in part.rows.tolist()]
    assert bounds[:-1] == [part.start for part in parts]


def test_each_row_of_a_run_has_a_stream_of_its_own() -> None:
    """Streams of rows differ from each other, and from those that make the order; a seed and a place give one again."""
    plan = plan_of([[8]], batch=4, seed=3)
    drawn = {(step, at): plan.stream(step, at).integers(2**62) for step in range(6) for at in range(4)}

    assert 24 == len(set(drawn.values()))
    assert drawn[5, 3] == plan_of([[8]], batch=2, seed=3, window=9).stream(5, 3).integers(2**62)
    ordering = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(0, 0))).integers(2**62)
    assert ordering not in drawn.values()


@given(files=FILES, step=st.integers(0, 10**6), attempt=st.integers(0, 9))
def test_a_replacement_is_another_row_of_the_window(files: list[list[int]], step: int, attempt: int) -> None:
    """It follows from the place alone, and its row group is one that the reader has in memory."""
    plan = plan_of(files, every=3)
    if not plan.total_steps:
        return
    step %= plan.total_steps
    row = plan.replacement(step, 0, attempt)

    (window,) = [
        rows.tolist() for rows in plan.windows(step // plan.steps_per_epoch) if plan.batch(step).rows[0] in rows
    ]
    assert row in window
    assert row == plan_of(files, every=3).replacement(step, 0, attempt)


@pytest.mark.parametrize(("every", "expected"), [(4, [3, 7]), (0, [])])
def test_every_nth_row_is_held_out(every: int, expected: list[int]) -> None:
    """The split follows from the row number alone, so no run ever trains on another's validation rows."""
    rows = np.arange(10)

    assert expected == rows[is_held_out(rows, every)].tolist()


@given(every=st.sampled_from([0, 2, 3, 25]), rows=st.integers(0, 200))
def test_the_rows_to_train_on_are_numbered_by_arithmetic(every: int, rows: int) -> None:
    """Both formulas agree with the list of rows that are not held out."""
    numbers = np.arange(rows)
    kept = numbers[~is_held_out(numbers, every)]

    assert len(kept) == trained_before(rows, every)
    np.testing.assert_array_equal(kept, trained_row(np.arange(len(kept)), every))
