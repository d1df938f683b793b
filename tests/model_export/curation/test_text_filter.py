"""The text filter: accuracy on titles labelled by hand and on made ones, counts, bad input."""

import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from model_export.curation.stage import run_stage
from model_export.curation.text_filter import TextFilter
from model_export.curation.text_rules import Reason
from model_export.errors import CurationError
from tests.support.made_titles import EVEN, YFCC, made_titles

TITLES = Path(__file__).with_name("titles.tsv")


def by_hand() -> list[tuple[str, str]]:
    """Return label and title of each line; even ones tuned the rules, odd ones measure them."""
    lines = TITLES.read_text(encoding="utf-8").splitlines()[1:]
    return [(label, text) for label, _, text in (line.partition("\t") for line in lines)]


def judged(titles: list[tuple[str, str]], text_filter: TextFilter | None = None) -> list[tuple[str, str]]:
    """Return label and verdict of each title."""
    texts = pa.array([text for _, text in titles])
    verdicts = (text_filter or TextFilter()).reasons(texts).to_pylist()
    return [(label, verdict or "keep") for (label, _), verdict in zip(titles, verdicts, strict=True)]


def precision_and_recall(found: list[tuple[str, str]]) -> tuple[float, float]:
    """Return the share of kept titles that are natural, and of natural titles that are kept."""
    right = sum(label == verdict == "keep" for label, verdict in found)
    return (
        right / sum(verdict == "keep" for _, verdict in found),
        right / sum(label == "keep" for label, _ in found),
    )


def test_the_titles_by_hand_are_many_and_varied() -> None:
    """At least 600, all different, with each reason but a missing caption."""
    titles = by_hand()
    assert len(titles) >= 600
    assert len(titles) == len({text for _, text in titles})
    assert {"keep", *Reason} - {Reason.MISSING} == {label for label, _ in titles}


@pytest.mark.parametrize("half", [0, 1], ids=["tuning half", "claim half"])
def test_titles_labelled_by_hand(half: int) -> None:
    """Precision is at least 0.97 and recall 0.95, and dropped titles get the reason of their label."""
    found = judged(by_hand()[half::2])
    precision, recall = precision_and_recall(found)
    assert precision >= 0.97
    assert recall >= 0.95
    dropped = [label == verdict for label, verdict in found if "keep" not in (label, verdict)]
    assert sum(dropped) >= 0.95 * len(dropped)


@pytest.mark.parametrize("mixture", [EVEN, YFCC], ids=["half natural", "like YFCC100M"])
def test_ten_thousand_made_titles(mixture: Mapping[str, float]) -> None:
    """Precision is at least 0.97 and recall 0.95, also where only 15% are natural."""
    precision, recall = precision_and_recall(judged(list(made_titles(10_000, 14, mixture))))
    assert precision >= 0.97
    assert recall >= 0.95


def test_a_mixture_like_yfcc_keeps_about_15_percent() -> None:
    """The share that CLIP's authors report of YFCC100M (section 2.2)."""
    verdicts = Counter(verdict for _, verdict in judged(list(made_titles(10_000, 15, YFCC))))
    assert verdicts["keep"] / 10_000 == pytest.approx(0.15, abs=0.015)


def pairs(texts: Sequence[str | None]) -> pa.Table:
    """Return pairs with these captions."""
    ids = [f"{row:04}" for row in range(len(texts))]
    return pa.table({"id": ids, "text": pa.array(texts, pa.string())})


def test_each_dropped_row_has_one_reason() -> None:
    """Rows in are rows kept and the sum of the reasons; the kept rows are whole and in their order."""
    titles = list(made_titles(2_000, 16))
    table = pairs([*(text for _, text in titles), None, "", " \n"])
    result = run_stage(TextFilter(), table)
    assert 2_003 == result.kept.num_rows + sum(result.dropped.values())
    assert 3 == result.dropped["missing"]
    assert set(result.dropped) <= {str(reason) for reason in Reason}
    assert result.kept["id"].to_pylist() == sorted(result.kept["id"].to_pylist())
    assert table.column_names == result.kept.column_names


