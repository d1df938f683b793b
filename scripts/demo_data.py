"""Prepare the data of the demo model: one name for one thing, words in several languages, small sources repeated.

    python scripts/demo_data.py SOURCE OUT [--without tiny-imagenet]

SOURCE holds ``cifar10-train.parquet``, ``cifar100-train.parquet``, ``free/`` and ``research/``, as docs/demo-model.md
names them. OUT gets a Parquet file for each, with the columns image, text and label: the recipe's files.

The text of a row is its own noun, another name of its class, or its class in another language, drawn from a hash of the
row. The trainer takes the class in the recipe's other draws. Each source is cut to a multiple of 25 rows before it is
repeated, so the rows that the recipe holds out are the same in each copy.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

HELD_OUT_EVERY: Final = 25
GROUP_ROWS: Final = 1000
SOURCES: Final[Mapping[str, int]] = {
    "cifar10-train": 1,
    "cifar100-train": 1,
    "free/caltech101": 3,
    "free/clothing": 3,
    "free/grocery": 3,
    "free/trashnet": 3,
    "free/recipes": 2,
    "free/openclipart": 1,
    "free/fluent-emoji": 1,
    "research/tiny-imagenet": 1,
}
"""File and number of its copies."""

LANGUAGES: Final = ("ko", "ja", "zh", "de", "fr", "es")
TRANSLATED: Final = 0.25
"""Share of the nouns that are replaced by the class in another language, where a name in it is known."""
RENAMED: Final = 0.5
"""Share of the nouns that are replaced by another name of the class, where the class has one."""

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "airplane": ("plane", "aeroplane"),
    "bicycle": ("bike",),
    "bison": ("buffalo",),
    "car": ("automobile",),
    "chimpanzee": ("ape",),
    "couch": ("sofa",),
    "cow": ("cattle",),
    "cup": ("mug",),
    "lawn mower": ("lawnmower",),
    "motorcycle": ("motorbike",),
    "necktie": ("tie",),
    "phone": ("telephone",),
    "refrigerator": ("fridge",),
    "streetcar": ("tram",),
    "television": ("TV",),
    "trousers": ("pants",),
    "wardrobe": ("closet",),
}
"""The name of a class, and other names for the same thing."""
_ONE_NAME: Final = {other: name for name, others in NAMES.items() for other in others if other != "ape"}
_PICTOGRAM_SUFFIXES: Final = (" 얼굴", "の顔", "脸", "gesicht")
"""Parts of an emoji's name that say how it is drawn."""


def main() -> int:
    """Write the files, and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of the sources")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a source out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    words = translations(options.source)
    for name, copies in SOURCES.items():
        file = Path(name).name
        if file in options.without:
            continue
        rows = pq.read_table(options.source / f"{name}.parquet").to_pylist()
        rows = rows[: len(rows) // HELD_OUT_EVERY * HELD_OUT_EVERY]
        prepared = [prepare(row, copy, words) for copy in range(copies) for row in rows]
        schema = pa.schema([("image", pa.binary()), ("text", pa.string()), ("label", pa.string())])
        pq.write_table(pa.Table.from_pylist(prepared, schema), options.out / f"{file}.parquet", GROUP_ROWS)
        print(f"{file}: {len(rows):,} rows, {copies} times; {prepared[0]['text']!r} is {prepared[0]['label']!r}")
    return 0


def prepare(row: Mapping[str, Any], copy: int, words: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return a row for the trainer; an empty class becomes none."""
    label = _ONE_NAME.get(row["label"], row["label"]) or None
    text = row["text"]
    if label is None:
        text = text.split(". ")[0]  # the title; a description may follow
    else:
        chance = draws(row["image"], copy)
        names, foreign = NAMES.get(label, ()), words.get(label, ())
        if foreign and next(chance) < TRANSLATED:
            text = foreign[int(next(chance) * len(foreign))]
        elif names and next(chance) < RENAMED:
            text = names[int(next(chance) * len(names))]
    return {"image": row["image"], "text": text, "label": label}


def draws(image: bytes, copy: int) -> Iterator[float]:
    """Yield numbers in [0, 1) that follow from a picture and the number of its copy."""
    digest = hashlib.sha256(image + copy.to_bytes(2, "little")).digest()
    for at in range(0, 32, 4):
        yield int.from_bytes(digest[at : at + 4], "little") / 2**32


def translations(source: Path) -> dict[str, tuple[str, ...]]:
    """Return names of things in other languages, by their English name: the emoji's."""
    emoji = pq.read_table(source / "free/fluent-emoji.parquet", columns=["id", "text"]).to_pylist()
    english = {row["id"]: _ONE_NAME.get(row["text"], row["text"]) for row in emoji}
    found: dict[str, dict[str, str]] = {}
    for row in pq.read_table(source / "free/captions-multilingual.parquet").to_pylist():
        name = english.get(row["id"])
        if name is not None and row["lang"] in LANGUAGES and row["source"].startswith("fluent"):
            word = row["text"]
            for suffix in _PICTOGRAM_SUFFIXES:
                word = word.removesuffix(suffix)
            found.setdefault(name, {})[row["lang"]] = word
    return {name: tuple(words[lang] for lang in LANGUAGES if lang in words) for name, words in found.items()}


if __name__ == "__main__":
    sys.exit(main())
