"""`anyclass classify`: many images, by a model in this process or by a service."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.classification.types import LabelQuery, ScoringOptions
from service.cli.classify.outcomes import Outcome, classified_here, classified_there
from service.cli.classify.output import Sink, open_sink
from service.cli.console.progress import Screen
from service.cli.inputs import InputError
from service.cli.options import BAD_USAGE, FAILED, INTERRUPTED, OK, Format, say
from service.cli.remote.client import RemoteError, Service
from service.errors import (
    AnyclassError,
    BundleError,
    ConfigurationError,
    InvalidRequest,
    ProviderUnavailable,
    TooManyLabels,
    UnknownModel,
)
from service.settings import Settings

_BAD_INPUT: Final = (InvalidRequest, TooManyLabels, UnknownModel, BundleError, ProviderUnavailable, ConfigurationError)


@dataclass(frozen=True, slots=True)
class Job:
    """What to classify, how, and how to show it."""

    images: tuple[str, ...]
    query: LabelQuery
    options: ScoringOptions
    format: Format
    output: Path | None
    progress: bool


@dataclass(slots=True)
class _Tally:
    done: int = 0
    failed: int = 0


def run_remote(job: Job, service: Service, *, model: str | None, in_flight: int) -> int:
    """Have a service classify. Returns the exit code."""
    return _run(
        job,
        lambda _: classified_there(job.images, job.query, job.options, service, model=model, in_flight=in_flight),
    )


def run_here(job: Job, settings: Settings) -> int:
    """Classify with a model that is loaded into this process. Returns the exit code."""
    from service.monitoring import logs

    logs.configure("error", "console")
    return _run(job, lambda ready: classified_here(job.images, job.query, job.options, settings, on_ready=ready))


def _run(job: Job, outcomes: Callable[[Callable[[], None]], AsyncGenerator[Outcome]]) -> int:
    tally = _Tally()
    started = time.monotonic()
    screen = Screen(
        bar=job.progress and len(job.images) > 1,
        results=job.output is None and job.format is not Format.parquet,
        noun="images",
    )
    try:
        sink = open_sink(job.format, job.output, screen, job.images, cosine=job.options.method == "cosine")
    except InputError as exc:
        say(str(exc))
        return BAD_USAGE
    stopped, code = "", OK
    with screen:
        try:
            asyncio.run(_write(job, outcomes, sink, screen, tally))
        except KeyboardInterrupt:
            stopped, code = "interrupted", INTERRUPTED
        except (RemoteError, AnyclassError, _WriteError) as exc:
            stopped, code = _reason(exc)
        # What is done is kept, whatever ended it.
        unwritten = _closed(sink)
    if unwritten and not stopped:
        stopped, code = unwritten, FAILED
    if stopped:
        screen.error(f"Error: {stopped}")
    if screen.has_bar or job.output is not None:
        seconds = time.monotonic() - started
        screen.error(summary(job, tally, seconds))
    if code == OK and tally.failed:
        return FAILED
    return code


async def _write(
    job: Job,
    outcomes: Callable[[Callable[[], None]], AsyncGenerator[Outcome]],
    sink: Sink,
    screen: Screen,
    tally: _Tally,
) -> None:
    total = len(job.images)
    screen.stage("loading the model")
    async with aclosing(outcomes(lambda: screen.stage("classifying", total=total))) as results:
        async for outcome in results:
            if outcome.answer is None:
                tally.failed += 1
                screen.error(f"Error: {outcome.image}: {outcome.error}")
            # In a thread: a file or a pipe may be slow, and the next images are to be worked on meanwhile.
            await asyncio.to_thread(_write_one, sink, outcome)
            tally.done += 1
            screen.stage("classifying", done=tally.done, total=total, failed=tally.failed)


class _WriteError(Exception):
    """The results could not be written."""


def _write_one(sink: Sink, outcome: Outcome) -> None:
    try:
        sink.write(outcome)
    except BrokenPipeError:
        raise  # whoever read the results has seen enough
    except OSError as exc:
        raise _WriteError(f"cannot write the results: {exc.strerror or exc}") from exc


def _closed(sink: Sink) -> str:
    """Close a sink, and say why it could not be."""
    try:
        sink.close()
    except BrokenPipeError:
        raise
    except OSError as exc:
        return f"cannot write the results: {exc.strerror or exc}"
    return ""


def _reason(error: Exception) -> tuple[str, int]:
    """What stopped it, and the exit code of that."""
    match error:
        case RemoteError():
            return str(error), error.exit_code
        case AnyclassError():
            return error.detail, BAD_USAGE if isinstance(error, _BAD_INPUT) else FAILED
        case _:
            return str(error), FAILED


def summary(job: Job, tally: _Tally, seconds: float) -> str:
    """A line that says what became of all."""
    total, done = len(job.images), tally.done - tally.failed
    rate = f", {tally.done / seconds:,.0f} a second" if tally.done and seconds >= 1 else ""
    failed = f"; {tally.failed:,} failed" if tally.failed else ""
    left = f"; {total - tally.done:,} not tried" if total > tally.done else ""
    where = f"; results in {job.output}" if job.output is not None and tally.done else ""
    return f"{done:,} of {total:,} images classified in {seconds:.1f} s{rate}{failed}{left}{where}."