def test_rows_are_judged_by_themselves() -> None:
    """Two halves give what the whole gives."""
    table = pairs([text for _, text in made_titles(500, 17)])
    whole = TextFilter().run(table)
    halves = [TextFilter().run(table.slice(0, 123)), TextFilter().run(table.slice(123))]
    assert whole.kept.equals(pa.concat_tables([half.kept for half in halves]))
    assert whole.dropped == dict(sum((Counter(half.dropped) for half in halves), Counter()))


def test_bytes_that_are_not_utf8_are_mojibake() -> None:
    """A broken caption is a reason, not an error."""
    texts = pa.array([b"Caf\xe9 in Paris", b"A cup of tea"], pa.binary())
    as_strings = pa.StringArray.from_buffers(2, *texts.buffers()[1:])
    assert ["mojibake", None] == TextFilter().reasons(as_strings).to_pylist()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_captions_may_be_large_strings(kind: pa.DataType) -> None:
    """Both types of text that Parquet readers give are read."""
    assert [None, "short"] == TextFilter().reasons(pa.array(["A cup of tea", "Tea"], kind)).to_pylist()


def test_a_huge_caption_is_judged() -> None:
    """A caption of a megabyte is read up to a limit, and quickly."""
    texts = pa.array(["A long walk by the river. " * 40_000, "_a.-/" * 200_000])
    assert [None, "tags"] == TextFilter().reasons(texts).to_pylist()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("HAPPY BIRTHDAY GRANDMA", None),
        ("Sunset at the beach / Sonnenuntergang am Strand", "mixed"),
        ("Tokyo Tower 東京タワー", "mixed"),
        ("The old mill (in winter)", None),
        ("Die alte Mühle / am Fluss", "language"),
    ],
)
def test_mixed_languages_and_capitals(text: str, reason: str | None) -> None:
    """Capitals are no reason; a caption in two languages is, if one of them is wanted."""
    assert [reason] == TextFilter().reasons(pa.array([text])).to_pylist()


def test_other_languages_can_be_kept() -> None:
    """The setting replaces English, or adds to it."""
    texts = pa.array(["Ein Hund läuft am Strand", "A dog on the beach", "我的狗在公园里", "Un chien sur la plage"])
    found = TextFilter(languages=("de", "zh")).reasons(texts).to_pylist()
    assert [None, "language", None, "language"] == found
    both = ["Sunset at the beach / Sonnenuntergang am Strand"]
    assert [None] == TextFilter(languages=("en", "de")).reasons(pa.array(both)).to_pylist()


def test_the_digest_follows_the_settings() -> None:
    """Settings change the digest, the order of languages does not."""
    digests = {TextFilter().digest, TextFilter(("de",)).digest, TextFilter(confidence=0.5).digest}
    assert 3 == len(digests)
    assert TextFilter(("de", "en")).digest == TextFilter(("en", "de")).digest


def test_the_stage_can_be_pickled() -> None:
    """Worker processes get a copy that judges alike."""
    copy = pickle.loads(pickle.dumps(TextFilter(("en", "de"), 0.4)))  # noqa: S301 - our own bytes
    assert TextFilter(("en", "de"), 0.4) == copy
    assert copy.digest == TextFilter(("en", "de"), 0.4).digest


@pytest.mark.parametrize("confidence", [0, -0.1, 1.1, float("nan")])
def test_a_wrong_confidence_is_refused(confidence: float) -> None:
    """The message gives the limits."""
    with pytest.raises(CurationError, match="above 0 and at most 1"):
        TextFilter(confidence=confidence)


def test_every_reason_is_documented() -> None:
    """The table of the docs has each reason, in the order of the checks."""
    page = (Path(__file__).parents[3] / "docs" / "curation.md").read_text(encoding="utf-8")
    section = page.partition("## Filter captions")[2].partition("\n## ")[0]
    assert list(Reason) == re.findall(r"^\| `([a-z ]+)` \|", section, re.MULTILINE)
