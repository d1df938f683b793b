"""The Markdown pages: every page is listed, every link resolves, every line fits."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.model.manifest import DEMO_BUNDLE
from tests.support.places import ROOT

DOCS = ROOT / "docs"
CARD = DOCS / "demo-model.md"
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "SECURITY.md",
        *ROOT.glob("examples/*.md"),
        *DOCS.rglob("*.md"),
    ]
)
MAX_WIDTH = 120

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name(path: Path) -> str:
    """Return the path as the project has it."""
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line outside code blocks and generated results."""
    fenced = generated = False
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif line.startswith("<!-- results: "):
            generated = "begin" in line
        elif not (fenced or generated or line.startswith("    ")):
            yield number, line


def links(path: Path) -> set[str]:
    """Return the relative links of a page."""
    found = {target for _, line in prose(path) for target in LINK.findall(line)}
    return {target for target in found if not re.match(r"[a-z]+:", target)}


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    text = "\n".join(line for _, line in prose(path))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def linked_pages(path: Path) -> set[Path]:
    """Return the files that a page links to."""
    return {(path.parent / target.partition("#")[0]).resolve() for target in links(path)}


def test_every_page_is_linked_from_the_readme_or_the_index() -> None:
    """A page that nothing leads to is found by its author only."""
    reachable = linked_pages(ROOT / "README.md") | linked_pages(DOCS / "README.md")
    pages = {page for page in DOCS.glob("*.md") if page.name != "README.md"}
    assert [] == sorted(name(page) for page in pages - reachable)
    assert DOCS / "README.md" in linked_pages(ROOT / "README.md")
    assert ROOT / "CONTRIBUTING.md" in linked_pages(ROOT / "README.md")


def test_every_decision_is_in_its_index() -> None:
    """docs/adr/README.md has a row for each record, under the record's number."""
    index = DOCS / "adr/README.md"
    records = {page for page in DOCS.glob("adr/*.md") if page != index}
    assert [] == sorted(name(page) for page in records ^ {page for page in linked_pages(index) if page in records})
    for record in records:
        assert f"[{record.name[:4]}]({record.name})" in index.read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_resolves(page: Path) -> None:
    """Files exist, and anchors are headings."""
    broken = []
    for target in sorted(links(page)):
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert [] == broken


@pytest.mark.parametrize("page", [page for page in PAGES if page != CARD], ids=name)
def test_no_line_is_too_long(page: Path) -> None:
    """Tables, links and code blocks aside."""
    long = []
    for number, line in prose(page):
        is_table, is_link = line.lstrip().startswith("|"), " " not in LINK.sub("", line.strip())
        if len(line) > MAX_WIDTH and not is_table and not is_link:
            long.append(f"{name(page)}:{number}")
    assert [] == long


def test_the_model_card_is_the_one_in_the_bundle() -> None:
    """The manifest of the shipped bundle holds docs/demo-model.md as it stands, so both change together."""
    manifest = json.loads((DEMO_BUNDLE / "manifest.json").read_text("utf-8"))
    assert manifest["provenance"]["card"] == CARD.read_text("utf-8")


@pytest.mark.parametrize("word", ["graceful shutdown", "CORS", "fine-tune", "API keys", "rate limits", "macOS"])
def test_the_pages_have_the_words_that_engineers_search_for(word: str) -> None:
    """One word for each usual question, in the README or in docs/."""
    assert any(word in page.read_text("utf-8") for page in (ROOT / "README.md", *DOCS.glob("*.md")))


def test_the_second_command_of_the_readme_is_a_real_model() -> None:
    """Its size and time stand beside it, and the limits of the demo before the first answer."""
    text = (ROOT / "README.md").read_text("utf-8")
    first, second = re.findall(r"^    make .+$", text, re.MULTILINE)[:2]
    assert first.split("#")[0].strip() == "make run"
    assert re.search(r"MODEL=openai/clip-vit-base-patch32 .*\d+ MB.* \d+ minutes", second)
    assert text.index("53% right among ten everyday labels") < text.index("```json")


def test_the_examples_work_on_macos_too() -> None:
    """`base64 -w0` is GNU's; without options and with tr it is the same everywhere."""
    assert [] == [name(page) for page in PAGES if "base64 -w" in page.read_text("utf-8")]
