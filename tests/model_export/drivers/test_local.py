import os
import signal
import threading

import pytest

from model_export.drivers.local import LocalDriver
from model_export.errors import DataError, DriverError


def square(number: int) -> int:
    """Return the square of a number; refuse 13, end the process at 14."""
    if number == 13:
        raise DataError("13: brings bad luck; name another number")
    if number == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def thread(_: int) -> str:
    """Return the name of this thread."""
    return threading.current_thread().name


def test_a_task_that_kills_its_process_again_and_again_ends_the_run() -> None:
    """The message names it, and the way out."""
    with pytest.raises(DriverError, match=r"number 14: the process was killed 3 times, .* exit code -9; .* --workers"):
        list(LocalDriver(2).run(square, [1, 14, 2], name=lambda number: f"number {number}"))


def test_errors_come_out_as_they_are() -> None:
    """In this process, in others and in threads."""
    for driver, threads in ((LocalDriver(), False), (LocalDriver(2), False), (LocalDriver(2), True)):
        with pytest.raises(DataError, match=r"^13: brings bad luck; name another number$"):
            list(driver.run(square, [13, 1], threads=threads))


def test_threads_take_the_place_of_processes_where_they_may() -> None:
    """They start at once; one worker needs neither."""
    assert threading.main_thread().name not in set(LocalDriver(2).run(thread, [1, 2, 3], threads=True))
    assert [threading.main_thread().name] * 3 == list(LocalDriver().run(thread, [1, 2, 3], threads=True))
