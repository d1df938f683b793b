"""`anyclass classify`: each image in turn, by a model in this process or by a service."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from service.api.schemas import answer_json
from service.classifier import Classification, Classifier, LabelQuery, ScoringOptions
from service.cli.client import RemoteClassifier, RemoteError
from service.cli.terminal import heading, predictions_table, printable
from service.errors import (
    AnyclassError,
    BundleError,
    ConfigurationError,
    InvalidImage,
    InvalidRequest,
    PayloadTooLarge,
    ProviderUnavailable,
    TooManyLabels,
    UnknownModel,
    UnsupportedImageFormat,
)
from service.metrics import Metrics
from service.models import ModelRegistry
from service.settings import Settings
from service.text_cache import open_text_cache

OK: Final = 0
SOME_FAILED: Final = 1
BAD_INPUT: Final = 2
_ABOUT_THE_IMAGE: Final = (InvalidImage, UnsupportedImageFormat, PayloadTooLarge)
_BAD_INPUT: Final = (InvalidRequest, TooManyLabels, UnknownModel, BundleError, ProviderUnavailable, ConfigurationError)


@dataclass(frozen=True, slots=True)
class Job:
    """What to classify, how, and how to show it."""

    images: tuple[Path, ...]
    query: LabelQuery
    options: ScoringOptions
    as_json: bool


class Printer:
    """Shows results on standard output and errors on standard error."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._out = Console(highlight=False)
        self.failed = 0
        self._shown = 0

    def result(self, image: Path, classification: Classification) -> None:
        """Show one image's predictions."""
        if self._job.as_json:
            self._line({"image": str(image), **answer_json(classification)})
            return
        if self._shown:
            sys.stdout.write("\n")
        self._shown += 1
        cosine = self._job.options.method == "cosine"
        with self._out.capture() as capture:
            self._out.print(heading(str(image), classification))
            self._out.print(predictions_table(classification, cosine=cosine, console=self._out))
        # The table is padded to its width, which is in the way of whoever reads it from a pipe.
        sys.stdout.write("".join(line.rstrip() + "\n" for line in capture.get().splitlines()))
        sys.stdout.flush()

    def error(self, image: Path, reason: str) -> None:
        """Say why one image has no predictions."""
        self.failed += 1
        say(f"{image}: {reason}")
        if self._job.as_json:
            self._line({"image": str(image), "error": reason})

    @property
    def exit_code(self) -> int:
        """0 when every image was classified, else 1."""
        return SOME_FAILED if self.failed else OK

    def _line(self, content: dict[str, object]) -> None:
        # ASCII, so that no terminal's or pipe's encoding can spoil it.
        sys.stdout.write(json.dumps(content) + "\n")
        sys.stdout.flush()


def say(reason: str) -> None:
    """Write one error to standard error."""
    sys.stderr.write(f"Error: {printable(reason)}\n")


def run_remote(job: Job, url: str, *, model: str | None) -> int:
    """Have a service classify. Returns the exit code."""
    printer = Printer(job)
    try:
        remote = RemoteClassifier(url)
    except RemoteError as exc:
        say(str(exc))
        return SOME_FAILED
    with remote as service:
        for image in job.images:
            try:
                printer.result(image, service.classify(image, job.query, job.options, model=model))
            except OSError as exc:
                printer.error(image, _unreadable(exc))
            except RemoteError as exc:
                if not exc.image_at_fault:
                    say(str(exc))
                    return BAD_INPUT if exc.request_at_fault else SOME_FAILED
                printer.error(image, str(exc))
    return printer.exit_code


def run_here(job: Job, settings: Settings) -> int:
    """Classify with a model that is loaded into this process. Returns the exit code."""
    from service import logs

    logs.configure("error", "console")
    try:
        return asyncio.run(_run_here(job, settings))
    except _BAD_INPUT as exc:
        say(exc.detail)
        return BAD_INPUT
    except AnyclassError as exc:
        say(exc.detail)
        return SOME_FAILED


async def _run_here(job: Job, settings: Settings) -> int:
    printer = Printer(job)
    async with _classifier(settings) as classifier:
        for path in job.images:
            try:
                image = await asyncio.to_thread(path.read_bytes)
                printer.result(path, await classifier.classify(image, job.query, job.options))
            except OSError as exc:
                printer.error(path, _unreadable(exc))
            except _ABOUT_THE_IMAGE as exc:
                printer.error(path, exc.detail)
    return printer.exit_code


@asynccontextmanager
async def _classifier(settings: Settings) -> AsyncIterator[Classifier]:
    metrics = Metrics()
    async with AsyncExitStack() as undo:
        registry = await asyncio.to_thread(ModelRegistry.load, settings, metrics)
        undo.push_async_callback(registry.close)
        await asyncio.to_thread(registry.warm)
        cache = open_text_cache(settings, metrics)
        undo.push_async_callback(cache.close)
        classifier = Classifier(registry, cache, settings, metrics)
        undo.push_async_callback(classifier.close)
        yield classifier


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {error.strerror or error}"
