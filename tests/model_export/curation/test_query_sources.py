import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_export.curation import text_counts
from model_export.curation.query_list import Query, read_queries, write_queries
from model_export.curation.query_sources import QuerySources, make_queries
from model_export.drivers.local import LocalDriver
from model_export.errors import CurationError, DataError
from tests.support.curating import quiet

CORPUS = """\
the old lighthouse stands above the red cliffs
a red bicycle leans against the old wall
polar bear and polar bear cub on the ice
the polar bear swims and the cub follows
red cliffs and white sand below the old lighthouse
hot air balloon over the red cliffs
a hot air balloon lands on the white sand
the old wall of the old town
"""
NLTK = {
    "air balloon": (2, 5.022367813028454),
    "hot air": (2, 5.022367813028454),
    "white sand": (2, 5.022367813028454),
    "polar bear": (3, 4.437405312307298),
    "red cliffs": (3, 4.022367813028454),
    "old lighthouse": (2, 3.700439718141092),
    "old wall": (2, 3.700439718141092),
    "on the": (2, 2.562936194391157),
    "the old": (5, 2.562936194391156),
    "the red": (2, 1.562936194391157),
}
"""Count and pointwise mutual information of each pair that NLTK 3.10.4 finds twice in `CORPUS`, printed by

    finder = BigramCollocationFinder.from_documents([line.split() for line in CORPUS.splitlines()])
    finder.apply_freq_filter(2)
    print(finder.score_ngrams(BigramAssocMeasures.pmi), finder.ngram_fd)

of nltk.collocations, whose BigramAssocMeasures is that of nltk.metrics."""


def made(*, workers: int = 1, **sources: object) -> list[Query]:
    """Make a list."""
    with quiet() as progress:
        return make_queries(QuerySources(**sources), progress, driver=LocalDriver(workers))  # type: ignore[arg-type]


def corpus(path: Path, lines: int) -> list[list[str]]:
    """Write lines of words by Zipf's law, and return them."""
    rng = np.random.default_rng(0)
    texts = [[f"w{min(int(n), 40)}" for n in rng.zipf(1.3, size=rng.integers(0, 12))] for _ in range(lines)]
    path.write_text("\n".join(map(" ".join, texts)))
    return texts


def test_words_and_pairs_are_those_of_a_plain_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the text is cut into pieces; pairs by the formula of NLTK's collocations, lines as documents."""
    texts = corpus(tmp_path / "a.txt", 600)
    words = Counter(itertools.chain.from_iterable(texts))
    pairs = Counter(pair for text in texts for pair in itertools.pairwise(text))
    total = words.total()
    high = {
        f"{a} {b}": count
        for (a, b), count in pairs.items()
        if count >= 5 and math.log2(count * total) - math.log2(words[a] * words[b]) >= 0.25
    }
    assert 3 < len(high) < sum(count >= 5 for count in pairs.values())

    for size in (101, 1_000, 10**6):
        monkeypatch.setattr(text_counts, "_PIECE", size)
        found = made(texts=[str(tmp_path / "a.txt")], least=5, least_pmi=0.25)
        assert {w: n for w, n in words.items() if n >= 5} == {q.text: q.seen for q in found if q.source == "words"}
        assert high == {q.text: q.seen for q in found if q.source == "pairs of words"}
        assert found == sorted(found, key=lambda query: (query.source != "words", -query.seen, query.text))


def test_pairs_of_words_have_the_mutual_information_of_nltk(tmp_path: Path) -> None:
    """The same pairs and counts, and each is listed up to the number that NLTK gives, and not above it."""
    (tmp_path / "a.txt").write_text(CORPUS)

    def pairs(least: float) -> dict[str, int]:
        found = made(texts=[str(tmp_path / "a.txt")], least=2, least_pmi=least)
        return {query.text: query.seen for query in found if query.source == "pairs of words"}

    assert {pair: count for pair, (count, _) in NLTK.items()} == pairs(-99)
    for number in {number for _, number in NLTK.values()}:
        near = 1e-9
        assert {pair for pair, (_, its) in NLTK.items() if its > number - near} == set(pairs(number - near))
        assert {pair for pair, (_, its) in NLTK.items() if its > number + near} == set(pairs(number + near))


