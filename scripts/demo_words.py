"""Teach the demo model words for things that no picture of its data shows, by their place in WordNet.

    PYTHONPATH=. python scripts/demo_words.py RUN DATA OUT --wordnet /usr/share/wordnet

RUN is a training run, DATA the folder of its Parquet files, OUT the run to write. WordNet's files are those of Debian's
package wordnet-base. Only the text encoder changes.

Words that pictures taught (at least `TAUGHT_ROWS` rows) keep their vectors. Every other noun of WordNet for a thing
gets the vector that kernel ridge regression expects of its synset, given those of the taught words: near "penguin" and
"goose" for "pelican". The kernel is Lin's similarity (1998, "An information-theoretic definition of similarity"), with
the information content of Seco et al. (2004), which needs no corpus.
"""

import argparse
import functools
import json
import math
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from model_export.checkpoints.layouts import RECIPE
from model_export.checkpoints.training_run import CARD, CONFIG, WEIGHTS
from model_export.data.captions import CaptionEncoder
from model_export.families.tokenizers import TOKENIZER
from model_export.training.blueprint import blueprint_of_run
from model_export.training.model import build_model
from service.model.tokenizer import Tokenizer

TEMPLATES: Final = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a {}.",
    "{}",
    "a photo of the {}.",
    "a blurry photo of a {}.",
)
TAUGHT_ROWS: Final = 20
KINDS: Final = frozenset({"05", "06", "13", "17", "20"})
"""WordNet's files of animals, artifacts, food, natural objects and plants; people are left out."""
KERNEL_WIDTH: Final = 0.15
RIDGE: Final = 0.3
SEEN_FEW_TIMES: Final = 0.5
"""Share of a word's own vector if fewer pictures than `TAUGHT_ROWS` have it."""
BATCH: Final = 256
"""Texts of each kind in a step."""
LR: Final = 1e-3
STAY: Final = 2.0
"""Weight of the texts that shall stay, beside 1 of the words."""
SEED: Final = 2026
REPORT_EVERY: Final = 100
RELATED: Final = 0.55
"""Least similarity of a noun's sense to its class."""
NOUN_WORDS: Final = 4
"""A text of more words is a caption."""
PLURALS: Final = 0.2
"""Share of the words that a step takes in the plural."""
_WORD: Final = re.compile(r"[a-z]+([ '-][a-z]+){0,2}")

Vectors = npt.NDArray[np.float32]


