"""A real browser for the tests of the page: Chromium, as ``scripts/browser.sh`` installs it, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000  # for a busy machine


def executable() -> str | None:
    """Return the path of an installed browser, or None."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """Run the installed browser without a window, until the end of the block."""
    with sync_playwright() as playwright:
        # Without a GPU Chromium would emulate one. As root it refuses to run inside its sandbox.
        arguments = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        running = playwright.chromium.launch(executable_path=executable(), args=arguments)
        try:
            yield running
        finally:
            running.close()


def watch(page: Page) -> list[str]:
    """Return a list that grows by each error of the page's scripts and each breach of its policy."""
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        # The console also has a line for each answer that is no success, which tests ask for.
        lambda line: (
            faults.append(line.text) if line.type == "error" and "Failed to load resource" not in line.text else None
        ),
    )
    page.set_default_timeout(PATIENCE_MS)
    return faults
