import gzip
import json
import re
import string
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from transformers import CLIPTokenizer

from model_export.errors import SourceError
from model_export.families.clip.bpe import END_OF_TEXT, START_OF_TEXT
from model_export.families.clip.tokenizer import tokenizer_json
from model_export.families.siglip.tokenizer import read_siglip_tokenizer
from model_export.families.tokenizers import REFERENCE, TextTokens
from service.model.manifest import TextSection
from service.model.tokenizer import Tokenizer
from tests.support.tiny_hugging_face import (
    clip_vocabulary,
    siglip_tokenizer,
    write_gemma_tokenizer,
    write_siglip_tokenizer,
)

VOCABULARY, MERGES = clip_vocabulary()
SIZE, END = len(VOCABULARY), VOCABULARY[END_OF_TEXT]

TEXTS = [
    "a photo of a cat.",
    "  A  PHOTO,\tof a \n CAT!! ",
    "Zürich, 1848; 犬 and naïve café",
    "it's they've I'm ''s \"quoted\" x-ray #1 50%",
    "e\u0301 is é; \u00a0\u3000 wide; ﬁne １２３",
    "<|endoftext|> <|startoftext|>",
    "🚀🚀 ok_ay\u200d\u0000",
    "",
]


def write_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt as older releases of transformers do."""
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def write_reference(folder: Path, name: str = REFERENCE) -> Path:
    """Write the reference implementation's list, which goes on behind the merges that the model uses."""
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *(" ".join(pair) for pair in MERGES), "x y", "y z</w>", ""]
    content = "\n".join(lines).encode()
    path = folder / name
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def clip(source: Path, *, vocab_size: int = SIZE, end_of_text_id: int = END) -> Backend:
    """Read CLIP's tokenizer, and open it as the service does: nothing a client writes is a special token."""
    backend = Backend.from_str(tokenizer_json(source, vocab_size=vocab_size, end_of_text_id=end_of_text_id).decode())
    backend.encode_special_tokens = True
    return backend


def refusal(source: Path, *, vocab_size: int = SIZE, end_of_text_id: int = END) -> str:
    """Return the one line that a tokenizer of CLIP is refused with."""
    with pytest.raises(SourceError) as caught:
        tokenizer_json(source, vocab_size=vocab_size, end_of_text_id=end_of_text_id)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_form_gives_the_ids_of_transformers(tmp_path: Path) -> None:
    """Whether saved whole, as vocabulary and merges, or as the reference's list: the same ids for every text."""
    published = CLIPTokenizer(vocab=VOCABULARY, merges=MERGES)
    folders = {name: tmp_path / name for name in ("saved", "vocabulary", "reference")}
    for folder in folders.values():
        folder.mkdir()
    published.save_pretrained(folders["saved"])
    write_vocabulary(folders["vocabulary"])
    write_reference(folders["reference"])
    expected = [published(text, split_special_tokens=True)["input_ids"] for text in TEXTS]

    for name, folder in folders.items():
        assert expected == [clip(folder).encode(text).ids for text in TEXTS], name


def test_the_same_vocabulary_gives_the_same_bytes(tmp_path: Path) -> None:
    """A file may be named instead of its folder, packed or not, and is read in the same way."""
    write_vocabulary(tmp_path)
    plain = write_reference(tmp_path, "vocabulary.txt")
    sources = [tmp_path, tmp_path / "vocab.json", tmp_path / "merges.txt", write_reference(tmp_path), plain]
    contents = {tokenizer_json(source, vocab_size=SIZE, end_of_text_id=END) for source in sources}

    assert 1 == len(contents)
    (tmp_path / "tokenizer.json").write_bytes(contents.pop())
    again = tokenizer_json(tmp_path, vocab_size=SIZE, end_of_text_id=END)
    assert (tmp_path / "tokenizer.json").read_bytes() == again


def test_padding_and_truncation_are_taken_out(tmp_path: Path) -> None:
    """A served text is never cut, and is padded by the service."""
    tokenizer = CLIPTokenizer(vocab=VOCABULARY, merges=MERGES).backend_tokenizer
    tokenizer.enable_padding(length=77, pad_id=0)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    text = "a photo of a motorcycle and a very old oak tree"
    ids = clip(tmp_path).encode(text).ids

    assert CLIPTokenizer(vocab=VOCABULARY, merges=MERGES)(text)["input_ids"] == ids


def test_the_service_can_serve_it(tmp_path: Path) -> None:
    """Texts stand between start and end, padded with 0; a label that spells a special token is only characters."""
    write_vocabulary(tmp_path)
    section = TextSection(
        padding="longest",
        min_length=2,
        max_length=24,
        pad_id=0,
        end_of_text_id=END,
        canonicalization="tokenizer",
        overflow="refuse",
    )
    short, long = Tokenizer(clip(tmp_path), section).encode(["cat", END_OF_TEXT]).tolist()

    assert (VOCABULARY[START_OF_TEXT], END) == (short[0], short[short.index(END)])
    assert {0} == set(short[short.index(END) + 1 :])
    assert [len(long) - 1] == [i for i, token in enumerate(long) if token == END]


