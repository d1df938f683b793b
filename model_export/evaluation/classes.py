"""Map labels to classes: the labels that a model chooses from, and the right one for each image."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from model_export.errors import DataError
from model_export.evaluation.class_files import WORDNET_FILES, ClassFile, find_wordnet_names
from model_export.evaluation.data.folder import WORDNET_ID
from model_export.evaluation.data.samples import Label, Source, printable
from service.errors import InvalidLabels, TooManyLabels
from service.model.prompts import normalise_label, normalise_labels

Targets: TypeAlias = npt.NDArray[np.int64]

_MOST_CLASSES: Final = 100_000
_NAME_CHARS: Final = 1_000
_SHOWN: Final = 3


@dataclass(frozen=True)
class Classes:
    """The classes that the model chooses from.

    Attributes:
        names: normalised as in the service. Two classes may share a name (ImageNet has two cranes).
        targets: for each source, its rows' classes as indices into ``names``, int64 ``[rows]``.
        remarks: notes for people on classes with the same name.
    """

    names: tuple[str, ...]
    targets: tuple[Targets, ...]
    remarks: tuple[str, ...]


def find_classes(sources: Sequence[Source], given: ClassFile | None = None) -> Classes:
    """Find the classes of a set of images.

    With a file, they are all of its classes in its order, and numeric labels are indices into it. Without one, they
    are the classes of the data, and a file beside the data names WordNet ids.

    Raises:
        DataError: a label is not among the classes, names are missing, a name is invalid, or the data have fewer than
            two classes, for which any answer would be right.
    """
    found = [dict.fromkeys(source.labels) for source in sources]
    if given is not None:
        lookups, names = _among(given, sources, found), given.names
        origin = given.origin
    else:
        lookups, names = _from_data(sources, found)
        origin = str(sources[0].path) if len(sources) == 1 else "the data"
    targets = tuple(
        np.fromiter(map(lookup.__getitem__, source.labels), np.int64, len(source.labels))
        for source, lookup in zip(sources, lookups, strict=True)
    )
    names = _checked(names, origin)
    if len(names) < 2:
        raise DataError(
            f"{origin}: has the class {names[0]!r} only, so any answer would be right; "
            "name all classes to choose from with --classes FILE"
        )
    return Classes(names, targets, _remarks(names))


def _among(
    given: ClassFile, sources: Sequence[Source], found: Sequence[Mapping[Label, None]]
) -> list[dict[Label, int]]:
    """Map every label to its place in a file of classes."""
    places: dict[str, int] = {}
    for index, name in enumerate(given.names):
        places.setdefault(normalise_label(name), index)
    ids = dict(zip(given.ids or (), range(len(given.names)), strict=False))
    wordnet = sorted({label for labels in found for label in labels if _is_wordnet(label)})
    if wordnet and not ids:
        if len(wordnet) != len(given.names):
            raise DataError(
                f"{given.origin}: has {len(given.names):,} names without WordNet ids, the data have {len(wordnet):,} "
                "ids; write lines such as 'n01440764 tench'"
            )
        ids = {wordnet_id: index for index, wordnet_id in enumerate(wordnet)}

    def place(label: Label) -> int | None:
        if isinstance(label, int):
            return label if 0 <= label < len(given.names) else None
        return ids.get(label) if _is_wordnet(label) else places.get(normalise_label(label))

    lookups: list[dict[Label, int]] = []
    for source, labels in zip(sources, found, strict=True):
        placed = {label: place(label) for label in labels}
        if unknown := [label for label, index in placed.items() if index is None]:
            raise DataError(
                f"{source.path}: {_some(unknown)} not among the {len(given.names):,} classes of {given.origin}; "
                "add them, or leave --classes out"
            )
        lookups.append({label: index for label, index in placed.items() if index is not None})
    return lookups


def _from_data(
    sources: Sequence[Source], found: Sequence[Mapping[Label, None]]
) -> tuple[list[dict[Label, int]], tuple[str, ...]]:
    """Collect the classes of all sources: first those that sources list, in their order, then the others by name."""
    names: dict[str, str] = {}  # key of a class (an id, or a name) → name
    keys: list[dict[Label, str]] = []
    for source, labels in zip(sources, found, strict=True):
        listed = [normalise_label(name) for name in source.class_names or ()]
        names.update({name: name for name in listed})
        keys.append(_keys(source, labels, listed))
    others: dict[str, str] = {}
    for source, own in zip(sources, keys, strict=True):
        others |= _names_of(source, [key for key in own.values() if key not in names])
    names |= {key: others[key] for key in sorted(others)}
    places = {key: index for index, key in enumerate(names)}
    return [{label: places[key] for label, key in own.items()} for own in keys], tuple(names.values())


def _keys(source: Source, labels: Iterable[Label], listed: Sequence[str]) -> dict[Label, str]:
    keys: dict[Label, str] = {}
    for label in labels:
        if not isinstance(label, int):
            keys[label] = label if _is_wordnet(label) else normalise_label(label)
        elif not listed:
            raise DataError(
                f"{source.path}: its labels are numbers, such as {label}; name them with --classes FILE, "
                "one class a line, number 0 first"
            )
        elif not 0 <= label < len(listed):
            raise DataError(
                f"{source.path}: has the label {label}, but names only {len(listed)} classes; correct either"
            )
        else:
            keys[label] = listed[label]
    return keys


def _names_of(source: Source, keys: Iterable[str]) -> dict[str, str]:
    names = {key: key for key in keys}
    wordnet = sorted(filter(_is_wordnet, names))
    if wordnet:
        known = find_wordnet_names(source.path)
        if known is None:
            raise DataError(
                f"{source.path}: its classes are WordNet ids, such as {wordnet[0]}; name them with --classes FILE, in "
                f"lines such as 'n01440764 tench', or put {', '.join(WORDNET_FILES[:-1])} or {WORDNET_FILES[-1]} beside"
            )
        named = dict(zip(known.ids or (), known.names, strict=False))
        if unknown := [key for key in wordnet if key not in named]:
            raise DataError(f"{known.origin}: does not name {_some(unknown)}; add them")
        names |= {key: named[key] for key in wordnet}
    return names


def _checked(names: Sequence[str], origin: str) -> tuple[str, ...]:
    normalised = tuple(map(normalise_label, names))
    try:
        normalise_labels(tuple(dict.fromkeys(normalised)), max_labels=_MOST_CLASSES, max_chars=_NAME_CHARS)
    except (InvalidLabels, TooManyLabels) as exc:
        raise DataError(f"{origin}: has invalid class names: {exc.detail}") from exc
    return normalised


def _remarks(names: Sequence[str]) -> tuple[str, ...]:
    shared = [name for name, count in Counter(names).items() if count > 1]
    if not shared:
        return ()
    return (f"{_some(shared)}: several classes have this name; the model cannot distinguish them, and takes the first",)


def _is_wordnet(label: Label) -> TypeGuard[str]:
    return isinstance(label, str) and WORDNET_ID.fullmatch(label) is not None


def _some(labels: Sequence[Label]) -> str:
    shown = ", ".join(printable(repr(label)) for label in labels[:_SHOWN])
    return shown if len(labels) <= _SHOWN else f"{shown} and {len(labels) - _SHOWN:,} more"
