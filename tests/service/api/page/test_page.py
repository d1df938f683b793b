"""The page in a real browser, against the demo model."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, Page, Route, expect

from service.model.manifest import DEMO_BUNDLE
from tests.support.browser import PATIENCE_MS, browser, executable, watch
from tests.support.http_server import HttpServer, http_server
from tests.support.places import ROOT
from tests.support.service_thread import service_thread

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None, reason="Chromium is not installed (scripts/browser.sh)"),
]

KEY = "0123456789abcdef"
CAT, CUP, ROCKET = (ROOT / f"examples/{name}.jpg" for name in ("cat", "cup", "rocket"))
WIDE: dict[str, Any] = {"viewport": {"width": 1120, "height": 900}, "reduced_motion": "reduce"}
NARROW: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
PASTE = """([type, base64, name]) => {
  const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: "image/jpeg" }));
  const made = type === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.body.dispatchEvent(made);
}"""

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """The demo model, with a label set."""
    with http_server(DEMO_BUNDLE, tmp_path_factory.mktemp("page")) as running:
        answer = httpx.put(f"{running.url}/v1/label-sets/pets", json={"labels": ["cat", "dog", "rabbit"]}, timeout=60)
        assert answer.status_code in (200, 201)
        yield running


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service that needs a key."""
    folder = tmp_path_factory.mktemp("keyed")
    with service_thread(folder, api_keys=KEY, state_url=str(folder / "state")) as served:
        yield served.url


@pytest.fixture(scope="module")
def chromium(server: HttpServer, keyed: str) -> Iterator[Browser]:
    """The browser of all tests here; after the services, because Playwright leaves an event loop in this thread."""
    with browser() as running:
        yield running


@pytest.fixture
def visit(chromium: Browser, server: HttpServer) -> Iterator[Callable[..., Page]]:
    """Open the page in a context of its own; at the end, no script has failed and the policy was kept."""
    opened = []

    def open_page(url: str = server.url, **options: Any) -> Page:
        page = chromium.new_context(**(WIDE | options)).new_page()
        opened.append((page, watch(page)))
        page.goto(url)
        return page

    yield open_page
    for page, faults in opened:
        assert [] == faults
        page.context.close()


def bars(page: Page) -> dict[str, str]:
    """Return the shown labels, best first, with their scores."""
    rows = page.locator("#bars li")
    return dict(zip(rows.locator(".name").all_text_contents(), rows.locator(".score").all_text_contents(), strict=True))


def best(page: Page, label: str) -> None:
    """Wait until `label` is the best."""
    expect(page.locator("#bars li .name").first).to_have_text(label)


def add_label(page: Page, text: str) -> None:
    """Type labels, and Enter."""
    page.get_by_label("Add a label").fill(text)
    page.get_by_label("Add a label").press("Enter")


def settled(page: Page) -> None:
    """Wait until nothing is typed or asked for any more: the pause before a request, and its answer."""
    page.wait_for_timeout(200)
    page.wait_for_load_state("networkidle")


def send(page: Page, kind: str, path: Path) -> None:
    """Paste or drop a file."""
    page.evaluate(PASTE, [kind, base64.b64encode(path.read_bytes()).decode(), path.name])


def findings(page: Page, **options: Any) -> list[str]:
    """Return the findings of axe-core, with the elements."""
    found = Axe().run(page, options=options).response["violations"]
    return [f"{each['id']}: {[node['target'] for node in each['nodes']]}" for each in found]


def test_pictures_come_in_every_way(visit: Callable[..., Page]) -> None:
    """Chosen, pasted, dropped: each has its answer, and the strip shows the best label of all."""
    page = visit()
    page.locator("#files").set_input_files(CAT)
    best(page, "cat")
    send(page, "paste", CUP)
    best(page, "cup")
    send(page, "drop", ROCKET)
    best(page, "rocket")
    strip = page.get_by_role("list", name="Pictures").get_by_role("button")
    expect(strip).to_have_count(3)
    expect(strip.nth(0)).to_contain_text("cat, ")
    strip.nth(0).click()
    best(page, "cat")
    for _ in range(3):
        page.get_by_role("button", name="Remove picture").click()
    assert {} == bars(page)
    expect(page.locator("#status")).to_have_text("Add a picture, or try an example.")


