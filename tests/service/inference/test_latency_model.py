import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inference.latency_model import WINDOW, Fit, LatencyModel

SIZES = (1, 2, 3, 8, 16, 31, 32, 32)


def learnt(slope: float, overhead: float, sizes: tuple[int, ...] = SIZES) -> LatencyModel:
    """A model that saw batches of those sizes, each exactly on the line."""
    model = LatencyModel()
    for size in sizes:
        model.observe(size, size, slope * size + overhead)
    return model


def fit_of(model: LatencyModel) -> Fit:
    """The fit, which there must be."""
    assert model.fit is not None
    return model.fit


def test_nothing_is_known_before_the_first_batch() -> None:
    """No number is made up."""
    model = LatencyModel()
    assert (None, None) == (model.fit, model.seconds(5, 32))


@given(st.floats(1e-5, 1), st.floats(0, 10))
def test_a_line_is_recovered_exactly(slope: float, overhead: float) -> None:
    """Up to rounding."""
    fit = fit_of(learnt(slope, overhead))
    assert pytest.approx(slope, rel=1e-6, abs=1e-6 * overhead) == fit.slope_s
    assert pytest.approx(overhead, rel=1e-6, abs=1e-4 * slope) == fit.overhead_s


def test_a_slow_first_run_does_not_bend_the_line() -> None:
    """The first batch of a process may take a hundred times as long."""
    model = LatencyModel()
    model.observe(1, 1, 100 * 0.03)
    for size in SIZES:
        model.observe(size, size, 0.03 * size + 0.01)
    fit = fit_of(model)
    assert pytest.approx(0.03, rel=0.05) == fit.slope_s
    assert pytest.approx(0.01, abs=0.005) == fit.overhead_s


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 100)), min_size=1, max_size=2 * WINDOW))
def test_no_time_is_ever_negative(batches: list[tuple[int, float]]) -> None:
    """Whatever was measured."""
    model = LatencyModel()
    for size, seconds in batches:
        model.observe(size, size, seconds)
    fit = fit_of(model)
    assert fit.slope_s >= 0
    assert fit.overhead_s >= 0
    assert fit.seconds(1) > 0
    assert fit.spare_units() >= 0
    assert 1 <= fit.enough(32, 0.05) <= 32


def test_batches_of_one_size_tell_their_own_time() -> None:
    """The overhead stays that of the last batches of several sizes."""
    assert pytest.approx(0.33) == fit_of(learnt(0.01, 0.01, sizes=(32,) * 10)).seconds(32)
    model = learnt(0.01, 0.02)
    assert pytest.approx(0.34) == fit_of(model).seconds(32)
    for _ in range(2 * WINDOW):
        model.observe(32, 32, 0.34)
        assert pytest.approx(0.34) == fit_of(model).seconds(32)
    assert pytest.approx((0.01, 0.02)) == (fit_of(model).slope_s, fit_of(model).overhead_s)


def test_a_machine_that_becomes_slower_is_followed() -> None:
    """What is older than the last batches is forgotten."""
    model = learnt(0.01, 0.02)
    for index in range(WINDOW):
        size = SIZES[index % len(SIZES)]
        model.observe(size, size, 0.03 * size + 0.05)
    assert pytest.approx((0.03, 0.05)) == (fit_of(model).slope_s, fit_of(model).overhead_s)


def test_rows_are_counted_in_batches_and_by_their_length_of_late() -> None:
    """Forty texts of nine tokens in batches of sixteen are three batches."""
    model = LatencyModel()
    for size in SIZES:
        model.observe(size, size * 9, 0.001 * size * 9 + 0.05)
    assert pytest.approx(3 * 0.05 + 40 * 9 * 0.001) == model.seconds(40, 16)
    assert 0 == model.seconds(0, 16)


@pytest.mark.parametrize(
    ("slope", "overhead", "enough"), [(0.01, 0.0, 1), (0.0, 0.01, 31), (0.0307, 0.0128, 7), (0.0002, 0.003, 28)]
)
def test_the_smallest_batch_that_is_nearly_as_good(slope: float, overhead: float, enough: int) -> None:
    """No smaller one keeps within the slack; without an overhead one row is as good as many."""
    fit = Fit(slope, overhead)

    def per_row(rows: int) -> float:
        return fit.seconds(rows) / rows

    assert enough == fit.enough(32, 0.05)
    assert per_row(enough) <= 1.05 * per_row(32) + 1e-12
    assert enough == 1 or per_row(enough - 1) > 1.05 * per_row(32)


def test_a_full_window_is_fitted_anew_now_and_then() -> None:
    """A fit costs as much as the rest of a request; a single batch in a full window moves no median."""
    model = learnt(0.03, 0.01, SIZES * (WINDOW // len(SIZES)))
    before = model.fit
    kept = 0
    while model.fit is before:
        model.observe(1, 1, 1.0)
        kept += 1
    assert 1 < kept <= WINDOW // 4
