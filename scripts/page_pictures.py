"""Take the pictures of the page for the README, and time a scripted person from the open page to an answer.

Starts the service with the demo model on a free port, and drives the installed Chromium: `make page-pictures`.
"""

import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from service.model.manifest import DEMO_BUNDLE  # noqa: E402
from tests.support.browser import browser  # noqa: E402
from tests.support.http_server import http_server  # noqa: E402

IMAGES = ROOT / "docs" / "images"
PHOTO = ROOT / "examples" / "cat.jpg"
RUNS = 5
COLOURS = 256
WIDE: dict[str, Any] = {"viewport": {"width": 1120, "height": 800}}
NARROW: dict[str, Any] = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}


def seconds_to_an_answer(running: Browser, url: str) -> float:
    """Open the page in a fresh profile, choose a photo, wait for the first bar; return the seconds."""
    context = running.new_context(**WIDE)
    page = context.new_page()
    began = time.perf_counter()
    page.goto(url)
    page.locator("#files").set_input_files(PHOTO)
    page.locator("#bars li").first.wait_for()
    taken = time.perf_counter() - began
    context.close()
    return taken


def with_examples(running: Browser, url: str, options: dict[str, Any]) -> Page:
    """Open the page, and try its examples."""
    page = running.new_context(**options).new_page()
    page.goto(url)
    for button in page.locator("[data-example]").all()[::-1]:
        button.click()
        page.locator("#best:not([hidden])").wait_for(state="attached")
    page.wait_for_load_state("networkidle")
    page.mouse.move(0, 0)
    page.wait_for_timeout(600)  # the bars move to their places
    return page


def save(png: bytes, name: str) -> None:
    """Save a picture with a palette: half of the bytes, and little difference to see."""
    path = IMAGES / name
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB")


def main() -> None:
    """Take both pictures, then print the times."""
    with (
        tempfile.TemporaryDirectory() as folder,
        http_server(DEMO_BUNDLE, Path(folder)) as server,
        browser() as running,
    ):
        save(with_examples(running, server.url, WIDE).screenshot(), "page.png")
        narrow = with_examples(running, server.url, NARROW | {"color_scheme": "dark"})
        save(narrow.screenshot(), "page-narrow.png")
        times = [seconds_to_an_answer(running, server.url) for _ in range(RUNS)]
    summary = f"median {statistics.median(times):.2f} s, {max(times):.2f} s at most"
    print(f"from opening the page to an answer, {RUNS} times: {summary}")


if __name__ == "__main__":
    main()
