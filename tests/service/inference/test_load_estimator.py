import numpy as np
import pytest

from service.inference.batch_execution import Inputs, Rows, Work
from service.inference.entries import Running
from service.inference.latency_model import WINDOW
from service.inference.load_estimator import LoadEstimator
from service.lanes import Lane
from service.model.arrays import Vectors


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def collate(_: object) -> Inputs:
    """Nothing is ever run here."""
    return np.zeros((1, 1))


def run(_: Inputs) -> Vectors:
    """Nothing is ever run here."""
    return np.zeros((1, 1), np.float32)


def length(rows: Rows) -> int:
    """Padded length."""
    return max(map(len, rows))


IMAGES = Work("m", "image", collate, run)
TEXTS = Work("m", "text", collate, run, length=length, max_batch=64)


def learnt(clock: Clock | None = None) -> LoadEstimator:
    """Images take 10 ms each and 40 ms a batch; texts 0.1 ms a token and 1 ms a batch, of nine tokens each."""
    estimator = LoadEstimator(32, 4, clock or Clock())
    for size in (1, 2, 4, 8, 16, 24, 31, 32) * (WINDOW // 8):
        estimator.observe(IMAGES, size, size, 0.01 * size + 0.04)
        estimator.observe(TEXTS, size, 9 * size, 0.0001 * 9 * size + 0.001)
    return estimator


def test_an_idle_device_takes_the_time_of_the_batches() -> None:
    """Forty images are two batches."""
    assert pytest.approx(40 * 0.01 + 2 * 0.04) == learnt().completion_s(IMAGES, 40, Lane.INTERACTIVE, [])


def test_what_is_unknown_is_not_guessed() -> None:
    """A work that never ran has no time, and adds none to others."""
    estimator = learnt()
    other = Work("n", "image", collate, run)
    assert estimator.completion_s(other, 1, Lane.INTERACTIVE, []) is None
    estimator.count_waiting(other, Lane.INTERACTIVE, 10)
    assert pytest.approx(0.05) == estimator.completion_s(IMAGES, 1, Lane.INTERACTIVE, [Running(other, 3, 999.0)])


def test_the_running_batch_counts_by_what_is_left_of_it() -> None:
    """Never less than nothing, however late it is."""
    clock = Clock()
    estimator = learnt(clock)
    batch = Running(IMAGES, 32, started=clock.now)
    ready = Running(TEXTS, 90)
    expected = [0.05 + 0.01 + 0.36, 0.05 + 0.01 + 0.16, 0.05 + 0.01]
    for moved, seconds in zip((0, 0.2, 5), expected, strict=True):
        clock.now += moved
        assert pytest.approx(seconds, abs=1e-6) == estimator.completion_s(IMAGES, 1, Lane.INTERACTIVE, [batch, ready])


def test_interactive_work_waits_for_interactive_work_and_background_turns() -> None:
    """One batch in four is background work's, while any waits."""
    estimator = learnt()
    alone = estimator.completion_s(IMAGES, 96, Lane.INTERACTIVE, [])
    estimator.count_waiting(TEXTS, Lane.BACKGROUND, 1000)
    assert alone is not None
    assert pytest.approx(alone + 0.0001 * 9 * 64 + 0.001) == estimator.completion_s(IMAGES, 96, Lane.INTERACTIVE, [])
    estimator.count_waiting(TEXTS, Lane.BACKGROUND, -1000)
    estimator.count_waiting(TEXTS, Lane.INTERACTIVE, 64)
    assert pytest.approx(alone + 0.0001 * 9 * 64 + 0.001) == estimator.completion_s(IMAGES, 96, Lane.INTERACTIVE, [])


def test_background_work_waits_for_all_interactive_work() -> None:
    """And for what is before it in its own lane."""
    estimator = learnt()
    estimator.count_waiting(IMAGES, Lane.INTERACTIVE, 32)
    assert pytest.approx(0.36 + 0.05) == estimator.completion_s(IMAGES, 1, Lane.BACKGROUND, [])


def test_padding_is_allowed_as_far_as_it_is_cheaper_than_a_batch() -> None:
    """Ten tokens cost as much as the overhead of a batch of texts."""
    assert pytest.approx(10) == learnt().rules(TEXTS).spare
    assert 64 == learnt().rules(TEXTS).limit


def test_background_batches_are_as_short_as_they_may_be_for_nothing() -> None:
    """Where a batch costs hardly more than its images, one at a time is nearly as fast as thirty-two."""
    estimator = LoadEstimator(32, 4, Clock())
    for size in (1, 2, 4, 8, 16, 24, 31, 32) * (WINDOW // 8):
        estimator.observe(IMAGES, size, size, 0.01 * size + 0.0001)
    estimator.count_waiting(IMAGES, Lane.INTERACTIVE, 1)
    assert 1 == estimator.rules(IMAGES).background_limit


def test_background_batches_are_short_only_while_interactive_work_comes() -> None:
    """An interactive request that comes while one runs waits for its end."""
    clock = Clock()
    estimator = learnt(clock)
    assert 32 == estimator.rules(IMAGES).background_limit
    estimator.count_waiting(IMAGES, Lane.INTERACTIVE, 1)
    estimator.count_waiting(IMAGES, Lane.INTERACTIVE, -1)
    # With 12 images a batch takes 13.3 ms for each, with 32 it takes 11.25: a fifth more at most.
    assert 12 == estimator.rules(IMAGES).background_limit
    assert 64 == estimator.rules(TEXTS).background_limit
    clock.now += 60
    assert 32 == estimator.rules(IMAGES).background_limit
