"""Reads CLIP's tokenizer, in any of its forms, as the bytes of a ``tokenizer.json``.

A source has a ``tokenizer.json``; or ``vocab.json`` with ``merges.txt``, as older releases of transformers write them;
or the reference implementation's ``bpe_simple_vocab_16e6.txt.gz``. The last two hold only the vocabulary: words are
then split as transformers splits them for CLIP, and start and end of text stand around every text.
"""

import gzip
import importlib.metadata
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model_export.errors import SourceError, first_line
from model_export.families.clip.bpe import END_OF_TEXT, END_OF_WORD, START_OF_TEXT, WORD_PATTERN
from model_export.families.tokenizers import (
    MERGES,
    REFERENCE,
    TOKENIZER,
    TOKENIZER_FILES,
    VOCABULARY,
    OpenTokenizer,
    TokenizerSettings,
    open_tokenizer_json,
)
from model_export.files import decoded, read, read_object

_DISTRIBUTIONS: Final = ("open_clip_torch", "clip")
"""The packages that carry the reference vocabulary."""

_MERGES_HEADER: Final = "#version"
_MAX_REFERENCE: Final = 32 << 20
"""Bytes of an unpacked vocabulary; the reference's has 3 MB."""


def tokenizer_json(folder_or_file: Path, *, vocab_size: int, end_of_text_id: int) -> bytes:
    """Read CLIP's tokenizer.

    Args:
        folder_or_file: one of the three forms, or a folder that holds one.
        vocab_size: tokens that the text tower knows.
        end_of_text_id: the token at which the text tower reads its feature.

    Returns:
        A ``tokenizer.json`` that neither pads nor truncates, and adds start and end of text.

    Raises:
        SourceError: the tokenizer is missing, cannot be read, or does not fit the text tower.
    """
    opened = open_tokenizer(folder_or_file, vocab_size=vocab_size)
    return opened.to_json(vocab_size=vocab_size, end_of_text_id=end_of_text_id)


def open_tokenizer(folder_or_file: Path, *, vocab_size: int) -> OpenTokenizer:
    """Read CLIP's tokenizer without checking that it fits; arguments and errors as of `tokenizer_json`."""
    path = _found(folder_or_file)
    if path.name in {VOCABULARY, MERGES}:
        return _from_vocabulary(path.with_name(VOCABULARY), path.with_name(MERGES))
    if path.suffix in {".gz", ".txt"}:
        return _from_reference(path, vocab_size)
    return open_tokenizer_json(path)


def installed_vocabulary() -> Path | None:
    """Find the reference vocabulary in an installed package, which is not imported: that would need torchvision."""
    for name in _DISTRIBUTIONS:
        try:
            files = importlib.metadata.files(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files or ():
            if file.name == REFERENCE and (path := Path(str(file.locate()))).is_file():
                return path
    return None


def _found(source: Path) -> Path:
    if not source.is_dir():
        return source
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            return source / name
    raise SourceError(
        f"{source}: holds no tokenizer ({TOKENIZER}, {VOCABULARY} with {MERGES}, or {REFERENCE}); "
        "name one with --tokenizer"
    )


def _from_vocabulary(vocabulary: Path, merges: Path) -> OpenTokenizer:
    hint = f"{VOCABULARY} and {MERGES} belong together"
    ids = read_object(vocabulary, hint=hint)
    if not all(isinstance(value, int) for value in ids.values()):
        raise SourceError(f"{vocabulary}: must give every token its number")
    lines = decoded(read(merges, hint=hint), merges).split("\n")
    if lines[0].startswith(_MERGES_HEADER):
        del lines[0]
    settings = TokenizerSettings.read(vocabulary.parent)
    return _byte_level_bpe(
        vocabulary,
        ids,
        _pairs(lines, merges),
        start=settings.token("bos_token", START_OF_TEXT),
        end=settings.token("eos_token", END_OF_TEXT),
    )


def _from_reference(path: Path, vocab_size: int) -> OpenTokenizer:
    """Read the reference's list of merges; a model uses as many as its vocabulary has room for."""
    content = read(path, hint="name a tokenizer with --tokenizer")
    if path.suffix == ".gz":
        content = _unpacked(content, path)
    alphabet = _alphabet()
    room = vocab_size - 2 * len(alphabet) - 2
    pairs = _pairs(decoded(content, path).split("\n")[1 : room + 1] if room > 0 else [], path)
    if len(pairs) != room:
        raise SourceError(f"{path}: does not hold the vocabulary of {vocab_size} tokens that the model knows")
    tokens = [*alphabet, *(byte + END_OF_WORD for byte in alphabet), *map("".join, pairs), START_OF_TEXT, END_OF_TEXT]
    ids = {token: number for number, token in enumerate(tokens)}
    return _byte_level_bpe(path, ids, pairs, start=START_OF_TEXT, end=END_OF_TEXT)


def _unpacked(content: bytes, path: Path) -> bytes:
    try:
        with gzip.GzipFile(fileobj=BytesIO(content)) as stream:
            unpacked = stream.read(_MAX_REFERENCE + 1)
    except (OSError, EOFError, zlib.error) as exc:
        raise SourceError(f"{path}: is not a readable gzip file ({exc})") from exc
    if len(unpacked) > _MAX_REFERENCE:
        raise SourceError(f"{path}: unpacks to more than {_MAX_REFERENCE >> 20} MiB, so it is no vocabulary")
    return unpacked


def _pairs(lines: Sequence[str], path: Path) -> list[tuple[str, str]]:
    pairs = []
    for line in lines:
        if not line:
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not left or not right or " " in right:
            raise SourceError(f"{path}: {line!r} is not a merge of two tokens")
        pairs.append((left, right))
    return pairs


def _alphabet() -> list[str]:
    """Return the 256 letters that stand for the bytes in the reference's order, that of their code points."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _byte_level_bpe(
    path: Path, ids: dict[str, int], merges: list[tuple[str, str]], *, start: str, end: str
) -> OpenTokenizer:
    # A byte that the vocabulary lacks would be dropped from texts silently.
    absent = [form for byte in _alphabet() for form in (byte, byte + END_OF_WORD) if form not in ids]
    if absent or start not in ids or end not in ids:
        lacking = absent[0] if absent else start if start not in ids else end
        raise SourceError(f"{path}: lacks the token {lacking!r}; it is not a vocabulary of CLIP")
    try:
        backend = Tokenizer(models.BPE(vocab=ids, merges=merges, end_of_word_suffix=END_OF_WORD))
    except Exception as exc:  # the library raises bare Exception
        raise SourceError(f"{path}: vocabulary and merges do not fit together ({first_line(exc)})") from exc
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(END_OF_WORD, " ")])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(token, ids[token]) for token in (start, end)]
    )
    return OpenTokenizer(path, backend)
