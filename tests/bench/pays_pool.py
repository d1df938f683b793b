"""Make the pool of `tests.bench.pays`: pictures with good captions, among what a crawl finds besides."""

from __future__ import annotations

import io
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance

from tests.support.made_titles import YFCC, made_titles

NATURAL: Final = {"right": 75, "wrong": 10, "of other things": 15}
"""Percent of the natural English captions: naming the picture's class, another one, or none."""
HEAD: Final = 20
"""Times that the most frequent class is more frequent than the rarest; those between follow Zipf's law."""
COPIES: Final = 0.10
"""Copies, as a share of the other pairs."""
REPOSTED: Final = 0.01
"""Share of the pairs that copies are made of: on average each has ten."""
GROUP_ROWS: Final = 500

_RIGHT: Final = (
    "A {thing} {place}",
    "My {thing} {place}",
    "The {thing} that we saw {place}",
    "Photo of a {thing}",
    "a photo of a {thing}.",
    "a picture of a {thing} {place}",
    "This {thing} was {place}",
    "Look at this {thing}!",
    "We found the {thing} {place}",
    "Just another {thing} {place}",
    "{thing} {place}, seen from the side",
    "One more picture of the {thing}",
)
_PLACES: Final = (
    "in the morning",
    "near our house",
    "at the end of the day",
    "on a rainy afternoon",
    "close to the village",
    "in front of the old mill",
    "by the river",
    "from last weekend",
)
_FOREIGN: Final = {
    "airplane": ("Ein Flugzeug", "Un avion", "Un avión", "Самолёт"),
    "automobile": ("Ein Auto", "Une voiture", "Un coche", "Машина"),
    "bird": ("Ein Vogel", "Un oiseau", "Un pájaro", "Птица"),
    "cat": ("Eine Katze", "Un chat", "Un gato", "Кошка"),
    "deer": ("Ein Hirsch", "Un cerf", "Un ciervo", "Олень"),
    "dog": ("Ein Hund", "Un chien", "Un perro", "Собака"),
    "frog": ("Ein Frosch", "Une grenouille", "Una rana", "Лягушка"),
    "horse": ("Ein Pferd", "Un cheval", "Un caballo", "Лошадь"),
    "ship": ("Ein Schiff", "Un bateau", "Un barco", "Корабль"),
    "truck": ("Ein Lastwagen", "Un camion", "Un camión", "Грузовик"),
}
_FOREIGN_PLACES: Final = ("am frühen Morgen im Dorf", "devant notre maison", "cerca del río", "у реки утром")


@dataclass(frozen=True)
class Pictures:
    """Real pictures: by class, those without part in the evaluation, and others; and the held-out ones by class."""

    things: dict[str, list[bytes]]
    others: list[tuple[bytes, str]]
    held_out: dict[str, list[bytes]]


def read_pictures(things: Path, others: Path, held_out: int) -> Pictures:
    """Read the pictures of two Parquet files with the columns image and label.

    Args:
        things: pictures of the classes.
        others: pictures of anything else.
        held_out: pictures of each class that go into the evaluation, the last ones.
    """
    by_class = defaultdict(list)
    for image, label in _rows(things):
        by_class[label].append(image)
    few = [label for label, images in by_class.items() if len(images) <= held_out]
    if few:
        raise SystemExit(f"{things}: {held_out} pictures of each class are held out, and {few[0]!r} has no more")
    return Pictures(
        {label: images[:-held_out] for label, images in sorted(by_class.items())},
        list(_rows(others)),
        {label: images[-held_out:] for label, images in sorted(by_class.items())},
    )


