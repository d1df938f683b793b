"""Waiting for background work of a service, with a progress bar."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from service.cli.console.progress import ProgressDisplay
from service.cli.remote.client import RemoteError

T = TypeVar("T")

_FIRST_PAUSE_S: Final = 0.2
_MAX_PAUSE_S: Final = 3.0
_GROWTH: Final = 1.3


@dataclass(frozen=True, slots=True)
class PollStatus:
    """Progress of background work; `total` is None until it is known."""

    ended: bool
    description: str
    done: int = 0
    total: int | None = None
    failed: int = 0


async def poll(
    ask: Callable[[], Awaitable[T]], status_of: Callable[[T], PollStatus], *, noun: str, timeout_s: float | None
) -> T:
    """Ask until the work has ended, and return the last answer. Raises `RemoteError`, also after `timeout_s`."""
    pause_s = _FIRST_PAUSE_S
    with ProgressDisplay(results=False, noun=noun) as display:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    answer = await ask()
                    status = status_of(answer)
                    display.update(status.description, done=status.done, total=status.total, failed=status.failed)
                    if status.ended:
                        return answer
                    await asyncio.sleep(pause_s)
                    pause_s = min(_MAX_PAUSE_S, pause_s * _GROWTH)
        except TimeoutError as exc:
            raise RemoteError(f"It has not ended within {timeout_s:g} s; the service continues with it.") from exc