class WordNet:
    """Synsets of nouns, by their offsets in ``data.noun``; the format is that of wndb(5WN)."""

    def __init__(self, folder: Path) -> None:
        self.parents: dict[str, list[str]] = {}
        self.kind: dict[str, str] = {}
        self.words: dict[str, list[str]] = {}
        """Of a synset of one of the `KINDS`, spelled with capitals where these belong to it."""
        for fields in _lines(folder / "data.noun"):
            words, pointers = fields[4 : 4 + 2 * int(fields[3], 16)], fields[4 + 2 * int(fields[3], 16) :]
            self.kind[fields[0]] = fields[1]
            if fields[1] in KINDS:
                self.words[fields[0]] = [word.replace("_", " ") for word in words[::2]]
            self.parents[fields[0]] = [pointers[at + 1] for at in range(1, len(pointers), 4) if pointers[at][0] == "@"]
        self.senses = {
            fields[0].replace("_", " "): fields[len(fields) - int(fields[2]) :]
            for fields in _lines(folder / "index.noun")
        }
        self.count: Counter[str] = Counter()
        """Occurrences of a word in the texts that WordNet's authors annotated."""
        for key, _, count in _lines(folder / "cntlist.rev"):
            word, _, sense = key.partition("%")
            if sense.startswith("1:"):
                self.count[word.replace("_", " ")] += int(count)
        below = Counter(above for synset in self.parents for above in self.above(synset))
        total = math.log(len(self.parents))
        self.content = {synset: 1 - math.log(below[synset]) / total for synset in self.parents}

    @functools.cache  # noqa: B019 - one WordNet a program
    def above(self, synset: str) -> frozenset[str]:
        """Return a synset and all that it is a kind of."""
        return frozenset({synset}.union(*map(self.above, self.parents[synset])))

    def things(self) -> dict[str, str]:
        """Return words with their most frequent sense that is of one of the `KINDS`; sorted."""
        words = sorted({word for each in self.words.values() for word in each if _WORD.fullmatch(word)})
        return {word: next(each for each in self.senses[word] if word in self.words.get(each, ())) for word in words}

    def everyday(self, word: str, synset: str) -> float:
        """Return how common a word is: its occurrences, and one more for what is made or eaten."""
        return self.count[word] + (1.0 if self.kind[synset] in {"06", "13"} else 0.2)

    def thing(self, word: str, like: str | None = None) -> str | None:
        """Return the most frequent sense of one of the `KINDS`; of several words, as a last resort, of the last.

        Args:
            word: with or without capitals, in the singular or the plural.
            like: a synset: the sense that is most similar to it, if one is at least `RELATED`. "Chat" is a bird, and
                no French cat.
        """
        for spelled in (word.lower(), word.lower().removesuffix("s"), word.lower().removesuffix("es")):
            senses = [synset for synset in self.senses.get(spelled, ()) if spelled in self.words.get(synset, ())]
            if senses and like is not None:
                near = self.similarity(senses, [like])[:, 0]
                return senses[int(near.argmax())] if near.max() >= RELATED else None
            if senses:
                return senses[0]
        _, space, last = word.rpartition(" ")
        return self.thing(last, like) if space else None

    def similarity(self, synsets: Sequence[str], others: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return Lin's similarity of each pair, in [0, 1]: ``[synsets, others]``."""
        common = dict[str, npt.NDArray[np.bool_]]()
        for column, other in enumerate(others):
            for above in self.above(other):
                common.setdefault(above, np.zeros(len(others), dtype=np.bool_))[column] = True
        contents = np.array([self.content[other] for other in others])
        rows = np.zeros((len(synsets), len(others)))
        for row, synset in enumerate(synsets):
            for above in self.above(synset):
                if above in common:
                    np.maximum(rows[row], self.content[above] * common[above], out=rows[row])
            rows[row] *= 2 / (self.content[synset] + contents + 1e-9)
        return rows


def expected(wordnet: WordNet, synsets: Sequence[str], taught: Sequence[str], vectors: Vectors) -> Vectors:
    """Return the vectors that regression expects of synsets: float32 ``[synsets, width]`` of length 1.

    Args:
        wordnet: the synsets.
        synsets: to be given a vector.
        taught: synsets of known vectors.
        vectors: float32 ``[taught, width]``.
    """
    mean = vectors.mean(axis=0)
    own, other = (
        np.exp((wordnet.similarity(each, taught) - 1) / KERNEL_WIDTH) for each in (list(taught), list(synsets))
    )
    weights = np.linalg.solve(own + RIDGE * np.eye(len(taught)), vectors - mean)
    found = mean + other @ weights
    of_length_1: Vectors = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return of_length_1


def main() -> int:
    """Write the run, and print how near the encoder comes to what it was taught."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="training run whose text encoder is taught")
    parser.add_argument("data", type=Path, help="folder of the Parquet files that it was trained on")
    parser.add_argument("out", type=Path, help="run to write")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder of WordNet's files")
    parser.add_argument("--steps", type=int, default=2_400)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wordnet, texts = WordNet(options.wordnet), Texts.of(options.data)
    model = Encoder(options.run)
    taught = texts.taught(wordnet)
    words = {word: synset for word, synset in wordnet.things().items() if texts.rows[word] < TAUGHT_ROWS}
    print(f"{len(taught):,} words of the data are taken from WordNet, {len(words):,} others are taught", flush=True)
    targets = expected(wordnet, list(words.values()), list(taught.values()), model.vectors(prompts(taught)))
    if few := [at for at, word in enumerate(words) if texts.rows[word]]:
        own = model.vectors(prompts([list(words)[at] for at in few]))
        targets[few] = (1 - SEEN_FEW_TIMES) * targets[few] + SEEN_FEW_TIMES * own
    odds = np.sqrt([wordnet.everyday(word, synset) for word, synset in words.items()])
    teach(model, texts.kept(words), (list(words), targets, odds), options.steps)
    model.write(options.out)
    return 0


class Encoder:
    """The text encoder of a run."""

    def __init__(self, run: Path) -> None:
        blueprint = blueprint_of_run(run)
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(blueprint.tokenizer.decode()), blueprint.text)
        self._run, self._weights = run, load_file(run / WEIGHTS)
        self._captions = CaptionEncoder(tokenizer, blueprint.text.max_length)
        self.tower = build_model(blueprint, "softmax", self._weights).text

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return vectors of length 1: float32 ``[texts, width]``."""
        return normalize(self.tower(torch.from_numpy(self._captions(texts))).float(), dim=1)

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors of many texts, without gradients."""
        parts = [self(texts[at : at + BATCH]).numpy() for at in range(0, len(texts), BATCH)]
        return np.concatenate(parts)

    def write(self, out: Path) -> None:
        """Write a run that differs in the text encoder; the provenance says so."""
        out.mkdir(parents=True)
        for name in (TOKENIZER, RECIPE, CARD):
            if (self._run / name).exists():
                shutil.copyfile(self._run / name, out / name)
        config = json.loads((self._run / CONFIG).read_text())
        config["provenance"]["source"] += "; words of WordNet taught to the text encoder by scripts/demo_words.py"
        (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        tower = {f"text.{name}": value for name, value in self.tower.state_dict().items()}
        save_file(self._weights | tower, out / WEIGHTS)


@dataclass
class Texts:
    """The texts of the data.

    Attributes:
        nouns: rows by noun and class.
        rows: rows by noun, or by class.
        all: rows by text.
    """

    nouns: Counter[tuple[str, str]]
    rows: Counter[str]
    all: Counter[str]

    @classmethod
    def of(cls, folder: Path) -> "Texts":
        """Count the texts of the files in a folder."""
        texts = cls(Counter(), Counter(), Counter())
        for path in sorted(folder.glob("*.parquet")):
            table = pq.read_table(path, columns=["text", "label"])
            for text, label in zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True):
                texts.all[text] += 1
                if label:
                    texts.all[label] += 1
                    texts.nouns[text, label] += 1
                    texts.rows.update({text, label})
        return texts

    def taught(self, wordnet: WordNet) -> dict[str, str]:
        """Return the words that pictures taught, with their synsets: classes, and nouns that are like their class."""
        classes = {label for _, label in self.nouns}
        found = {word: wordnet.thing(word) for word in sorted(classes) if self.rows[word] >= TAUGHT_ROWS}
        for (noun, label), rows in sorted(self.nouns.items()):
            if rows >= TAUGHT_ROWS and noun not in classes and (like := found.get(label)):
                found[noun] = wordnet.thing(noun, like)
        return {word: synset for word, synset in found.items() if synset}

    def kept(self, words: Mapping[str, str]) -> tuple[list[str], npt.NDArray[np.float64]]:
        """Return texts whose vectors shall stay, and how often each is drawn."""
        found, odds = [], []
        for text, rows in self.all.items():
            if text not in words:
                each = prompts([text], TEMPLATES) if len(text.split()) <= NOUN_WORDS else [text]
                found += each
                odds += [math.sqrt(rows) / len(each)] * len(each)
        return found, np.array(odds)


def teach(
    model: Encoder,
    kept: tuple[list[str], npt.NDArray[np.float64]],
    words: tuple[list[str], Vectors, npt.NDArray[np.float64]],
    steps: int,
) -> None:
    """Train the encoder to give words their targets and to leave other texts where they are."""
    texts, text_odds = kept
    nouns, targets, odds = words
    stay, go = torch.from_numpy(model.vectors(texts)), normalize(torch.from_numpy(targets), dim=1)
    rng = np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(model.tower.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, pct_start=0.05)
    sums, since = np.zeros(2), 0
    for step in range(1, steps + 1):
        old = rng.choice(len(texts), BATCH, p=text_odds / text_odds.sum())
        new = rng.choice(len(nouns), BATCH, p=odds / odds.sum())
        shown = [plural(nouns[at]) if rng.random() < PLURALS else nouns[at] for at in new]
        given = [TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(word) for word in shown]
        near = (model([*(texts[at] for at in old), *given]) * torch.cat([stay[old], go[new]])).sum(dim=1)
        loss = STAY * (1 - near[:BATCH]).mean() + (1 - near[BATCH:]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        sums, since = sums + near.detach().reshape(2, BATCH).mean(dim=1).numpy(), since + 1
        if step % REPORT_EVERY == 0 or step in {1, steps}:
            old_near, new_near = sums / since
            print(f"step {step}/{steps}: cosine of old texts {old_near:.4f}, of words {new_near:.4f}", flush=True)
            sums, since = np.zeros(2), 0


def prompts(words: Iterable[str], templates: Sequence[str] = TEMPLATES[:1]) -> list[str]:
    """Put words into templates."""
    return [template.format(word) for word in words for template in templates]


def plural(word: str) -> str:
    """Return the regular plural of a noun."""
    if re.search(r"([sx]|[cs]h)$", word):
        return f"{word}es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", word) + "s"


def _lines(path: Path) -> Iterator[list[str]]:
    """Yield the fields of each line but the licence's and behind the gloss."""
    for line in path.read_text("latin-1").splitlines():
        if not line.startswith(" "):
            yield line.partition(" | ")[0].split()


if __name__ == "__main__":
    sys.exit(main())
