from hypothesis import given
from hypothesis import strategies as st

from service.lanes import Lane, next_turn


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=50), st.integers(2, 6))
def test_background_has_its_share_and_no_more(waiting: list[tuple[bool, bool]], every: int) -> None:
    """While both lanes wait, background has one turn in `every`; a lane that waits alone has every turn."""
    passed_over = 0
    for interactive, background in waiting:
        turn = next_turn(
            interactive=interactive, background=background, passed_over=passed_over, background_every=every
        )
        due = background and passed_over >= every - 1
        assert (Lane.INTERACTIVE if interactive and not due else Lane.BACKGROUND) == turn.lane
        assert (passed_over + 1 if interactive and background and not due else 0) == turn.passed_over
        assert turn.passed_over < every
        passed_over = turn.passed_over