def test_bars_move_with_labels_and_options(visit: Callable[..., Page], server: HttpServer) -> None:
    """What is shown is the service's answer to what is set."""
    page = visit(reduced_motion="no-preference")
    page.get_by_role("button", name="A cat").click()
    best(page, "cat")
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator("#status")).to_have_text("Add a label.")
    add_label(page, 'dog, rocket, "salt, pepper", dog')
    expect(page.locator("#bars li")).to_have_count(3)
    assert {"dog", "rocket", "salt, pepper"} == set(bars(page))
    page.get_by_role("button", name="Remove rocket").click()
    expect(page.locator("#bars li")).to_have_count(2)
    add_label(page, "cat")
    best(page, "cat")
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Threshold").fill("0.5")
    page.get_by_label("Prompt templates").select_option("none")
    fields = {"labels": ["dog", "salt, pepper", "cat"], "temperature": 2, "min_score": 0.5, "templates": "none"}
    image = httpx.get(f"{server.url}/page/cat.jpg").content
    form = {name: json.dumps(value) if name == "labels" else str(value) for name, value in fields.items()}
    answer = httpx.post(f"{server.url}/v1/classify", files={"image": image}, data=form, timeout=60).json()
    expected = {each["label"]: f"{100 * each['score']:.1f}%" for each in answer["predictions"]}
    page.wait_for_function("count => document.querySelectorAll('#bars li').length === count", arg=len(expected))
    expect(page.locator("#bars li .score").first).to_have_text(next(iter(expected.values())))
    assert expected == bars(page)
    page.get_by_label("Label set").select_option("pets")
    expect(page.locator("#bars li .name")).to_have_count(1)  # the threshold still counts
    page.get_by_label("Scoring", exact=True).select_option("cosine")
    expect(page.locator("#bars li .name")).to_have_count(3)
    assert {"cat", "dog", "rabbit"} == set(bars(page))
    expect(page.get_by_label("Temperature")).to_be_disabled()


def test_errors_are_the_words_of_the_service(visit: Callable[..., Page], server: HttpServer, tmp_path: Path) -> None:
    """For a picture that cannot be read, for options that the model does not have; both go with their cause."""
    page = visit()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(CAT.read_bytes()[:400])
    page.locator("#files").set_input_files(broken)
    said = httpx.post(f"{server.url}/v1/classify", files={"image": broken.read_bytes()}, data={"labels": "a"}).json()
    alert = page.get_by_role("alert")
    expect(alert).to_have_text(said["detail"])
    expect(alert).to_have_attribute("lang", "en")
    page.get_by_role("button", name="A cat").click()
    best(page, "cat")
    expect(alert).to_be_hidden()
    page.get_by_label("Scoring", exact=True).select_option("sigmoid")
    expect(alert).to_contain_text("sigmoid")
    page.get_by_label("Scoring", exact=True).select_option("softmax")
    expect(alert).to_be_hidden()
    page.locator("#files").set_input_files(ROOT / "README.md")
    expect(alert).to_have_text("These are no files with pictures. Drop, paste or choose pictures.")


def test_an_older_request_is_aborted(visit: Callable[..., Page]) -> None:
    """A change of labels ends the request under way, and an answer that still comes is not shown."""
    page = visit()
    page.get_by_role("button", name="A cat").click()
    best(page, "cat")
    page.evaluate(
        "() => { const real = fetch; window.signals = [];"
        " window.fetch = (url, init) => { signals.push(init.signal); return real(url, init); }; }"
    )
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/classify", hold)
    add_label(page, "lamp")
    page.wait_for_function("() => signals.length === 1")
    page.unroute("**/v1/classify")
    add_label(page, "sofa")
    expect(page.locator("#bars li")).to_have_count(8)
    assert [True, False] == page.evaluate("signals.map((each) => each.aborted)")
    stale = {"model": "demo", "predictions": [{"label": "stale", "score": 1}]}
    for route in held:
        with suppress(Error):  # the browser may have dropped it
            route.fulfill(json=stale)
    settled(page)
    assert "stale" not in bars(page)


def test_a_key_is_asked_for_and_kept_in_memory_only(visit: Callable[..., Page], keyed: str) -> None:
    """A wrong one is refused in the service's words; the right one answers, is shown nowhere, and is gone on reload."""
    page = visit(keyed)
    expect(page.get_by_role("alert")).to_contain_text("This server needs an API key")
    expect(page.get_by_label("API key")).to_be_focused()
    assert [] == findings(page, runOnly=["label", "color-contrast"])
    page.keyboard.type("another-key-of-16-characters")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This API key is unknown")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_label("API key")).to_be_hidden()
    page.get_by_role("button", name="A cat").click()
    expect(page.locator("#bars li")).to_have_count(6)
    expect(page.locator("#code")).to_contain_text("Authorization: Bearer $ANYCLASS_API_KEY")
    assert KEY not in page.locator("body").inner_text()
    stored = page.evaluate("() => [localStorage.length, sessionStorage.length, document.cookie, location.href]")
    assert [0, 0, "", f"{keyed}/"] == stored
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()


