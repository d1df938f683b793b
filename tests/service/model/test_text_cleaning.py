"""Cleaning of texts as OpenAI's CLIP and open_clip do it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model.loading import load_bundle
from service.model.manifest import DEMO_BUNDLE, Manifest, TextSection
from service.model.text_cleaning import CLEANERS
from service.model.tokenizer import Tokenizer
from tests.support.tiny_bundle import write_tiny_bundle

# The right-hand sides are html.unescape(html.unescape(ftfy.fix_text(text))).strip() of ftfy 6.3.1.
REFERENCE = [
    ("a photo of a cat.", "a photo of a cat."),
    ("ＣＡＴ　１２", "CAT 12"),
    ("ﾈｺ ｶﾞ", "ネコ ガ"),
    ("￥￡￦", "¥£₩"),
    ("ﬁsh ﬂy oﬃce ﬀ ﬄ ﬅ ﬆ", "fish fly office ff ffl ſt st"),
    ("Ĳsland ǆ Ǉ ǌ ŉ", "IJsland dž LJ nj 'n"),
    ("“cat’s” ‘eye‛ „x‟ ʼn", "\"cat's\" 'eye' \"x\" 'n"),
    ("AT&T AT&amp;T AT&amp;amp;T", "AT&T AT&T AT&T"),
    ("&lt;b&gt; &eacute; &EACUTE; &NTILDE; &nope;", "<b> é É Ñ &nope;"),
    ("a<b &EACUTE; &amp;eacute;", "a<b &EACUTE; é"),
    ("&#233; &#xE9; &#128049; &#0; &copy &ampx", "é é 🐱 \ufffd © &x"),
    ("cafe\u0301 Å", "café Å"),
    ("a\ufeffb\u206ac\ufff9d\u2028e\u2029f", "abcd\ne\nf"),
    ("  é  ", "é"),
    ("½ ² ㎏ Ⅳ", "½ ² ㎏ Ⅳ"),
    ("消防車 кошка σκύλος 👩‍🚒 ❤️ می‌خواهم", "消防車 кошка σκύλος 👩‍🚒 ❤️ می‌خواهم"),
]


@pytest.mark.parametrize(("text", "cleaned"), REFERENCE)
def test_texts_become_those_of_the_reference(text: str, cleaned: str) -> None:
    """Full and half width, ligatures, quotes, entities and Unicode form."""
    clean = CLEANERS["clip"]
    assert clean is not None
    assert cleaned == clean(text)


def test_wrong_encodings_are_not_guessed() -> None:
    """The reference would repair this one; the guess depends on the version of ftfy, and may be wrong."""
    clean = CLEANERS["clip"]
    assert clean is not None
    assert "cafÃ©" == clean("cafÃ©")


@given(st.text(max_size=30))
def test_any_text_can_be_cleaned(text: str) -> None:
    """Cleaning ends, raises nothing, and leaves plain ASCII words alone."""
    clean = CLEANERS["clip"]
    assert clean is not None
    cleaned = clean(text)
    assert not text.isascii() or "&" in text or cleaned == text


def test_a_bundle_states_its_cleaning(tmp_path: Path) -> None:
    """With it two spellings have the same tokens; without it the ids are those of the text as it is."""
    bundle = load_bundle(write_tiny_bundle(tmp_path / "plain"))
    cleaning = load_bundle(write_tiny_bundle(tmp_path / "cleaning", cleaning="clip"))
    plain, cleaned = Tokenizer.from_bundle(bundle), Tokenizer.from_bundle(cleaning)
    texts = ["a ＣＡＴ &amp; ﬁsh", "a cat & fish"]
    for tokenise in (plain.tokenize, plain.pieces):
        assert len({tuple(row) for row in tokenise(texts)}) == 2
    for tokenise in (cleaned.tokenize, cleaned.pieces):
        assert len({tuple(row) for row in tokenise(texts)}) == 1
    assert cleaned.tokenize(texts[1:]) == plain.tokenize(texts[1:])
    assert bundle.manifest.text_revision != cleaning.manifest.text_revision
    assert bundle.manifest.revision != cleaning.manifest.revision


def test_manifests_without_cleaning_keep_their_revisions(tmp_path: Path) -> None:
    """The field is left out where nothing is cleaned, so older bundles are read, and written, as they are."""
    manifest = load_bundle(DEMO_BUNDLE).manifest
    assert "none" == manifest.text.cleaning
    assert "cleaning" not in manifest.text.model_dump(mode="json")
    assert "cleaning" not in manifest.to_json()
    assert (manifest.revision, manifest.text_revision) == (
        manifest.compute_revision(),
        manifest.compute_text_revision(),
    )
    written = load_bundle(write_tiny_bundle(tmp_path / "cleaning", cleaning="clip")).manifest
    assert '"cleaning": "clip"' in written.to_json()
    assert written == Manifest.model_validate_json(written.to_json())
    assert "clip" == TextSection.model_validate(written.text.model_dump()).cleaning
