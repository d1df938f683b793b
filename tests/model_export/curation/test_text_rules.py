"""The rules that need no language model."""

import time

import pytest

from model_export.curation.text_rules import Reason, broken_rule


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("CafÃ© in Paris", Reason.MOJIBAKE),
        ("We donâ€™t know", Reason.MOJIBAKE),
        ("A walk in M\ufffdnchen", Reason.MOJIBAKE),
        ("Ð—Ð°ÐºÐ°Ñ‚ Ð½Ð°Ð´", Reason.MOJIBAKE),
        ("<b>Sunset</b> at sea", Reason.HTML),
        ("Salt &amp; pepper", Reason.HTML),
        ("[url=http://example.com]here[/url]", Reason.HTML),
        ("More at www.example.com", Reason.URL),
        ("Write to me@example.com", Reason.URL),
        ("youtu.be/abc", Reason.URL),
        ("IMG_1234", Reason.FILE_NAME),
        ("DSC00012.JPG", Reason.FILE_NAME),
        ("DSC_0042 at the beach", Reason.FILE_NAME),
        ("20120715_183012", Reason.FILE_NAME),
        ("blue_door_2 copy", Reason.FILE_NAME),
        ("Photo on 2011-03-04 at 12.30", Reason.FILE_NAME),
        ("Untitled-1", Reason.FILE_NAME),
        ("May 12, 2008", Reason.DATE),
        ("2009:08:14 16:22:03", Reason.DATE),
        ("Monday 3rd June 2012", Reason.DATE),
        ("1999", Reason.DATE),
        ("Summer 2009", Reason.DATE),
        ("beach, sunset, sea, sky", Reason.TAGS),
        ("#love #instagood", Reason.TAGS),
        ("#dog", Reason.TAGS),
        ("Canon EOS 40D", Reason.TAGS),
        ("f/2.8 1/500 ISO 100", Reason.TAGS),
        ("snow winter cold ice tree white", Reason.TAGS),
        ("Tags: flower, rose, red", Reason.TAGS),
        ("Sunset", Reason.SHORT),
        ("Christmas 2008", Reason.SHORT),
        ("!!!", Reason.SHORT),
        ("42", Reason.SHORT),
        ("🌅🌅", Reason.SHORT),
    ],
)
def test_a_caption_that_describes_nothing_has_a_reason(text: str, reason: Reason) -> None:
    """Each kind of junk is named."""
    assert reason == broken_rule(text)


@pytest.mark.parametrize(
    "text",
    [
        "Sunset over the pier, 14 May 2009",
        "May flowers",
        "The Camera Museum, London, England",
        "Love you to the moon & back",
        "So happy <3",
        "São Paulo at night",
        "D’ÉTÉ » en ville",
        "Red, white and blue",
        "Bread, cheese, olives, and wine",
        "Ready, set, go!",
        "My new Canon lens has arrived",
        "Great weekend with friends #tbt",
        "A picture of 3 dogs",
        "Self-portrait",
        "海边日落",
        "The 747 from seat 12A",
        "Room 1234 at the Ritz",
    ],
)
def test_a_natural_caption_breaks_no_rule(text: str) -> None:
    """Dates, commas, ampersands, brands and hashtags inside a sentence are no reason."""
    assert broken_rule(text) is None


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a-",
        "a.",
        "<",
        "[b ",
        "&a",
        "1_",
        "a_",
        "1-1 ",
        "may ",
        "Ã",
        "Ð\u00b7",
        "#",
        ",",
        "a, ",
        "f/",
        "@a.",
        "_a.j",
    ],
)
def test_a_hostile_caption_costs_linear_time(unit: str) -> None:
    """Ten times the text takes far less than the hundredfold of a quadratic search."""

    def fastest(text: str) -> float:
        times = []
        for _ in range(3):
            start = time.thread_time()
            broken_rule(text)
            times.append(time.thread_time() - start)
        return min(times)

    short, long = (fastest(unit * (length // len(unit))) for length in (3_000, 30_000))
    assert long < 40 * max(short, 0.0001)