def write_pool(folder: Path, pictures: Pictures, size: int, seed: int) -> None:
    """Write shards of pairs, with the column kind, in random order; the same arguments give the same bytes.

    Args:
        folder: to write into.
        pictures: to take.
        size: pairs besides the copies.
        seed: any.
    """
    chance = random.Random(seed)
    rows = list(_pairs(pictures, size, chance))
    reposted = chance.sample(rows, max(1, round(REPOSTED * size)))
    for _ in range(round(COPIES * size)):
        image, text, _ = chance.choice(reposted)
        rows.append((_copy(image, chance), text, "copy"))
    chance.shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    shards = max(1, len(rows) // 20_000)
    for shard in range(shards):
        write_rows(folder / f"{shard:05}.parquet", rows[shard::shards], shard, shards)


def write_rows(path: Path, rows: Sequence[tuple[bytes, str, str]], first: int, step: int) -> None:
    """Write pairs as Parquet, with ids that count from `first` by `step`."""
    image, text, kind = zip(*rows, strict=True)
    ids = [f"{first + step * row:06}" for row in range(len(rows))]
    table = pa.table({"id": ids, "image": pa.array(image, pa.binary()), "text": text, "kind": kind})
    pq.write_table(table, path, row_group_size=GROUP_ROWS)


def write_held_out(path: Path, pictures: Pictures) -> None:
    """Write the held-out pictures with their classes."""
    rows = [(image, label) for label, images in pictures.held_out.items() for image in images]
    image, label = zip(*rows, strict=True)
    pq.write_table(pa.table({"image": pa.array(image, pa.binary()), "label": label}), path)


def counts_of_classes(classes: Sequence[str], total: int) -> dict[str, int]:
    """Divide pairs among classes by Zipf's law, the first one `HEAD` times as frequent as the last."""
    exponent = math.log(HEAD) / math.log(len(classes))
    weights = [rank**-exponent for rank in range(1, len(classes) + 1)]
    return {name: round(total * weight / sum(weights)) for name, weight in zip(classes, weights, strict=True)}


def _pairs(pictures: Pictures, size: int, chance: random.Random) -> Iterator[tuple[bytes, str, str]]:
    natural = size * YFCC["keep"] / 100
    ranked = list(pictures.things)
    chance.shuffle(ranked)
    right = counts_of_classes(ranked, round(natural * NATURAL["right"] / 100))
    left = []
    for label, images in pictures.things.items():
        if len(images) < right[label]:
            raise SystemExit(f"{right[label]} pictures of {label!r} are needed, and the data have {len(images)}")
        mine = chance.sample(images, len(images))
        for image in mine[: right[label]]:
            yield image, _right(label, chance), "right"
        left += [(image, label) for image in mine[right[label] :]]
    left += pictures.others
    chance.shuffle(left)
    if len(left) < size:
        raise SystemExit(f"{size} pairs need as many pictures besides those with good captions; there are {len(left)}")
    rest = iter(left)
    for _ in range(round(natural * NATURAL["wrong"] / 100)):
        image, label = next(rest)
        yield image, _right(chance.choice([other for other in ranked if other != label]), chance), "wrong"
    others = {kind: share for kind, share in YFCC.items() if kind != "keep"}
    others["of other things"] = YFCC["keep"] * NATURAL["of other things"] / 100
    titles = {"keep" if kind == "of other things" else kind: share for kind, share in others.items()}
    number = round(size * sum(others.values()) / 100)
    for kind, title in made_titles(number, chance.randrange(2**32), titles):
        image, label = next(rest)
        true = chance.random() < 0.5
        yield image, _true(kind, label, title, chance) if true else title, "of other things" if kind == "keep" else kind


def _right(label: str, chance: random.Random) -> str:
    text = chance.choice(_RIGHT).format(thing=label, place=chance.choice(_PLACES))
    if label[0] in "aeiou":
        text = text.replace("a " + label, "an " + label).replace("A " + label, "An " + label)
    return text[0].upper() + text[1:] if chance.random() < 0.5 else text


def _true(kind: str, label: str, title: str, chance: random.Random) -> str:
    """Return a caption of this kind that names the picture's class; where none is known, the title."""
    if kind == "tags":
        return f"#{label.replace(' ', '')} {title}" if title.startswith("#") else f"{label}, {title}"
    if kind == "short":
        return label
    if kind == "language" and label in _FOREIGN:
        language = chance.randrange(len(_FOREIGN_PLACES))
        return f"{_FOREIGN[label][language]} {_FOREIGN_PLACES[language]}"
    if kind in {"url", "html", "mixed", "mojibake"}:
        return f"{label} {title}"
    return title


def _copy(image: bytes, chance: random.Random) -> bytes:
    """Return a picture as another site shows it: the same bytes, smaller, compressed, mirrored, or brighter."""
    made = chance.choice(("same", "compressed", "smaller", "mirrored", "brighter"))
    if made == "same":
        return image
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    if made == "smaller":
        picture = picture.resize((max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4)))
    elif made == "mirrored":
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif made == "brighter":
        picture = ImageEnhance.Brightness(picture).enhance(chance.choice((0.9, 1.1)))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=60 if made == "compressed" else 85)
    return stream.getvalue()


def _rows(path: Path) -> Iterator[tuple[bytes, str]]:
    table = pq.read_table(path, columns=["image", "label"])
    yield from zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True)
