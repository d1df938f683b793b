"""Make a query list as CLIP's authors did: words, pairs of words, titles, synsets (Radford et al. 2021, 2.2)."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_export.curation.output import writing
from model_export.curation.progress import CurationProgress
from model_export.curation.query_list import LONGEST, Query
from model_export.curation.text_counts import PAIRS, WORDS, PieceCounter, text_pieces, totals
from model_export.curation.word_cuts import normalise
from model_export.drivers.driver import Driver
from model_export.drivers.local import LocalDriver
from model_export.errors import DataError

_SYNSETS: Final = ("data.noun", "data.verb", "data.adj", "data.adv")
_HERE: Final = LocalDriver()


@dataclass(frozen=True)
class QuerySources:
    """Sources of queries, in the order in which they are listed.

    Attributes:
        texts: text files and Parquet files.
        column: of the texts in Parquet.
        titles: files with a title and its views behind a tab, or lines of Wikimedia's page views.
        wordnet: folder of WordNet's files ``data.noun``, …, or None.
        least: occurrences of a word, and of a pair of words.
        least_pmi: of a pair of words, in bits.
        least_views: of a title.
    """

    texts: Sequence[str] = ()
    column: str = "text"
    titles: Sequence[Path] = ()
    wordnet: Path | None = None
    least: int = 100
    least_pmi: float = 3.0
    least_views: int = 1_000

    @property
    def synset_files(self) -> list[Path]:
        """Return WordNet's files."""
        return [self.wordnet / name for name in _SYNSETS] if self.wordnet else []


def make_queries(
    sources: QuerySources, progress: CurationProgress, *, driver: Driver = _HERE, work: Path | None = None
) -> list[Query]:
    """Return the queries of all sources; one that an earlier source has is not listed again.

    Args:
        sources: of the queries.
        progress: of pieces of text.
        driver: counts the texts.
        work: folder for the counts, which every process of the driver sees; the system's temporary one by default.

    Raises:
        CurationError: the folder for the counts cannot be made.
        DataError: a source cannot be read, or is not UTF-8.
    """
    queries: dict[str, Query] = {}
    for found in (
        _of_texts(sources, progress, driver, work),
        _of_titles(sources),
        _of_synsets(sources.synset_files),
    ):
        for query in found:
            if 0 < len(query.text) <= LONGEST:
                queries.setdefault(query.text, query)
    return list(queries.values())


def pmi(both: int, first: int, second: int, words: int) -> float:
    """Return the pointwise mutual information of two neighbouring words in bits, as NLTK defines it.

    Args:
        both: occurrences of the pair.
        first: occurrences of its first word.
        second: occurrences of its second word.
        words: number of all words.
    """
    return math.log2(both * words) - math.log2(first * second)


def _of_texts(sources: QuerySources, progress: CurationProgress, driver: Driver, work: Path | None) -> Iterator[Query]:
    pieces = text_pieces(sources.texts, sources.column)
    if not pieces:
        return
    with _scratch(work) as name:
        folder, total = Path(name), 0
        driver.check_folder(folder)
        progress.begin("pieces of text", len(pieces))
        for words in driver.run(PieceCounter(folder), pieces, name=lambda piece: piece.name):
            total += words
            progress.advance(f"{total:,} words")
        counts = dict[str, int]()
        for table in totals(folder, WORDS, sources.least):
            counts.update(zip(table["a"].to_pylist(), table["count"].to_pylist(), strict=True))
        yield from _by_count(Query(word, "words", count) for word, count in counts.items())
        pairs = []
        for table in totals(folder, PAIRS, sources.least):
            for first, second, both in zip(*(table[each].to_pylist() for each in ("a", "b", "count")), strict=True):
                if pmi(both, counts[first], counts[second], total) >= sources.least_pmi:
                    pairs.append(Query(f"{first} {second}", "pairs of words", both))
        yield from _by_count(pairs)


def _scratch(work: Path | None) -> tempfile.TemporaryDirectory[str]:
    """Make a folder for counts; the one that it lies in is made too."""
    if work is None:
        return tempfile.TemporaryDirectory()
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=work)


def _of_titles(sources: QuerySources) -> Iterator[Query]:
    views: Counter[str] = Counter()
    for path in sources.titles:
        for where, line in _lines(path):
            title, count = _title(line, where)
            views[normalise(title.replace("_", " "))] += count
    least = sources.least_views
    yield from _by_count(Query(title, "titles", count) for title, count in views.items() if count >= least)


def _title(line: str, where: str) -> tuple[str, int]:
    if "\t" in line:
        title, _, count = line.partition("\t")
    else:
        _, title, count, *_ = [*line.split(" "), "", "", ""]
    if not (count.isascii() and count.isdigit()):
        raise DataError(f"{where}: is neither a title and its views behind a tab, nor a line of Wikimedia's page views")
    return title, int(count)


def _of_synsets(files: Sequence[Path]) -> Iterator[Query]:
    """Yield the first word of each synset; see wndb(5WN) for the format."""
    names: Counter[str] = Counter()
    for path in files:
        for where, line in _lines(path):
            if line.startswith(" "):
                continue  # the licence
            fields = line.split(" ")
            if len(fields) <= 4:
                raise DataError(f"{where}: is not a synset; name the folder of WordNet's files data.noun, …")
            names[normalise(fields[4].partition("(")[0].replace("_", " "))] += 1
    yield from _by_count(Query(text, "synsets", count) for text, count in names.items())


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each line that is not empty."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                try:
                    text = line.decode().rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DataError(f"{where}: is not UTF-8 (byte {error.start + 1}); convert the file") from error
                if text:
                    yield where, text
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a file that exists") from error


def _by_count(queries: Iterator[Query] | Sequence[Query]) -> list[Query]:
    return sorted(queries, key=lambda query: (-query.seen, query.text))
