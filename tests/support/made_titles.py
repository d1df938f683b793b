"""Titles made from a seed, each with its label, in a mixture: for tests and benchmarks of the text filter.

The labels are right by construction: natural titles come from a small English grammar, foreign ones from grammars of
sixteen languages, junk from the forms that cameras, editors and sites give their names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Final

EVEN: Final = {
    "keep": 45, "file name": 12, "date": 4, "url": 4, "html": 4, "tags": 8, "short": 7, "language": 12, "mixed": 2,
    "mojibake": 2,
}  # fmt: skip
"""Percent of each label: about half natural."""

YFCC: Final = {
    "keep": 15, "file name": 40, "date": 5, "url": 1.5, "html": 1.5, "tags": 6, "short": 12, "language": 17,
    "mixed": 1, "mojibake": 1,
}  # fmt: skip
"""Shaped as YFCC100M's titles: mostly names of files; 15% natural English, as CLIP's authors found."""

_NOUNS = [
    "dog",
    "cat",
    "horse",
    "lighthouse",
    "bridge",
    "waterfall",
    "bicycle",
    "tractor",
    "sailboat",
    "church",
    "market",
    "castle",
    "garden",
    "puppy",
    "kitten",
    "robin",
    "heron",
    "butterfly",
    "mushroom",
    "pumpkin",
    "cupcake",
    "teapot",
    "guitar",
    "piano",
    "violin",
    "drummer",
    "cyclist",
    "skateboarder",
    "fisherman",
    "nurse",
    "waiter",
    "toddler",
    "grandfather",
    "bride",
    "crowd",
    "parade",
    "festival",
    "carnival",
    "aquarium",
    "greenhouse",
    "workshop",
    "staircase",
    "balcony",
    "chimney",
    "windmill",
    "tram",
    "ferry",
    "glider",
    "balloon",
    "rocket",
    "statue",
    "fountain",
    "mural",
    "painting",
    "quilt",
    "sweater",
    "necklace",
    "telescope",
]
_ADJECTIVES = [
    "old",
    "red",
    "tiny",
    "huge",
    "rusty",
    "wooden",
    "colourful",
    "sleepy",
    "muddy",
    "frozen",
    "abandoned",
    "famous",
    "quiet",
    "crowded",
    "sunny",
    "foggy",
    "vintage",
    "striped",
    "golden",
    "broken",
    "cheerful",
    "curious",
    "elegant",
    "fluffy",
    "gigantic",
    "hidden",
    "lonely",
    "mysterious",
    "playful",
    "shiny",
]
_PLACES = [
    "in the park",
    "on the beach",
    "near the river",
    "at the zoo",
    "behind the barn",
    "under the bridge",
    "in Central Park",
    "in New Orleans",
    "by the lake",
    "at the farm",
    "in my backyard",
    "on the roof",
    "along the canal",
    "at Yellowstone",
    "in downtown Chicago",
    "outside the library",
    "in Scotland",
    "at the county fair",
    "across the street",
    "in front of the museum",
    "at my parents' house",
    "on the way to Kyoto",
    "in the old town of Prague",
    "from our hotel room",
    "near Lake Placid",
]
_VERBS = [
    "sleeping",
    "waiting",
    "playing",
    "running",
    "standing",
    "sitting",
    "looking",
    "hiding",
    "dancing",
    "jumping",
    "flying",
    "resting",
    "shining",
    "drifting",
]
_TIMES = [
    "at night",
    "at dawn",
    "in the morning",
    "after the storm",
    "before sunset",
    "in winter",
    "during the summer of 2009",
    "on a rainy day",
    "last weekend",
    "in early spring",
    "on Christmas morning",
]
_PEOPLE = [
    "Emma",
    "Jack",
    "my sister",
    "our neighbour",
    "Uncle Bob",
    "Grandma",
    "the kids",
    "Dad",
    "my best friend",
    "Aunt Carol",
    "Sam and Lily",
]
_SENTENCES = [
    "{person} and the {noun} {place}",
    "We found this {adjective} {noun} {place}",
    "{person} with a {adjective} {noun}",
    "A {adjective} {noun} {verb} {place}",
    "The {noun} {place} {time}",
    "{noun_} {verb} {place}",
    "{adjective_} {noun} {time}",
    "Two {noun}s {verb} {place}",
    "This is the {noun} that {person} built",
    "I took this picture of a {noun} {place}",
    "Look at that {adjective} {noun}!",
    "Is this the biggest {noun} {place}?",
    "My {adjective} {noun}",
    "The {adjective} {noun}",
    "{adjective_} {noun}",
    "{person} {verb} {place} {time}",
    "{noun_} and {noun} {time}",
    "View of the {noun} {time}",
    "We spent the day {place}, and {person} saw a {noun}.",
    "Portrait of a {noun}",
    "It was cold {place}, but the {noun} was worth it",
    "a {noun} {place}",
    "the {adjective} {noun} {time}",
    "Close-up of a {adjective} {noun}",
    "{person}'s {noun}",
    "Nothing but a {noun}",
    "The day {person} met a {noun}",
]
_TAGS = [
    "sunset",
    "beach",
    "sea",
    "travel",
    "nature",
    "nikon",
    "canon",
    "macro",
    "flower",
    "bokeh",
    "portrait",
    "street",
    "city",
    "night",
    "blue",
    "sky",
    "clouds",
    "water",
    "architecture",
    "urban",
    "europe",
    "italy",
    "california",
    "winter",
    "snow",
    "vacation",
    "wedding",
    "family",
    "food",
    "animal",
    "bird",
    "landscape",
    "hdr",
]

_FOREIGN = {
    "de": (
        "der Hund|unsere Katze|das alte Haus|ein Kind|die Blumen|meine Schwester",
        "am See|im Wald|in der Stadt|auf dem Berg|vor der Kirche|bei Nacht",
    ),
    "fr": (
        "le chien|notre chat|la vieille maison|un enfant|les fleurs|ma sœur",
        "au bord du lac|dans la forêt|en ville|sur la montagne|devant l'église|pendant la nuit",
    ),
    "es": (
        "el perro|nuestro gato|la casa vieja|un niño|las flores|mi hermana",
        "junto al lago|en el bosque|en la ciudad|sobre la montaña|delante de la iglesia|por la noche",
    ),
    "it": (
        "il cane|il nostro gatto|la vecchia casa|un bambino|i fiori|mia sorella",
        "sul lago|nel bosco|in città|sulla montagna|davanti alla chiesa|di notte",
    ),
    "pt": (
        "o cachorro|nosso gato|a casa velha|uma criança|as flores|minha irmã",
        "na beira do lago|na floresta|na cidade|na montanha|em frente da igreja|durante a noite",
    ),
    "nl": (
        "de hond|onze kat|het oude huis|een kind|de bloemen|mijn zus",
        "aan het meer|in het bos|in de stad|op de berg|voor de kerk|in de nacht",
    ),
    "sv": (
        "hunden|vår katt|det gamla huset|ett barn|blommorna|min syster",
        "vid sjön|i skogen|i staden|på berget|framför kyrkan|under natten",
    ),
    "pl": (
        "nasz pies|mały kot|stary dom|dziecko bawi się|kwiaty kwitną|moja siostra",
        "nad jeziorem|w lesie|w mieście|na górze|przed kościołem|w nocy",
    ),
    "cs": (
        "náš pes|malá kočka|starý dům|dítě si hraje|květiny kvetou|moje sestra",
        "u jezera|v lese|ve městě|na hoře|před kostelem|v noci",
    ),
    "tr": (
        "köpeğimiz|küçük kedi|eski ev|bir çocuk|çiçekler|kız kardeşim",
        "göl kenarında|ormanda|şehirde|dağın üzerinde|caminin önünde|gece vakti",
    ),
    "fi": (
        "meidän koira|pieni kissa|vanha talo|lapsi leikkii|kauniit kukat|minun siskoni",
        "järven rannalla|metsässä|kaupungissa|vuorella|kirkon edessä|yöllä",
    ),
    "ru": (
        "наша собака|маленькая кошка|старый дом|ребёнок играет|цветы|моя сестра",
        "у озера|в лесу|в городе|на горе|перед церковью|ночью",
    ),
    "ja": (
        "私の犬|小さな猫|古い家|子供たち|きれいな花|妹と",
        "湖のほとり|森の中で|町にて|山の上|神社の前|夜の風景",
    ),
    "zh": (
        "我们的狗|小猫|老房子|孩子在玩|美丽的花|我的妹妹",
        "在湖边|在森林里|在城市里|在山上|在教堂前|在晚上",
    ),
    "ko": (
        "우리 강아지|작은 고양이|오래된 집|아이들이 놀고|예쁜 꽃|내 여동생",
        "호숫가에서|숲 속에서|도시에서|산 위에서|교회 앞에서|밤에",
    ),
    "ar": (
        "كلبنا الصغير|القطة الصغيرة|البيت القديم|طفل يلعب|الزهور الجميلة|أختي",
        "بجانب البحيرة|في الغابة|في المدينة|فوق الجبل|أمام المسجد|في الليل",
    ),
}  # fmt: skip


def made_titles(number: int, seed: int, mixture: Mapping[str, float] = EVEN) -> Iterator[tuple[str, str]]:
    """Yield pairs of label and title; the same arguments give the same titles.

    Args:
        number: of titles.
        seed: any.
        mixture: weight of each label.
    """
    chance = random.Random(seed)
    labels, weights = list(mixture), list(mixture.values())
    for label in chance.choices(labels, weights, k=number):
        yield label, _MAKERS[label](chance)


def _natural(chance: random.Random) -> str:
    noun, adjective = chance.choice(_NOUNS), chance.choice(_ADJECTIVES)
    title = chance.choice(_SENTENCES).format(
        person=chance.choice(_PEOPLE),
        noun=noun,
        noun_=noun.capitalize(),
        adjective=adjective,
        adjective_=adjective.capitalize(),
        place=chance.choice(_PLACES),
        time=chance.choice(_TIMES),
        verb=chance.choice(_VERBS),
    )
    shape = chance.random()
    if shape < 0.05:
        return title.upper()
    return title[0].upper() + title[1:] if shape < 0.85 else title.lower()


def _file_name(chance: random.Random) -> str:
    number = chance.randrange(10_000)
    stem = chance.choice(
        (
            f"IMG_{number:04}", f"DSC{number:05}", f"DSCN{number:04}", f"DSC_{number:04}", f"_MG_{number:04}",
            f"P{chance.randrange(10**7):07}", f"CIMG{number:04}", f"100_{number:04}", f"IMGP{number:04}",
            f"{_day(chance).replace('-', '')}_{chance.randrange(10**6):06}", f"DSCF{number:04}", f"PICT{number:04}",
            f"MVI_{number:04}", f"Picture {number % 999:03}", f"GOPR{number:04}", f"SAM_{number:04}",
            f"{chance.choice(_NOUNS)}_{chance.choice(_ADJECTIVES)}_{number % 99}", f"scan{number:04}", "untitled",
        )
    )  # fmt: skip
    return stem + chance.choice(("", "", "", ".JPG", ".jpg", " (2)", " copy", ".png"))


def _day(chance: random.Random) -> str:
    return f"{chance.randrange(1998, 2026)}-{chance.randrange(1, 13):02}-{chance.randrange(1, 29):02}"


def _date(chance: random.Random) -> str:
    year, month, day = _day(chance).split("-")
    name = chance.choice(
        ("January", "Feb", "March", "Apr.", "May", "June", "July", "August", "Sept", "Oct", "December")
    )
    clock = f"{chance.randrange(24):02}:{chance.randrange(60):02}"
    return chance.choice(
        (
            f"{year}-{month}-{day}", f"{day}.{month}.{year}", f"{month}/{day}/{year[2:]}", f"{name} {year}",
            f"{name} {int(day)}, {year}", f"{int(day)} {name} {year}", f"{year}:{month}:{day} {clock}:07",
            f"Sunday, {name} {int(day)}", f"{year}-{month}-{day} {clock}", year, f"{name} {int(day)}th {year}",
        )
    )  # fmt: skip


def _url(chance: random.Random) -> str:
    site = f"{chance.choice(_NOUNS)}{chance.choice(_TAGS)}.{chance.choice(('com', 'org', 'net', 'co.uk'))}"
    return chance.choice(
        (
            f"http://www.{site}/{chance.randrange(999)}", f"https://{site}", f"www.{site}", site,
            f"{_natural(chance)} http://{site}", f"{_natural(chance)} - www.{site}", f"mail me: info@{site}",
        )
    )  # fmt: skip


def _html(chance: random.Random) -> str:
    title = _natural(chance)
    return chance.choice(
        (
            f"<b>{title}</b>", f'<a href="http://example.com/1">{title}</a>', f"{title}<br />", f"<p>{title}",
            f"&quot;{title}&quot;", f"{title} &amp; friends", f"<i>{title}</i> by me", f"It&#39;s {title}",
        )
    )  # fmt: skip


def _tags(chance: random.Random) -> str:
    words = chance.sample(_TAGS, chance.randrange(4, 10))
    return chance.choice((", ".join(words), ",".join(words), "; ".join(words), " ".join(f"#{word}" for word in words)))


def _short(chance: random.Random) -> str:
    word = chance.choice(_NOUNS + _TAGS)
    return chance.choice(
        (
            word, word.capitalize(), word.upper(), f"{word.capitalize()}!", f"{word} {chance.randrange(9)}", "...", "❤",
            "?", str(chance.randrange(999)), chance.choice(_PEOPLE[:2]),
        )
    )  # fmt: skip


def _foreign(chance: random.Random) -> str:
    things, places = _FOREIGN[chance.choice(list(_FOREIGN))]
    title = f"{chance.choice(things.split('|'))} {chance.choice(places.split('|'))}"
    return title[0].upper() + title[1:]


def _mixed(chance: random.Random) -> str:
    both = [_natural(chance), _foreign(chance)]
    chance.shuffle(both)
    return chance.choice((" / ", " - ", " | ")).join(both)


def _mojibake(chance: random.Random) -> str:
    place = chance.choice(("Café", "São Paulo", "Göteborg", "a crêpe stall", "Plaza de España", "Malmö", "Ærø"))
    title = f"{_natural(chance).lower()} in {place}"
    as_latin = title.encode("latin-1", "replace").decode("utf-8", "replace")
    return chance.choice(
        (title.encode().decode("cp1252", "replace"), as_latin, f"{chance.choice(_PEOPLE)}â€™s {title}")
    )


_MAKERS: dict[str, Callable[[random.Random], str]] = {
    "keep": _natural,
    "file name": _file_name,
    "date": _date,
    "url": _url,
    "html": _html,
    "tags": _tags,
    "short": _short,
    "language": _foreign,
    "mixed": _mixed,
    "mojibake": _mojibake,
}
