from service.redis_client import Breaker


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_attempt_through() -> None:
    """An open breaker allows one attempt per interval; a success closes it."""
    now = [0.0]
    breaker = Breaker(1.0, clock=lambda: now[0])
    for _ in range(2):
        breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    now[0] = 1.0
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.failed()
    now[0] = 1.9
    assert not breaker.allows()
    now[0] = 2.0
    assert breaker.allows()
    breaker.succeeded()
    assert [breaker.allows(), breaker.allows()] == [True, True]
