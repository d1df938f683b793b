"""Write docs/licences.md: the packages of the CPU image and their licences, from the installed metadata."""

import re
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs/licences.md"
EXTRA: Final = "cpu"

_BEGIN: Final = "<!-- results: begin (written by make licences) -->"
_END: Final = "<!-- results: end -->"
_CLASSIFIER: Final = "License :: OSI Approved :: "
_MAX_CHARS: Final = 80


def shipped() -> dict[str, Distribution]:
    """Return the packages that `anyclass[cpu]` brings, by normalised name; those of other platforms are left out."""
    found: dict[str, Distribution] = {}
    waiting = [("anyclass", EXTRA)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        package = distribution(name)
        found[name] = package
        for text in package.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(normalised(requirement.name), each) for each in ("", *sorted(requirement.extras))]
    del found["anyclass"]
    return found


def normalised(name: str) -> str:
    """Return the name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(package: Distribution) -> str:
    """Return the SPDX expression of a package, or else the name of its licence, or else its classifiers."""
    metadata = package.metadata
    if expression := metadata.get_all("License-Expression"):
        return str(expression[0])
    classifiers = [each for each in metadata.get_all("Classifier") or [] if each.startswith(_CLASSIFIER)]
    if classifiers:
        return ", ".join(sorted(each.removeprefix(_CLASSIFIER) for each in classifiers))
    text = " ".join(" ".join(metadata.get_all("License") or []).split())
    return text if 0 < len(text) <= _MAX_CHARS else "see the package"


def table() -> str:
    """Return the rows in Markdown."""
    rows = ["| package | version | licence |", "|---|---|---|"]
    rows += [
        f"| {name} | {each.version.split('+')[0]} | {licence_of(each)} |" for name, each in sorted(shipped().items())
    ]
    return "\n".join(rows)


def written(page: str) -> str:
    """Return the page with the table of this environment."""
    before, _, rest = page.partition(_BEGIN)
    return f"{before}{_BEGIN}\n\n{table()}\n\n{_END}{rest.partition(_END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
