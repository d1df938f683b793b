import time
from collections.abc import Callable

import pytest

from service.errors import Overloaded
from service.inference.admission import Admission
from service.monitoring.metrics import Metrics


def admission(completion_s: Callable[[int], float | None], metrics: Metrics | None = None, batch: int = 4) -> Admission:
    """Room for ten."""
    return Admission("m", "text", metrics or Metrics(), limit=10, completion_s=completion_s, batch=batch)


def test_what_does_not_fit_is_refused_until_there_is_room() -> None:
    """Refusals are counted, and estimate when the waiting work will be done."""
    metrics = Metrics()
    queue = admission(lambda rows: rows * 0.5, metrics)
    reservation = queue.reserve(8)
    with pytest.raises(Overloaded) as caught:
        queue.reserve(3)
    assert 4.0 == caught.value.retry_after_s
    reservation.release(2)
    queue.reserve(3).release()
    reservation.release()
    reservation.release()
    assert 0 == queue.occupied
    labels = {"model": "m", "kind": "text"}
    assert 1 == metrics.registry.get_sample_value("anyclass_overloaded_total", labels)


def test_what_is_larger_than_all_room_is_let_in_where_nothing_waits() -> None:
    """Else it could never be done."""
    queue = admission(lambda _: None)
    queue.reserve(99)
    with pytest.raises(Overloaded):
        queue.reserve(1)


def test_what_would_not_be_done_in_time_is_refused_at_once() -> None:
    """With the time after which it would; what has time enough, or no deadline, is let in."""
    queue = admission(float)
    queue.reserve(5)
    with pytest.raises(Overloaded) as caught:
        queue.reserve(1, deadline=time.monotonic() + 3)
    assert pytest.approx(3, abs=1) == caught.value.retry_after_s
    assert 5 == queue.occupied
    queue.reserve(1, deadline=time.monotonic() + 60)
    queue.reserve(1)
    assert 7 == queue.occupied


def test_of_a_large_set_one_batch_has_to_be_done_in_time() -> None:
    """What is done by then is kept, so the next attempt goes further."""
    queue = admission(float, batch=2)
    queue.reserve(1)
    queue.reserve(9, deadline=time.monotonic() + 3.5)
    assert 10 == queue.occupied


@pytest.mark.parametrize("completion_s", [lambda rows: 100.0 * rows, lambda _: None], ids=["slow", "unknown"])
def test_an_idle_device_refuses_nothing(completion_s: Callable[[int], float | None]) -> None:
    """An estimate that is wrong would otherwise never be put right."""
    queue = admission(completion_s)
    queue.reserve(1, deadline=time.monotonic() + 1)
    assert 1 == queue.occupied


@pytest.mark.parametrize(("estimate", "seconds"), [(None, 1), (0.1, 1), (7.5, 7.5), (1e9, 60)])
def test_the_advice_is_within_a_second_and_a_minute(estimate: float | None, seconds: float) -> None:
    """Whatever the estimate says."""
    assert seconds == admission(lambda _: estimate).retry_after_s()


def test_nothing_to_do_is_never_too_late() -> None:
    """Labels that were all in the cache wait for no device."""
    queue = admission(lambda rows: 100.0 * rows)
    queue.reserve(1)
    queue.reserve(0, deadline=time.monotonic() + 1)
    assert 1 == queue.occupied
