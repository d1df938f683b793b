"""How pytest-xdist shares the tests out among its processes."""

from typing import Any

from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]


class FileByFile(LoadFileScheduling):  # type: ignore[misc] # xdist has no types
    """Gives the tests of a file to one process.

    When a process dies, pytest-xdist 3.8 gives all files that it had to others, finished ones too, and waits for ever
    for a finished file's tests; it also runs the test again that the process died of, and may lose one more.
    """

    def remove_node(self, node: Any) -> str | None:
        """Take a process out; give to others what it left, but for the test that it died of, which is returned."""
        files: dict[str, dict[str, bool]] = self.assigned_work[node]
        left = [test for tests in files.values() for test, done in tests.items() if not done]
        self.assigned_work[node] = {}
        super().remove_node(node)
        if not left:
            return None
        for tests in files.values():
            if left[0] in tests:
                tests[left[0]] = True
        self.workqueue.update({file: tests for file, tests in files.items() if not all(tests.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return left[0]
