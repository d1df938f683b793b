"""Warnings about labels: codes, positions, and what draws none."""

import re

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from service.model.answer_warnings import (
    CODES,
    MAX_OF_A_CODE,
    MAX_POSITIONS,
    AnswerWarning,
    codes_of,
    warn_of_lone_label,
    warn_of_tokens,
)
from service.model.loading import load_bundle
from service.model.manifest import DEMO_BUNDLE, TextSection
from service.model.tokenizer import Tokenizer
from tests.support.places import ROOT
from tests.support.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a tokenizer that encodes any text as bytes, in lower case."""
    return Tokenizer.from_bundle(load_bundle(write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")))


@pytest.fixture(scope="module")
def words_tokenizer() -> Tokenizer:
    """Return a tokenizer of three words and one token for all others, which drops punctuation."""
    model = models.WordLevel({"<unk>": 0, "cat": 1, "dog": 2, "кошка": 3}, unk_token="<unk>")
    return tokenizer_of(model, normalizers.Replace(tokenizers.Regex("[!?]"), ""), max_length=8)


def found(tokenizer: Tokenizer, *labels: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return code and positions of each warning about labels that describe themselves."""
    return [(each.code, each.labels) for each in warn_of_tokens(tokenizer, [(label,) for label in labels])]


def test_every_code_is_documented() -> None:
    """The table in docs/api.md has exactly the codes of the service."""
    text = (ROOT / "docs" / "api.md").read_text("utf-8").partition("## Warnings")[2].partition("\n## ")[0]
    assert list(CODES) == re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("labels", "method", "codes"),
    [
        (["cat"], "softmax", ["single_label"]),
        (["cat"], "sigmoid", []),
        (["cat"], "cosine", []),
        (["cat"], None, []),
        (["cat,dog"], "cosine", ["comma_in_label"]),
        (["cat,dog"], "softmax", ["single_label", "comma_in_label"]),
        (["cat,dog", "fox"], "softmax", []),
        ([], "softmax", []),
    ],
)
def test_a_lone_label(labels: list[str], method: object, codes: list[str]) -> None:
    """Its softmax is always 1; a comma in it was probably meant to separate labels."""
    assert codes == codes_of(warn_of_lone_label(labels, method))  # type: ignore[arg-type]


def test_labels_with_the_same_tokens(bytes_tokenizer: Tokenizer) -> None:
    """Each group is one warning, which names its labels."""
    assert [] == found(bytes_tokenizer, "red", "green", "blue")
    warnings = warn_of_tokens(bytes_tokenizer, [("Red",), ("blue",), ("red",), ("BLUE",), ("RED",), ("RED ",)])
    assert [("labels_equal_to_model", (0, 2, 4)), ("labels_equal_to_model", (1, 3))] == [
        (each.code, each.labels) for each in warnings
    ]
    assert warnings[0].message.startswith("Labels 0, 2 and 4 are the same to this model")


def test_described_labels_with_the_same_tokens(bytes_tokenizer: Tokenizer) -> None:
    """All descriptions count, in any order; a label with one more is another."""
    texts = [("a cat", "a pet"), ("A Pet", "a cat"), ("a cat", "a pet", "small"), ("a cat",)]
    (warning,) = warn_of_tokens(bytes_tokenizer, texts)
    assert ("labels_equal_to_model", (0, 1)) == (warning.code, warning.labels)


def test_warnings_that_nobody_waits_for_are_given_up(bytes_tokenizer: Tokenizer) -> None:
    """The tokens of 20 MB of labels take a second."""
    checks = iter([None, TimeoutError()])

    def check() -> None:
        if (error := next(checks)) is not None:
            raise error

    with pytest.raises(TimeoutError):
        warn_of_tokens(bytes_tokenizer, [(str(number),) for number in range(1_000)], check)


def test_warnings_are_bounded(bytes_tokenizer: Tokenizer) -> None:
    """A thousand pairs, or a thousand equal labels, do not make an answer long."""
    pairs = warn_of_tokens(bytes_tokenizer, [(f"{case}{number}",) for number in range(1_000) for case in "aA"])
    assert MAX_OF_A_CODE == len(pairs)
    (greek,) = warn_of_tokens(bytes_tokenizer, [("σκύλος" * number,) for number in range(1, 101)])
    assert MAX_POSITIONS == len(greek.labels)
    assert greek.message.startswith("Labels 0, 1, 2 and 97 more have words or a script")


@pytest.mark.parametrize("label", ["消防車", "ねこ", "кошка", "σκύλος", "ＣＡＴ"])
def test_a_script_that_is_taken_apart(label: str) -> None:
    """The demo model's byte-level tokenizer has at least a token for each character of it, or for part of one."""
    tokenizer = Tokenizer.from_bundle(load_bundle(DEMO_BUNDLE))
    assert [("labels_unknown_to_model", (1,))] == found(tokenizer, "cat", label)


@pytest.mark.parametrize("label", ["cat", "x", "Zürich", "a café table", "xqz", "1234", "50 €", "a → b", "C++"])
def test_a_script_that_is_known(label: str) -> None:
    """Words of Latin letters, digits and signs draw no warning."""
    assert [] == found(Tokenizer.from_bundle(load_bundle(DEMO_BUNDLE)), label)


def test_words_that_are_in_no_vocabulary(words_tokenizer: Tokenizer, bytes_tokenizer: Tokenizer) -> None:
    """A token for unknown words, or no token at all, draws the warning in any script."""
    assert 0 == words_tokenizer.unknown_id
    assert bytes_tokenizer.unknown_id is None
    assert [("labels_unknown_to_model", (1, 3))] == found(words_tokenizer, "cat", "bird", "кошка", "!?", "cat dog")
    assert ["labels_equal_to_model", "labels_unknown_to_model"] == codes_of(
        warn_of_tokens(words_tokenizer, [("bird",), ("fox",)])
    )


def tokenizer_of(
    model: models.Model, normalizer: normalizers.Normalizer | None = None, *, max_length: int = 64
) -> Tokenizer:
    """Return a tokenizer that cuts at white space."""
    backend = tokenizers.Tokenizer(model)
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    section = TextSection(
        padding="longest",
        min_length=1,
        max_length=max_length,
        pad_id=0,
        end_of_text_id=0,
        canonicalization="tokenizer",
        overflow="refuse",
    )
    return Tokenizer(backend, section)


def test_sentence_pieces_for_bytes() -> None:
    """A character without a piece of its own becomes bytes; one with a piece is known, though no word is longer."""
    tokens = ["<pad>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"cat消防車"]
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizer_of(models.BPE(ids, [], unk_token="<unk>", byte_fallback=True))
    assert tokenizer.unknown_id is None
    assert [("labels_unknown_to_model", (1, 3))] == found(tokenizer, "消防車", "고양이", "cat", "cat🐈")


def test_words_that_bert_does_not_know() -> None:
    """Its tokenizer drops the character by which an unknown word is found for others."""
    words = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "고양이", "cat"])}
    tokenizer = tokenizer_of(
        models.WordPiece(words, unk_token="[UNK]"), normalizers.BertNormalizer(strip_accents=False)
    )
    assert 1 == tokenizer.unknown_id
    warnings = found(tokenizer, "고양이", "강아지", "cat", "🐈")
    assert [("labels_equal_to_model", (1, 3)), ("labels_unknown_to_model", (1, 3))] == warnings


def test_codes_are_listed_once() -> None:
    """In the order of the warnings."""
    one, other = AnswerWarning("comma_in_label", "", (0,)), AnswerWarning("single_label", "", (0,))
    assert ["comma_in_label", "single_label"] == codes_of([one, other, one])
