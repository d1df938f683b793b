"""Lists of English words, one file each: written for this project, CC0 1.0.

* ``english``: words of captions that other languages in Latin letters do not have, evidence for English;
* ``english_function``: words that carry a sentence, which lists of tags lack.
"""

from pathlib import Path


def words_of(name: str) -> frozenset[str]:
    """Read a list, in lower case."""
    return frozenset(words_file(name).read_text(encoding="utf-8").split())


def words_file(name: str) -> Path:
    """Return the path of a list."""
    return Path(__file__).with_name(f"{name}.txt")