def test_the_list_is_the_same_for_any_workers_and_from_parquet(tmp_path: Path) -> None:
    """Row groups and files are pieces too."""
    texts = corpus(tmp_path / "a.txt", 200)
    table = pa.table({"text": [None, *map(" ".join, texts)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)

    wanted = made(texts=[str(tmp_path / "a.txt")], least=2, least_pmi=0.0)
    assert wanted == made(texts=[str(tmp_path / "a.parquet")], least=2, least_pmi=0.0, workers=2)


def test_pairs_do_not_cross_punctuation_or_lines(tmp_path: Path) -> None:
    """A pair is found in texts as it is listed."""
    (tmp_path / "a.txt").write_text("New York, red\ncar new-york New  York")

    found = made(texts=[str(tmp_path / "a.txt")], least=1, least_pmi=-9.0)
    assert ["new york", "car new", "york new"] == [query.text for query in found if query.source != "words"]


def test_titles_and_synsets_follow_if_they_are_new(tmp_path: Path) -> None:
    """Titles need their views, summed over files; a synset has the name of its first word."""
    (tmp_path / "a.txt").write_text("dog dog cat")
    (tmp_path / "titles.tsv").write_text("Dog\t5000\nNew_York\t600\nRare\t2\n")
    (tmp_path / "pageviews").write_text("en New_York 400 0\n")
    head = "  1 This software and database is being provided to you\n"
    (tmp_path / "data.noun").write_text(
        head + "00001740 03 n 01 entity 0 003 | that\n00002137 03 n 02 hot_dog 0 red_hot 0 000 | food\n"
        "00002138 03 n 01 cat 0 000 | animal\n"
    )
    for name in ("data.verb", "data.adv"):
        (tmp_path / name).write_text(head)
    (tmp_path / "data.adj").write_text(head + "00001741 00 a 01 galore(ip) 0 000 | much\n")

    found = made(
        texts=[str(tmp_path / "a.txt")],
        titles=[tmp_path / "titles.tsv", tmp_path / "pageviews"],
        wordnet=tmp_path,
        least=1,
        least_pmi=9.0,
    )
    assert [
        *(("dog", "words", 2), ("cat", "words", 1)),
        ("new york", "titles", 1000),
        *(("entity", "synsets", 1), ("galore", "synsets", 1), ("hot dog", "synsets", 1)),
    ] == found
    write_queries(tmp_path / "queries.tsv", found)
    assert tuple(found) == read_queries(tmp_path / "queries.tsv").queries


def test_bad_sources_are_named(tmp_path: Path) -> None:
    """File, line or piece, and the remedy."""
    (tmp_path / "a.txt").write_bytes(b"good\n\xff\n")
    (tmp_path / "titles").write_bytes(b"Dog\tmany\n")
    (tmp_path / "latin").write_bytes(b"Caf\xe9\t3\n")

    with pytest.raises(DataError, match=r"a.txt: is not UTF-8 \(byte 5 of its piece 0\)"):
        made(texts=[str(tmp_path / "a.txt")])
    with pytest.raises(DataError, match="titles, line 1: is neither a title"):
        made(titles=[tmp_path / "titles"])
    with pytest.raises(DataError, match="latin, line 1: is not UTF-8"):
        made(titles=[tmp_path / "latin"])
    with pytest.raises(DataError, match=r"data\.noun: cannot be read"):
        made(wordnet=tmp_path)


def test_the_folder_for_counts_is_made(tmp_path: Path) -> None:
    """On a cluster it is that of the list, which need not exist yet; where it cannot be made, a line says so."""
    (tmp_path / "text.txt").write_text("a dog\n")
    sources = QuerySources([str(tmp_path / "text.txt")], least=1)
    with quiet() as progress:
        assert {"a", "dog"} == {query.text for query in make_queries(sources, progress, work=tmp_path / "new/lists")}
        with pytest.raises(CurationError, match=r"text\.txt/lists: cannot be written"):
            make_queries(sources, progress, work=tmp_path / "text.txt/lists")
    assert not list((tmp_path / "new/lists").iterdir())