def test_special_tokens_of_other_names_are_those_that_the_folder_says(tmp_path: Path) -> None:
    """special_tokens_map.json tells them, as a text or with how they are matched."""
    renamed = {{START_OF_TEXT: "<s>", END_OF_TEXT: "</s>"}.get(token, token): i for token, i in VOCABULARY.items()}
    write_vocabulary(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(renamed))
    assert f"lacks the token '{START_OF_TEXT}'" in refusal(tmp_path)

    said = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(said))

    ids = clip(tmp_path).encode("cat").ids
    assert [renamed["<s>"], renamed["</s>"]] == [ids[0], ids[-1]]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """It says what is looked for, and how to name one."""
    assert refusal(tmp_path) == (
        f"{tmp_path}: holds no tokenizer (tokenizer.json, vocab.json with merges.txt, or {REFERENCE}); "
        "name one with --tokenizer"
    )
    assert refusal(tmp_path / "no.json") == f"{tmp_path / 'no.json'}: is missing; name a tokenizer with --tokenizer"


@pytest.mark.parametrize("content", [b"", b"\xff{broken", b"[1, 2", b"{}", b'{"model": {"type": "BPE"}}'])
def test_a_corrupt_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    """Each is one line that begins with the file."""
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert refusal(tmp_path).startswith(f"{tmp_path / 'tokenizer.json'}: is not ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("merges.txt", b"#version: 0.2\na b c\n", "merges.txt: 'a b c' is not a merge of two tokens"),
        ("merges.txt", b"alone\n", "merges.txt: 'alone' is not a merge of two tokens"),
        ("merges.txt", b"zz qq\n", "vocab.json: vocabulary and merges do not fit together"),
        ("merges.txt", None, "merges.txt: is missing; vocab.json and merges.txt belong together"),
        ("vocab.json", b'{"a": "b"}', "vocab.json: must give every token its number"),
        ("vocab.json", b'{"a": 1}', "vocab.json: lacks the token '!'; it is not a vocabulary of CLIP"),
        ("vocab.json", b"[1]", "vocab.json: must hold a JSON object"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    """A byte without a token would be dropped from every text in silence, so it is an error too."""
    write_vocabulary(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert f"{tmp_path}/{message}" in refusal(tmp_path if name == "merges.txt" else tmp_path / "vocab.json")


def test_a_reference_list_that_is_too_short_or_damaged_is_refused(tmp_path: Path) -> None:
    """It must hold as many merges as the model's vocabulary has room for."""
    path = write_reference(tmp_path)
    assert "does not hold the vocabulary of 49408 tokens" in refusal(path, vocab_size=49408, end_of_text_id=49407)
    assert "does not hold the vocabulary of 100 tokens" in refusal(path, vocab_size=100, end_of_text_id=99)
    packed = path.read_bytes()
    path.write_bytes(packed[:-100])
    assert refusal(path).startswith(f"{path}: is not a readable gzip file")
    path.write_bytes(b"plain")
    assert refusal(path).startswith(f"{path}: is not a readable gzip file")
    path.write_bytes(gzip.compress(bytes(33 << 20)))
    assert refusal(path) == f"{path}: unpacks to more than 32 MiB, so it is no vocabulary"


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """It must end a text with the model's end of text, and have no more tokens than the model."""
    write_vocabulary(tmp_path)
    assert f"does not end a text with the model's end-of-text id {END - 1}" in refusal(tmp_path, end_of_text_id=END - 1)
    assert f"has {SIZE} tokens, the model's text tower knows {SIZE - 1}" in refusal(tmp_path, vocab_size=SIZE - 1)


# --- SigLIP ----------------------------------------------------------------------------------------------------------


def canonical(text: str) -> str:
    """Bring a text to SigLIP's form in Python's own words, as big_vision's ``canonicalize_text`` says it."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", text).strip()


def siglip(folder: Path, *, vocab_size: int = 200, tokenizer: Path | None = None) -> TextTokens:
    """Read SigLIP's tokenizer."""
    return read_siglip_tokenizer(folder, tokenizer=tokenizer, vocab_size=vocab_size)


def siglip_refusal(folder: Path, *, vocab_size: int = 200) -> str:
    """Return the one line that a tokenizer of SigLIP is refused with."""
    with pytest.raises(SourceError) as caught:
        siglip(folder, vocab_size=vocab_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_settings(folder: Path, **changes: object) -> None:
    """Change tokenizer_config.json; None takes a field out."""
    path = folder / "tokenizer_config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def test_siglips_texts_are_canonicalised_by_the_tokenizer(tmp_path: Path) -> None:
    """Lower case, no punctuation, white space collapsed: as Python does it, for every such character."""
    plain = siglip_tokenizer()
    write_siglip_tokenizer(tmp_path, siglip_tokenizer())
    white = [chr(i) for i in range(sys.maxunicode + 1) if chr(i).isspace()]
    texts = [*TEXTS, string.punctuation, *(f" a{space}{space}CAT{space}" for space in white), "a cat — “so” … ¡x!"]

    read = siglip(tmp_path)
    backend = Backend.from_str(read.content.decode())
    backend.encode_special_tokens = True

    assert (1, 1) == (read.pad_id, read.end_of_text_id)
    assert [plain.encode(canonical(text)).ids for text in texts] == [backend.encode(text).ids for text in texts]


def test_canonicalising_twice_does_no_harm(tmp_path: Path) -> None:
    """Where the file canonicalises already, the ids stay as they are."""
    write_siglip_tokenizer(tmp_path, siglip_tokenizer())
    once = siglip(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(once.content)
    twice = siglip(tmp_path)

    first, second = (Backend.from_str(read.content.decode()) for read in (once, twice))
    assert [first.encode(text).ids for text in TEXTS] == [second.encode(text).ids for text in TEXTS]


def test_case_is_kept_where_the_settings_say_so(tmp_path: Path) -> None:
    """A SigLIP tokenizer of do_lower_case false still loses punctuation."""
    write_siglip_tokenizer(tmp_path, siglip_tokenizer())
    edit_settings(tmp_path, do_lower_case=False)
    backend = Backend.from_str(siglip(tmp_path).content.decode())

    assert siglip_tokenizer().encode("A CAT").ids == backend.encode("A (CAT).").ids != backend.encode("a cat").ids


@pytest.mark.parametrize("name", ["GemmaTokenizer", "GemmaTokenizerFast", "Siglip2Tokenizer"])
def test_siglip_2_only_lower_cases(tmp_path: Path, name: str) -> None:
    """Its texts keep their punctuation, and are padded with a token of its own."""
    write_gemma_tokenizer(tmp_path, tokenizer_class=name, padding_side="right")
    plain = Backend.from_file(str(tmp_path / "tokenizer.json"))
    read = siglip(tmp_path, vocab_size=250)
    backend = Backend.from_str(read.content.decode())

    assert (0, 1) == (read.pad_id, read.end_of_text_id)
    assert plain.encode("a photo, of a cat.").ids == backend.encode("A Photo, of a CAT.").ids
    assert plain.encode("a photo of a cat").ids != backend.encode("a photo, of a cat.").ids


def test_what_the_settings_say_of_start_and_end_counts(tmp_path: Path) -> None:
    """Gemma's own file may put a start before every text; add_bos_token and add_eos_token decide."""
    write_gemma_tokenizer(tmp_path, add_bos_token=True)
    backend = Backend.from_str(siglip(tmp_path, vocab_size=250).content.decode())
    ids = backend.encode("cat").ids
    assert [2, 1] == [ids[0], ids[-1]]

    edit_settings(tmp_path, add_bos_token=False, add_eos_token=True)
    backend = Backend.from_str(siglip(tmp_path, vocab_size=250).content.decode())
    assert ids[1:] == backend.encode("cat").ids

    edit_settings(tmp_path, add_eos_token=False)
    assert "does not end a text with the model's end-of-text id 1" in siglip_refusal(tmp_path, vocab_size=250)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokenizer_class": "T5Tokenizer"},
            "tokenizer_class is T5Tokenizer; how its texts are canonicalised is known",
        ),
        ({"tokenizer_class": None}, "tokenizer_class is None; "),
        ({"padding_side": "left"}, "pads texts on the left (padding_side)"),
        ({"pad_token": "<padding>"}, "has no token '<padding>', the padding"),
        ({"eos_token": "<end>"}, "has no token '<end>', the end of text"),
        ({"eos_token": 7}, "eos_token is not a token"),
        ({"do_lower_case": "yes"}, "do_lower_case must be true or false"),
    ],
)
def test_siglip_settings_that_cannot_be_served_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """The field at fault is named."""
    write_siglip_tokenizer(tmp_path, siglip_tokenizer())
    edit_settings(tmp_path, **changes)
    assert message in siglip_refusal(tmp_path)


def test_siglip_without_a_tokenizers_file_is_told_how_to_make_one(tmp_path: Path) -> None:
    """spiece.model is not read; the line says which command makes a tokenizer.json of it, and that is then read."""
    write_siglip_tokenizer(tmp_path, siglip_tokenizer())
    expected = siglip(tmp_path)
    elsewhere = (tmp_path / "tokenizer.json").rename(tmp_path / "made.json")

    said = siglip_refusal(tmp_path)
    assert said.startswith(f"{tmp_path / 'tokenizer.json'}: is missing, and spiece.model is not read; ")
    assert "name it with --tokenizer" in said
    assert expected == siglip(tmp_path, tokenizer=elsewhere)

    (tmp_path / "tokenizer_config.json").unlink()
    assert "tokenizer_config.json: is missing; it says how texts are canonicalised" in siglip_refusal(tmp_path)