def test_the_keyboard_is_enough(visit: Callable[..., Page]) -> None:
    """From the top of the page: an example, labels, their removal, a tab; focus is never lost."""
    page = visit()
    focused = "document.activeElement.textContent.trim() || document.activeElement.id"

    def tab_to(text: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(focused) == text:
                return
        raise AssertionError(f"{text} is not reached")

    tab_to("A cat")
    page.keyboard.press("Enter")
    best(page, "cat")
    expect(page.locator("#spoken")).to_contain_text("cat, ")
    tab_to("label")
    page.keyboard.type("kitten")
    page.keyboard.press("Enter")
    expect(page.locator("#bars li")).to_have_count(7)
    page.keyboard.press("Backspace")
    expect(page.locator("#bars li")).to_have_count(6)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#bars li")).to_have_count(5)
    assert "Remove chair" == page.evaluate("document.activeElement.getAttribute('aria-label')")
    # Enter that ends a Korean syllable adds nothing.
    page.get_by_label("Add a label").fill("고양이")
    page.get_by_label("Add a label").dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    expect(page.locator("#chips li")).to_have_count(5)
    page.keyboard.press("Tab")
    expect(page.locator("#chips li")).to_have_count(6)  # what is typed counts when the field is left
    tab_to("curl")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Python")).to_be_focused()
    expect(page.get_by_role("tabpanel", name="Python")).to_contain_text("import requests")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit: Callable[..., Page], scheme: str) -> None:
    """With answers, several pictures, an error, every field in use."""
    page = visit(color_scheme=scheme)
    page.get_by_role("button", name="A cat").click()
    page.get_by_role("button", name="A cup").click()
    best(page, "cup")
    page.get_by_label("Prompt templates").select_option("your own")
    page.get_by_label("Your templates").fill("a {}.\nthe {}.")
    settled(page)
    page.locator("#files").set_input_files(ROOT / "README.md")
    expect(page.get_by_role("alert")).to_be_visible()
    # The palette is all that dark changes.
    assert [] == findings(page, **({} if scheme == "light" else {"runOnly": ["color-contrast"]}))
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (scheme == "dark") == (sum(map(int, re.findall(r"\d+", back))) < 3 * 64)


def test_a_narrow_screen_in_korean(visit: Callable[..., Page]) -> None:
    """Nothing is wider than the screen, what is touched is large enough, and every text is Korean."""
    page = visit(locale="ko-KR", **NARROW)
    expect(page.locator("html")).to_have_attribute("lang", "ko")
    page.get_by_role("button", name="고양이", exact=True).click()
    best(page, "cat")
    expect(page.get_by_role("button", name="사진 찍기")).to_be_visible()
    expect(page.locator("#best")).to_contain_text("cat, ")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    # An error is in sight although the field that caused it lies far below the top.
    page.evaluate("document.querySelector('#scoring').scrollIntoView({ block: 'start' })")
    assert page.evaluate("scrollY") > 740
    page.locator("#scoring").select_option("sigmoid")
    expect(page.get_by_role("alert")).to_be_in_viewport()
    small = """() => [...document.querySelectorAll("button, select, input[type=range]")]
      .filter((each) => each.checkVisibility() && Math.min(each.offsetWidth, each.offsetHeight) < 24)
      .map((each) => each.id)"""
    assert [] == page.evaluate(small)
    assert [] == findings(page)
    texts = page.evaluate("import('./page/texts.js').then(({ TEXTS }) => TEXTS)")
    assert texts["en"].keys() == texts["ko"].keys()
    gaps = {key: re.findall(r"\{\w+\}", text) for key, text in texts["en"].items()}
    assert gaps.keys() == {
        key for key, text in texts["ko"].items() if set(re.findall(r"\{\w+\}", text)) == set(gaps[key])
    }
    english = page.evaluate(
        "() => [...document.querySelectorAll('[data-text]')].filter((each) => /[A-Za-z]{4}/.test(each.textContent)"
        " && !['Enter'].some((word) => each.textContent.includes(word))).map((each) => each.textContent)"
    )
    assert [] == english


def test_the_shown_requests_run_and_give_the_same_answer(
    visit: Callable[..., Page], server: HttpServer, tmp_path: Path
) -> None:
    """curl, Python and JavaScript, as they are copied; also with names and labels full of quotes."""
    page = visit()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    programs = {"Python": [sys.executable, "-"], "curl": ["bash", "-s"]}
    if shutil.which("node"):
        programs["JavaScript"] = ["node", "--input-type=module", "-"]
    picture = tmp_path / 'it\'s "my" cup; no, $HOME.jpg'
    shutil.copy(CUP, picture)
    page.get_by_label("Temperature").fill("0.3")
    for way, label in (("example", "@it's; a `cat` \\ $HOME"), ("file", "rabbit;type=text")):
        if way == "example":
            page.get_by_role("button", name="A cat").click()
        else:
            page.locator("#files").set_input_files(picture)
        add_label(page, label)
        best(page, "cat" if way == "example" else "cup")
        expect(page.locator("#bars .name", has_text=label)).to_have_count(1)
        shown = bars(page)
        for name, command in programs.items():
            page.get_by_role("tab", name=name).click()
            page.get_by_role("button", name=re.compile("Cop")).click()
            expect(page.locator("#spoken")).to_have_text("Copied")
            program = page.evaluate("navigator.clipboard.readText()")
            done = subprocess.run(command, input=program, cwd=tmp_path, capture_output=True, text=True, check=True)
            found = {each["label"]: each["score"] for each in json.loads(done.stdout)["predictions"]}
            assert shown == {
                each: "< 0.1%" if score < 0.0005 else f"{100 * score:.1f}%" for each, score in found.items()
            }, name
