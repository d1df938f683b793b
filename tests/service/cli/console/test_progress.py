import io
import sys

import pytest

from service.cli.console.progress import ProgressDisplay


class Terminal(io.StringIO):
    """Text written to a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def test_a_step_is_drawn_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step shows, although the next begins before the bar is drawn again."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", Terminal())
    steps = [f"step {number}" for number in range(5)]
    with ProgressDisplay() as display:
        for step in steps:
            display.update(step)
        seen = display.out.file.getvalue()  # type: ignore[attr-defined]
    assert steps == [step for step in steps if step in seen]
    assert "━" in seen
