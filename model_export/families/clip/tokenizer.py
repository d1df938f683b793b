"""CLIP's tokenizer from whatever a source carries it as → the bytes of a ``tokenizer.json`` that can be served.

A source has a ``tokenizer.json``; or ``vocab.json`` with ``merges.txt``, as older releases of transformers write them;
or the reference implementation's ``bpe_simple_vocab_16e6.txt.gz``. The last two hold only the vocabulary: how a text is
cut into words is then what transformers does for CLIP, and start and end of text stand around every text.
"""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model_export.checkpoints.json_files import read_object
from model_export.checkpoints.model_source import check_tokenizer
from model_export.errors import SourceError
from model_export.families.clip.bpe import END_OF_TEXT, END_OF_WORD, START_OF_TEXT, WORD_PATTERN
from model_export.files import decoded, read

TOKENIZER: Final = "tokenizer.json"
VOCABULARY: Final = "vocab.json"
MERGES: Final = "merges.txt"
REFERENCE: Final = "bpe_simple_vocab_16e6.txt.gz"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
SPECIAL_TOKENS: Final = "special_tokens_map.json"

_MERGES_HEADER: Final = "#version"
_MAX_REFERENCE: Final = 32 << 20
"""Bytes of an unpacked vocabulary; the reference's has 3 MB."""


@dataclass(frozen=True)
class OpenTokenizer:
    """A tokenizer, and the file it was read from.

    Attributes:
        path: for what is said of it.
        backend: neither pads nor truncates.
    """

    path: Path
    backend: Tokenizer

    def token_id(self, token: str, name: str) -> int:
        """Return the id of a token.

        Raises:
            SourceError: there is no such token; ``name`` says what it would be.
        """
        found: int | None = self.backend.token_to_id(token)
        if found is None:
            raise SourceError(f"{self.path}: has no token {token!r}, the {name}")
        return found

    def to_json(self, *, vocab_size: int, end_of_text_id: int) -> bytes:
        """Return the bytes of a ``tokenizer.json``; the same tokenizer gives the same bytes.

        Raises:
            SourceError: it does not fit the text tower, see `check_tokenizer`.
        """
        content = self.backend.to_str(pretty=True).encode()
        check_tokenizer(content, self.path, vocab_size=vocab_size, end_of_text_id=end_of_text_id)
        return content


def tokenizer_json(folder_or_file: Path, *, vocab_size: int, end_of_text_id: int) -> bytes:
    """Read CLIP's tokenizer.

    Args:
        folder_or_file: a folder with one of the three, or a file of them.
        vocab_size: tokens that the text tower knows.
        end_of_text_id: the token at which the text tower reads its feature.

    Returns:
        A ``tokenizer.json`` that neither pads nor truncates, and adds start and end of text.

    Raises:
        SourceError: there is none, it cannot be read, or it does not fit the text tower.
    """
    opened = open_tokenizer(folder_or_file, vocab_size=vocab_size)
    return opened.to_json(vocab_size=vocab_size, end_of_text_id=end_of_text_id)


def open_tokenizer(folder_or_file: Path, *, vocab_size: int) -> OpenTokenizer:
    """Read CLIP's tokenizer, without looking whether it fits; arguments and errors as of `tokenizer_json`."""
    path = _found(folder_or_file)
    if path.name in {VOCABULARY, MERGES}:
        return _from_vocabulary(path.with_name(VOCABULARY), path.with_name(MERGES))
    if path.suffix in {".gz", ".txt"}:
        return _from_reference(path, vocab_size)
    return open_tokenizer_json(path)


def open_tokenizer_json(path: Path) -> OpenTokenizer:
    """Read a ``tokenizer.json``; what it says of padding and truncation is left out.

    Raises:
        SourceError: it is not there, or cannot be read.
    """
    text = decoded(read(path, hint="name a tokenizer with --tokenizer"), path)
    try:
        backend = Tokenizer.from_str(text)
    except Exception as exc:  # the library raises bare Exception
        raise SourceError(f"{path}: is not a tokenizer ({_first_line(exc)})") from exc
    backend.no_padding()
    backend.no_truncation()
    return OpenTokenizer(path, backend)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer that `open_tokenizer` would read."""
    return any((folder / name).exists() for name in (TOKENIZER, VOCABULARY, REFERENCE))


@dataclass(frozen=True)
class TokenizerSettings:
    """What stands beside a tokenizer, in ``tokenizer_config.json`` and ``special_tokens_map.json``, where they are."""

    path: Path
    fields: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "TokenizerSettings":
        """Read both files; the first one's word counts.

        Raises:
            SourceError: one of them is not a JSON object.
        """
        fields: dict[str, Any] = {}
        for name in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
            if (folder / name).exists():
                fields |= read_object(folder / name, hint="")
        return cls(folder / TOKENIZER_CONFIG, fields)

    def token(self, name: str, default: str) -> str:
        """Return a special token, such as ``eos_token``, or the default of the tokenizer's class.

        Raises:
            SourceError: it is not a text.
        """
        value = self.fields.get(name)
        if isinstance(value, dict):  # with how it is to be matched
            value = value.get("content")
        if value is None:
            return default
        if not isinstance(value, str):
            raise SourceError(f"{self.path}: {name} is not a token")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a setting that is true or false.

        Raises:
            SourceError: it is neither.
        """
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SourceError(f"{self.path}: {name} must be true or false")
        return value


def _found(source: Path) -> Path:
    if not source.is_dir():
        return source
    for name in (TOKENIZER, VOCABULARY, REFERENCE):
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
    """Read the reference's list of merges, of which a model uses as many as its vocabulary has room for."""
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
    """Return the 256 letters that stand for the bytes, in the reference's order, which is that of their code points."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _byte_level_bpe(
    path: Path, ids: dict[str, int], merges: list[tuple[str, str]], *, start: str, end: str
) -> OpenTokenizer:
    # A byte that the vocabulary lacks would be left out of a text in silence.
    absent = [form for byte in _alphabet() for form in (byte, byte + END_OF_WORD) if form not in ids]
    if absent or start not in ids or end not in ids:
        lacking = absent[0] if absent else start if start not in ids else end
        raise SourceError(f"{path}: lacks the token {lacking!r}; it is not a vocabulary of CLIP")
    try:
        backend = Tokenizer(models.BPE(vocab=ids, merges=merges, end_of_word_suffix=END_OF_WORD))
    except Exception as exc:  # the library raises bare Exception
        raise SourceError(f"{path}: vocabulary and merges do not fit together ({_first_line(exc)})") from exc
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


def _first_line(exc: Exception) -> str:
    return next(iter(str(exc).splitlines()), type(exc).__name__)
