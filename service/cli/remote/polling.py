"""Waiting for work that a service does in the background, with a bar."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from service.cli.console.progress import Screen
from service.cli.remote.client import RemoteError

T = TypeVar("T")

_FIRST_S: Final = 0.2
_LONGEST_S: Final = 3.0
_GROWTH: Final = 1.3


@dataclass(frozen=True, slots=True)
class Standing:
    """How far something is; `total` None where that is not known yet."""

    ended: bool
    description: str
    done: int = 0
    total: int | None = None
    failed: int = 0


async def wait_for(
    ask: Callable[[], Awaitable[T]], standing: Callable[[T], Standing], *, noun: str, timeout_s: float | None
) -> T:
    """Ask until it has ended; gives the last answer. Raises `RemoteError`, also after `timeout_s`."""
    pause_s = _FIRST_S
    with Screen(results=False, noun=noun) as screen:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    answer = await ask()
                    now = standing(answer)
                    screen.stage(now.description, done=now.done, total=now.total, failed=now.failed)
                    if now.ended:
                        return answer
                    await asyncio.sleep(pause_s)
                    pause_s = min(_LONGEST_S, pause_s * _GROWTH)
        except TimeoutError as exc:
            raise RemoteError(f"It has not ended within {timeout_s:g} s; the service goes on with it.") from exc
