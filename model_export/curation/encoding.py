"""Encode pictures and captions of tables by a bundle; the engine is opened once in each process."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from model_export.data.captions import CaptionEncoder, is_usable
from model_export.errors import CurationError
from service.errors import AnyclassError, InferenceFailed
from service.images.decoding import decode
from service.model.arrays import Pixels, Vectors
from service.model.choices import Preprocessing
from service.model.engine.cpus import available_cpus
from service.model.engine.engine import OnnxEngine
from service.model.engine.providers import resolve
from service.model.loading import Bundle, load_bundle
from service.model.tokenizer import Tokenizer

_AHEAD: Final = 2
"""Batches of pictures that are decoded while one is encoded."""
_DECIDING: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "openvino", "pillow", "tokenizers")
"""Packages whose version may change a vector."""
NO_PICTURE: Final = "no picture"
NO_TEXT: Final = "no text"


class Encoded(NamedTuple):
    """Vectors of n rows.

    Attributes:
        vectors: float32 ``[n, dim]``, unit length; zeros for a row with a problem.
        problems: for each row why it has no vector, or None.
        cut: number of texts that were cut to the context.
    """

    vectors: Vectors
    problems: list[str | None]
    cut: int = 0


class BundleEncoder:
    """Runs a bundle over tables. It can be pickled: each process opens the engine when it first needs it.

    Batches follow from the rows alone, not from threads: the pictures that can be decoded in their order, and the texts
    by length.

    Attributes:
        bundle: of the folder.
        decides: everything about the encoder that decides its vectors, as JSON holds it.
    """

    def __init__(
        self,
        folder: Path,
        provider: str = "auto",
        *,
        threads: int | None = None,
        batch_size: int = 32,
        preprocessing: Preprocessing = "exact",
    ) -> None:
        """Open the bundle and its engine.

        Args:
            folder: of the bundle.
            provider: a name as in the service's settings.
            threads: of the engine on the CPU, and of decoding; one a core if None.
            batch_size: pictures or texts that are encoded at a time.
            preprocessing: as in the service's settings.

        Raises:
            BundleError: the bundle is damaged.
            ProviderUnavailable, ConfigurationError: the provider is missing, or does not fit the bundle.
        """
        self.bundle: Bundle = load_bundle(folder)
        self._threads, self._batch_size, self._preprocessing = threads, batch_size, preprocessing
        self._resolved = resolve(provider)
        self._open: OnnxEngine | None = OnnxEngine.load(self.bundle, self._resolved, threads=threads)
        self._captions: CaptionEncoder | None = None
        if self._open.provider != self._resolved.name and self._resolved.second:
            self._resolved = replace(self._resolved.second, second=None)
        self.decides: dict[str, Any] = {
            "model": self.bundle.manifest.name,
            "revision": self.bundle.manifest.revision,
            "provider": self._open.provider,
            "precision": self._open.precision,
            "batch_size": batch_size,
            "preprocessing": preprocessing,
            "versions": _versions(),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what other processes cannot use."""
        return {**self.__dict__, "_open": None, "_captions": None}

    @property
    def dim(self) -> int:
        """Return the length of a vector."""
        return self.bundle.manifest.dim

    @property
    def engine(self) -> OnnxEngine:
        """Return the engine of this process.

        Raises:
            CurationError: this node's engine would give other vectors than the one that the run was begun with.
        """
        if self._open is None:
            # `second` is left out: a process that cannot open the first one would compute other vectors.
            first = replace(self._resolved, second=None)
            self._open = OnnxEngine.load(self.bundle, first, threads=self._threads)
            found: Mapping[str, Any] = {"precision": self._open.precision, "versions": _versions()}
            if differing := [name for name, value in found.items() if value != self.decides[name]]:
                raise CurationError(f"{', '.join(differing)} of the engine differ between nodes; install the same ones")
        return self._open

    def close(self) -> None:
        """Free the engine of this process; it is opened again when it is needed."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def encode_pictures(self, pictures: Iterable[bytes | None]) -> Encoded:
        """Decode pictures in threads while batches of them are encoded.

        Raises:
            CurationError: the engine failed.
        """
        parts: list[Vectors] = []
        pixels: list[Pixels] = []
        problems: list[str | None] = []
        with closing(self._decoded(pictures)) as stream:
            for each in stream:
                problems.append(each if isinstance(each, str) else None)
                if isinstance(each, str):
                    continue
                pixels.append(each)
                if len(pixels) == self._batch_size:
                    parts.append(self._encode_pixels(pixels))
                    pixels = []
        if pixels:
            parts.append(self._encode_pixels(pixels))
        return Encoded(_spread(parts, problems, self.dim), problems)

    def encode_texts(self, texts: Sequence[str | None]) -> Encoded:
        """Encode texts, each distinct one once; a text longer than the context is cut as for training.

        Raises:
            CurationError: the engine failed.
        """
        if self._captions is None:
            tokenizer = Tokenizer.from_bundle(self.bundle)
            self._captions = CaptionEncoder(tokenizer, self.bundle.manifest.text.max_length)
        problems = [None if is_usable(text) else NO_TEXT for text in texts]
        usable = [text for text, problem in zip(texts, problems, strict=True) if text is not None and problem is None]
        places = {text: place for place, text in enumerate(sorted(set(usable), key=lambda text: (len(text), text)))}
        vectors = np.zeros((len(places), self.dim), np.float32)
        cut = np.zeros(len(places), np.bool_)
        distinct = iter(places)
        start = 0
        while batch := list(islice(distinct, self._batch_size)):
            ids, cut[start : start + len(batch)] = self._captions.encode(batch)
            try:
                vectors[start : start + len(batch)] = self.engine.encode_texts(ids)
            except InferenceFailed as error:
                raise CurationError(error.detail) from error
            start += len(batch)
        chosen = [places[text] for text in usable]
        return Encoded(_spread([vectors[chosen]], problems, self.dim), problems, int(cut[chosen].sum()))

    def _encode_pixels(self, pixels: list[Pixels]) -> Vectors:
        try:
            return self.engine.encode_images(np.stack(pixels))
        except InferenceFailed as error:
            raise CurationError(f"{error.detail} Take a smaller --batch-size if memory ran out.") from error

    def _decoded(self, pictures: Iterable[bytes | None]) -> Generator[Pixels | str]:
        """Yield pixels, or the reason why a picture has none, in order."""
        waiting: deque[Future[Pixels | str]] = deque()
        pool = ThreadPoolExecutor(self._threads or available_cpus(), thread_name_prefix="decode")
        try:
            for picture in pictures:
                waiting.append(pool.submit(self._decode, picture))
                if len(waiting) > _AHEAD * self._batch_size:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, picture: bytes | None) -> Pixels | str:
        if picture is None:
            return NO_PICTURE
        try:
            return decode(picture, self.bundle.manifest.image, preprocessing=self._preprocessing)
        except AnyclassError as error:
            return error.detail


def _spread(parts: Sequence[Vectors], problems: Sequence[str | None], dim: int) -> Vectors:
    """Return a row for each problem: the next vector where it is None, else zeros."""
    vectors = np.zeros((len(problems), dim), np.float32)
    if parts:
        vectors[[at for at, problem in enumerate(problems) if problem is None]] = np.concatenate(parts)
    return vectors


def _versions() -> dict[str, str]:
    found = {}
    for package in _DECIDING:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
