"""Time the search for queries beside the loop that MetaCLIP's paper describes: pyahocorasick, a caption at a time.

Run by ``make bench-match``. Both read the same made-up captions and queries in one process: words by Zipf's law, and
phrases of two. The wanted figure is twice the speed. The loop is written from the description in arXiv:2309.16671,
appendix: the text and the queries are set between spaces, as is punctuation, and an automaton yields substrings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from model_export.curation.match import Search
from model_export.curation.word_cuts import normalise_lines

PUNCTUATION = ",.;:?!`"
SYLLABLES = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]
WANTED = 2.0


def made_up(words: int, phrases: int, captions: int) -> tuple[list[str], list[str]]:
    """Make queries and captions of 4 to 15 words; words that are frequent in captions come first."""
    rng = np.random.default_rng(0)
    known: dict[str, None] = {}
    while len(known) < words:
        known["".join(SYLLABLES[i] for i in rng.integers(len(SYLLABLES), size=rng.integers(1, 5)))] = None
    vocabulary = sorted(known, key=len)
    shares = 1 / np.arange(1, words + 1)
    shares /= shares.sum()
    pairs = rng.choice(words, (phrases * 2, 2), p=shares)
    found = list(dict.fromkeys(f"{vocabulary[a]} {vocabulary[b]}" for a, b in pairs))[:phrases]
    lengths = rng.integers(4, 16, captions)
    drawn = iter(rng.choice(words, int(lengths.sum()), p=shares).tolist())
    texts = [" ".join(vocabulary[next(drawn)] for _ in range(length)).capitalize() + "." for length in lengths.tolist()]
    return vocabulary + found, texts


def spaced(text: str) -> str:
    """Set a text and its punctuation between spaces."""
    text = f" {text} "
    for mark in PUNCTUATION:
        text = text.replace(mark, f" {mark} ")
    for space in "\t\n\r":
        text = text.replace(space, " ")
    return text


def by_the_loop(queries: list[str]) -> Callable[[list[str]], list[list[int]]]:
    """Return a search a caption at a time."""
    import ahocorasick

    automaton = ahocorasick.Automaton()
    for number, query in enumerate(queries):
        automaton.add_word(f" {query} ", (number, query))
    automaton.make_automaton()

    def search(texts: list[str]) -> list[list[int]]:
        found = []
        for text in texts:
            matched: list[int] = []
            for _, (number, _query) in automaton.iter(spaced(text.lower())):
                if number not in matched:
                    matched.append(number)
            found.append(matched)
        return found

    return search


def report(line: str) -> None:
    """Print a line."""
    print(line, flush=True)  # noqa: T201


def main() -> None:
    """Print the rates of both, in turn, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--words", type=int, default=300_000)
    parser.add_argument("--phrases", type=int, default=200_000)
    parser.add_argument("--captions", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    queries, texts = made_up(wanted.words, wanted.phrases, wanted.captions)
    column = pa.array([text.encode() for text in texts], pa.binary())
    started = time.process_time()
    ours = Search(queries)
    report(
        f"{len(queries):,} queries, {len(texts):,} captions; our search built in {time.process_time() - started:.1f} s"
    )
    started = time.process_time()
    loop = by_the_loop(queries)
    report(f"pyahocorasick's automaton built in {time.process_time() - started:.1f} s")
    rates: dict[str, list[float]] = {"ours": [], "loop": []}
    for _ in range(wanted.rounds):
        for name, search in (("ours", lambda: ours.find(column)), ("loop", lambda: loop(texts))):
            started = time.process_time()
            search()
            rates[name].append(len(texts) / (time.process_time() - started))
    for name, each in rates.items():
        report(f"{name}: {np.median(each):,.0f} captions/s of processor time ({', '.join(f'{r:,.0f}' for r in each)})")
    ratio = np.median(rates["ours"]) / np.median(rates["loop"])
    report(f"ours is {ratio:.2f} times as fast (wanted: {WANTED:g})")
    same = [sorted(numbers) for numbers in loop(texts[:1_000])] == ours.find(column[:1_000]).to_pylist()
    report(
        f"both find the same in 1,000 captions: {'yes' if same else 'no'}; normalised: {normalise_lines(texts[0])!r}"
    )


if __name__ == "__main__":
    main()
