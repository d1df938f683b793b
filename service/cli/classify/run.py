"""Run of `anyclass classify`: outcomes to output, with progress, errors and the exit code."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from service.classification.types import Classification, LabelQuery, ScoringOptions
from service.cli.classify.outcomes import ImageOutcome, classify_locally, classify_remotely
from service.cli.classify.output import Output, open_output
from service.cli.console.progress import ProgressDisplay
from service.cli.inputs import InputError, describe_passed_over
from service.cli.options import Format
from service.cli.remote.client import RemoteError, Service
from service.cli.reporting import BAD_USAGE, FAILED, INTERRUPTED, OK, print_error, print_note
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
class ClassifyArguments:
    """Checked arguments of the command: images, files passed over, labels, scoring and output."""

    images: tuple[str, ...]
    passed_over: tuple[str, ...]
    query: LabelQuery
    options: ScoringOptions
    format: Format
    output: Path | None
    progress: bool


@dataclass(slots=True)
class _Tally:
    done: int = 0
    failed: int = 0
    warned: set[str] = field(default_factory=set)


def run_remote(arguments: ClassifyArguments, service: Service, *, model: str | None, in_flight: int) -> int:
    """Have a service classify, and return the exit code."""
    return _run(
        arguments,
        lambda _: classify_remotely(
            arguments.images, arguments.query, arguments.options, service, model=model, in_flight=in_flight
        ),
    )


def run_local(arguments: ClassifyArguments, settings: Settings) -> int:
    """Classify with a model loaded into this process, and return the exit code."""
    from service.monitoring import logs

    logs.configure("error", "console")
    return _run(
        arguments,
        lambda ready: classify_locally(arguments.images, arguments.query, arguments.options, settings, on_ready=ready),
    )


def _run(arguments: ClassifyArguments, outcomes: Callable[[Callable[[], None]], AsyncGenerator[ImageOutcome]]) -> int:
    tally = _Tally()
    started = time.monotonic()
    display = ProgressDisplay(
        bar=arguments.progress and len(arguments.images) > 1,
        results=arguments.output is None and arguments.format != "parquet",
        noun="images",
    )
    try:
        output = open_output(
            arguments.format, arguments.output, display, arguments.images, cosine=arguments.options.method == "cosine"
        )
    except InputError as exc:
        print_error(str(exc))
        return BAD_USAGE
    if note := describe_passed_over(arguments.passed_over):
        print_note(note)
    stopped, code = "", OK
    with display:
        try:
            asyncio.run(_write(arguments, outcomes, output, display, tally))
        except KeyboardInterrupt:
            stopped, code = "interrupted", INTERRUPTED
        except (RemoteError, AnyclassError, _WriteError) as exc:
            stopped, code = _reason(exc)
        # Results up to here are kept, even after an error.
        unwritten = _close(output)
    if unwritten and not stopped:
        stopped, code = unwritten, FAILED
    if stopped:
        display.error(f"Error: {stopped}")
    # Tables are for people: off a terminal too, their end has the totals.
    totals_table = arguments.format == "table" and tally.done > 1 and arguments.progress
    if display.has_bar or arguments.output is not None or totals_table:
        seconds = time.monotonic() - started
        display.error(summary(arguments, tally, seconds))
    if code == OK and tally.failed:
        return FAILED
    return code


async def _write(
    arguments: ClassifyArguments,
    outcomes: Callable[[Callable[[], None]], AsyncGenerator[ImageOutcome]],
    output: Output,
    display: ProgressDisplay,
    tally: _Tally,
) -> None:
    total = len(arguments.images)
    display.update("loading the model")
    async with aclosing(outcomes(lambda: display.update("classifying", total=total))) as results:
        async for outcome in results:
            if outcome.answer is None:
                tally.failed += 1
                display.error(f"Error: {outcome.image}: {outcome.error}")
            else:
                _warn(outcome.answer, display, tally)
            # In a thread: a slow file or pipe must not delay the next images.
            await asyncio.to_thread(_write_one, output, outcome)
            tally.done += 1
            display.update("classifying", done=tally.done, total=total, failed=tally.failed)


def _warn(answer: Classification, display: ProgressDisplay, tally: _Tally) -> None:
    """Print the warnings that were not printed before: those of the first image are those of all."""
    for warning in answer.warnings:
        if warning.message not in tally.warned:
            tally.warned.add(warning.message)
            display.error(f"Warning: {warning.message}")


class _WriteError(Exception):
    """The results could not be written."""


def _write_one(output: Output, outcome: ImageOutcome) -> None:
    try:
        output.write(outcome)
    except BrokenPipeError:
        raise  # the reader of the pipe has closed it
    except OSError as exc:
        raise _WriteError(f"cannot write the results: {exc.strerror or exc}") from exc


def _close(output: Output) -> str:
    """Close the output; return the reason if that fails."""
    try:
        output.close()
    except BrokenPipeError:
        raise
    except OSError as exc:
        return f"cannot write the results: {exc.strerror or exc}"
    return ""


def _reason(error: Exception) -> tuple[str, int]:
    """Return the reason and the exit code of an error that ended the run."""
    match error:
        case RemoteError():
            return str(error), error.exit_code
        case AnyclassError():
            return error.detail, BAD_USAGE if isinstance(error, _BAD_INPUT) else FAILED
        case _:
            return str(error), FAILED


def summary(arguments: ClassifyArguments, tally: _Tally, seconds: float) -> str:
    """Return a line with the totals."""
    total, done = len(arguments.images), tally.done - tally.failed
    rate = f", {tally.done / seconds:,.0f} a second" if tally.done and seconds >= 1 else ""
    failed = f"; {tally.failed:,} failed" if tally.failed else ""
    left = f"; {total - tally.done:,} not tried" if total > tally.done else ""
    where = f"; results in {arguments.output}" if arguments.output is not None and tally.done else ""
    return f"{done:,} of {total:,} images classified in {seconds:.1f} s{rate}{failed}{left}{where}."
