"""Logs on standard error, uvicorn's included: JSON lines, or coloured lines for people.

Client data is never logged: no image, no label, no key. So a traceback withholds the texts of exceptions that may quote
their input; see `_may_quote_input`.
"""

import logging
import sys
import traceback
from functools import partial
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from service.errors import AnyclassError
from service.settings import LogFormat, LogLevel

_WARNINGS_ONLY: Final = ("uvicorn.error", "httpx", "httpcore", "asyncio")
"""Loggers with little of use below a warning; the service logs its start and end itself."""
_SILENT: Final = "python_multipart"
"""Its warnings quote the input."""


def configure(
    level: LogLevel = "info", log_format: LogFormat = "json", stream: TextIO | None = None, *, worker: int | None = None
) -> None:
    """Send every log record of this process, structlog's and the standard library's, to `stream` (standard error).

    With `worker`, each line has the number: several processes share the stream.
    """
    out = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _safe_traceback,
    ]
    if worker is not None:
        shared.append(partial(_name_worker, worker))
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=out.isatty())
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_keep_message_of_foreign, structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _drop_foreign_extras, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        library = logging.getLogger(name)
        library.handlers = []
        library.propagate = True
    # The service logs each request; uvicorn's line would show the query string, which may have labels.
    logging.getLogger("uvicorn.access").disabled = True
    for name in _WARNINGS_ONLY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(_SILENT).setLevel(logging.CRITICAL)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger of this log."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _name_worker(number: int, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event["worker"] = number
    return event


def _keep_message_of_foreign(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Drop uvicorn's coloured copy of a message, which is for its own formatter."""
    record: logging.LogRecord | None = event.get("_record")
    if record is not None:
        record.__dict__.pop("color_message", None)
    return event


def _drop_foreign_extras(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)
    return event


def _safe_traceback(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Turn `exc_info` into text that quotes nothing of a request."""
    exc_info: Any = event.pop("exc_info", None)
    if not exc_info:
        return event
    if isinstance(exc_info, BaseException):
        error: BaseException | None = exc_info
    elif isinstance(exc_info, tuple):
        error = exc_info[1]
    else:
        error = sys.exc_info()[1]
    if error is not None:
        event["exception"] = safe_traceback(error)
    return event


def safe_traceback(error: BaseException) -> str:
    """Return the traceback of `error` and its causes, innermost first, without texts that may quote a request."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        name = f"{type(current).__module__}.{type(current).__qualname__}".removeprefix("builtins.")
        text = "(text withheld)" if _may_quote_input(current) else str(current)
        parts.append("".join(traceback.format_tb(current.__traceback__)) + f"{name}: {text}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n\nwhich led to\n\n".join(reversed(parts))


def _may_quote_input(error: BaseException) -> bool:
    """Return whether the text of such exceptions often repeats the value at fault: a key, a number, a label."""
    return isinstance(error, (LookupError, ValueError, TypeError, AnyclassError))
