import pickle

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model_export.curation.match import LONGEST_TEXT, Match, Search
from model_export.curation.query_list import Query, QueryList
from model_export.curation.stage import run_stage
from model_export.curation.word_cuts import belong_together, flags_of, normalise


def naive(text: str, queries: list[str]) -> list[int]:
    """Try each query at each place."""
    text = normalise(text)

    def free(place: int) -> bool:
        return place in {0, len(text)} or not belong_together(flags_of(text[place - 1]), flags_of(text[place]))

    return [
        number
        for number, query in enumerate(queries)
        if any(text.startswith(query, place) and free(place) and free(place + len(query)) for place in range(len(text)))
    ]


def found(texts: list[str], queries: list[str]) -> list[list[int]]:
    """Return the queries of each text."""
    ids: list[list[int]] = Search(queries).find(pa.array([text.encode() for text in texts], pa.binary())).to_pylist()
    return ids


WORDS = [
    "cat",
    "new york",
    "New  York",
    "york city",
    "o'clock",
    "C++",
    "c#",
    ".net",
    "고양이",
    "고양이는",
    "강아지",
    "猫",
]
MARKED = ["E\u0301", "\u1100\u1161", "🐱", "❤️", "❤", "👍🏽", "👩\u200d👧", "👧", "\u200d", "\ufe0f", "ßΣς"]
PIECES = st.sampled_from([*"aAbéİσςक्ि +#.,'’-_\n\t\u00a0\u3000\x00\u00ad0९", *WORDS, *MARKED])
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.lists(TEXTS, min_size=1, max_size=6))
@example(["new york city"], ["new york", "york city", "york", "new york city", "ork city"])
@example(["C++ and c, c+ +"], ["c++", "c", "+", "c+", "+ +"])
@example(["it is 5 o'clock.", "o ' clock"], ["o'clock", "clock", "o", "5 o'clock."])
@example(["\u0301a", "x"], ["\u0301a", "a"])
def test_matches_are_those_of_a_naive_search(texts: list[str], spellings: list[str]) -> None:
    """Punctuation, Hangul, emoji, marks, overlapping queries, and texts beside one another."""
    queries = [query for query in dict.fromkeys(map(normalise, spellings)) if query]

    if queries:
        assert [naive(text, queries) for text in texts] == found(texts, queries)


@given(TEXTS)
def test_a_normalised_text_stays_as_it_is(text: str) -> None:
    """So a query list can be read again."""
    assert normalise(text) == normalise(normalise(text))


@pytest.mark.parametrize(
    ("text", "query", "is_found"),
    [
        ("A CAT, sitting", "cat", True),
        ("catalogue", "cat", False),
        ("New\u00a0York", "new york", True),
        ("new, york", "new york", False),
        ("caf\u00e9", "cafe\u0301", True),
        ("cafe\u0301", "cafe", False),
        ("cat🐱", "🐱", True),
        ("👩\u200d👧", "👧", False),
        ("❤️love", "love", True),
        ("우리 고양이는 잔다", "고양이", False),
        ("우리 고양이 는", "고양이", True),
    ],
)
def test_a_query_is_found_as_whole_words(text: str, query: str, *, is_found: bool) -> None:
    """In any case, composition and white space; not within a word, and not across punctuation."""
    assert [[0] if is_found else []] == found([text], [normalise(query)])


def stage(*queries: str, keep_unmatched: bool = False) -> Match:
    """Make the stage."""
    return Match(QueryList(tuple(map(Query, queries))), keep_unmatched=keep_unmatched)


def test_texts_without_a_query_go_and_are_counted() -> None:
    """As are rows without a text."""
    table = pa.table({"text": ["a red dog", None, "nothing", "Dog and cat", ""], "n": range(5)})
    kept, dropped, _ = run_stage(stage("cat", "dog", "red dog"), table)

    assert {"n": [0, 3], "queries": [[1, 2], [0, 1]]} == kept.drop_columns(["text"]).to_pydict()
    assert {"no query": 2, "no text": 1} == dropped
    assert pa.list_(pa.int32()) == kept.schema.field("queries").type


def test_texts_without_a_query_may_stay() -> None:
    """Their list is empty."""
    kept, dropped, _ = run_stage(stage("cat", keep_unmatched=True), pa.table({"text": ["cat", "dog", None]}))

    assert [[0], []] == kept["queries"].to_pylist()
    assert {"no text": 1} == dropped


def test_a_long_text_is_cut_and_counted() -> None:
    """Wherever a character ends; the column keeps the whole text."""
    text = "dog " + "é" * LONGEST_TEXT + " cat"
    kept, _, notes = run_stage(stage("cat", "dog"), pa.table({"text": [text, "cat"]}))

    assert [[1], [0]] == kept["queries"].to_pylist()
    assert {"text cut": 1} == notes
    assert text == kept["text"][0].as_py()


@pytest.mark.parametrize("texts", [[], [""], ["", ""], [None]])
def test_tables_without_any_text_are_taken(texts: list[str | None]) -> None:
    """And have the column of ids."""
    kept, _, _ = run_stage(stage("cat", "two cats"), pa.table({"text": pa.array(texts, pa.string())}))

    assert {"text": [], "queries": []} == kept.to_pydict()


def test_a_pickled_stage_finds_the_same() -> None:
    """Worker processes get a copy, and build the automaton for themselves."""
    first = stage("cat", "red cat")
    table = pa.table({"text": ["a red cat"]})
    wanted = first.run(table).kept

    copy = pickle.loads(pickle.dumps(first))  # noqa: S301 - our own
    assert wanted == copy.run(table).kept
    assert first.digest == copy.digest
    assert first.digest != stage("red cat", "cat").digest
