"""Compute the class vectors of several template sets at once, in embedding space, by the code that serves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np

from model_export.errors import DataError
from service.errors import PromptTooLong
from service.model.arrays import Vectors
from service.model.engine.engine import Engine
from service.model.prompts import prompts_for
from service.model.scoring import class_vectors
from service.model.tokenizer import Tokenizer

TemplateSets: TypeAlias = Mapping[str, Sequence[str]]

_PROMPTS_AT_ONCE: Final = 4_096
"""Prompts whose ids and embeddings are in memory at a time: enough to sort them by length."""


def check_prompts(tokenizer: Tokenizer, names: Sequence[str], sets: TemplateSets) -> None:
    """Tokenise every prompt, which takes little time compared with encoding it.

    Raises:
        DataError: a class name makes a prompt longer than the model's context; the message names class and template.
    """
    for title, templates in sets.items():
        for block in _blocks(names, len(templates)):
            try:
                tokenizer.tokenize(prompts_for(block, templates))
            except PromptTooLong as exc:
                index = exc.index or 0
                name, template = block[index // len(templates)], templates[index % len(templates)]
                raise DataError(
                    f"class {name!r} in template {template!r} of set {title!r} is longer than the model's context; "
                    "shorten the name with --classes, or choose other --templates"
                ) from exc


def class_matrices(
    engine: Engine,
    tokenizer: Tokenizer,
    names: Sequence[str],
    sets: TemplateSets,
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> dict[str, Vectors]:
    """Compute the vectors of all classes under each template set; encode a prompt of several sets once.

    Args:
        batch_size: prompts encoded at a time.
        advance: called with the number of classes done.

    Returns:
        For each set float32 ``[classes, dim]`` of unit length: the normalised mean of a class's unit prompt vectors
        (Radford et al. 2021, section 3.1.4).

    Raises:
        InferenceFailed: the text encoder failed; NonFiniteOutput if a class vector has no direction.
    """
    matrices = {title: np.empty((len(names), engine.dim), np.float32) for title in sets}
    done = 0
    for block in _blocks(names, sum(map(len, sets.values()))):
        prompts = {title: prompts_for(block, templates) for title, templates in sets.items()}
        places = {
            prompt: index for index, prompt in enumerate(dict.fromkeys(p for own in prompts.values() for p in own))
        }
        embeddings = _encode(engine, tokenizer, list(places), batch_size)
        for title, own in prompts.items():
            rows = embeddings[[places[prompt] for prompt in own]]
            matrices[title][done : done + len(block)] = class_vectors(rows, len(sets[title]))
        done += len(block)
        advance(len(block))
    return matrices


def _blocks(names: Sequence[str], templates: int) -> Iterator[Sequence[str]]:
    size = max(1, _PROMPTS_AT_ONCE // templates)
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _encode(engine: Engine, tokenizer: Tokenizer, prompts: Sequence[str], batch_size: int) -> Vectors:
    tokens = tokenizer.tokenize(prompts)
    embeddings = np.empty((len(prompts), engine.dim), np.float32)
    order = sorted(range(len(prompts)), key=lambda index: len(tokens[index]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        embeddings[batch] = engine.encode_texts(tokenizer.pad([tokens[index] for index in batch]))
    return embeddings
