"""Labels of two common words: 9 tokens in the prompt "a photo of a {}." with the benchmark's tokenizer."""

from typing import Final

_ADJECTIVES: Final = """
red blue green black white grey brown pink old new big small tall short wide thin round square flat deep dark pale
bright clean dirty wet dry hot cold warm soft hard smooth rough heavy light empty full open closed broken whole young
wild tame fast slow quiet loud fresh rusty wooden plastic paper metal stone glass silver golden striped spotted plain
sunny cloudy
"""
_NOUNS: Final = """
cat dog horse cow sheep goat pig hen duck goose bird fish frog snake mouse bear wolf fox deer lion tiger cup plate bowl
fork knife spoon chair table lamp clock bed door window house car bus train boat ship plane bike truck road bridge tree
flower leaf grass river lake hill rock beach cloud apple pear plum bread cheese cake book pen coat shoe
"""
TEMPLATE: Final = "a photo of a {}."

LABELS: Final = tuple(f"{adjective} {noun}" for adjective in _ADJECTIVES.split() for noun in _NOUNS.split())
"""All labels, without duplicates."""

CORPUS: Final = tuple(map(TEMPLATE.format, LABELS))
"""Training text of the benchmark's tokenizer."""


def labels(count: int, start: int = 0) -> list[str]:
    """Return `count` labels; another `start` gives others. Raises ValueError beyond the last."""
    if start + count > len(LABELS):
        raise ValueError(f"this module has only {len(LABELS)} labels")
    return list(LABELS[start : start + count])
