import io
import json
import logging
from typing import Any

import pytest
import structlog

from service.errors import InferenceFailed, InvalidLabels
from service.monitoring import logs

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture
def stream() -> io.StringIO:
    """Return the log of this test."""
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Parse the lines logged so far."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_line_is_json_with_level_logger_and_time(stream: io.StringIO) -> None:
    """Our events and those of libraries have one form."""
    logs.get_logger("service.test").info("hello", answer=42)
    logging.getLogger("some.library").warning("watch %s", "out")
    own, foreign = lines(stream)
    assert {"event", "answer", "level", "logger", "timestamp"} == set(own)
    assert ("hello", 42, "info", "service.test") == (own["event"], own["answer"], own["level"], own["logger"])
    assert ("watch out", "warning", "some.library") == (foreign["event"], foreign["level"], foreign["logger"])


def test_the_request_id_is_on_every_line_of_a_request(stream: io.StringIO) -> None:
    """Libraries' lines too."""
    structlog.contextvars.bind_contextvars(request_id="r-1")
    logs.get_logger("service.test").info("own")
    logging.getLogger("some.library").warning("foreign")
    assert ["r-1", "r-1"] == [line["request_id"] for line in lines(stream)]


def test_levels(stream: io.StringIO) -> None:
    """Events below the level are not written."""
    logs.get_logger("service.test").debug("detail")
    logging.getLogger("some.library").debug("detail")
    assert "" == stream.getvalue()


def test_loggers_that_quote_their_input_are_silent(stream: io.StringIO) -> None:
    """The multipart parser's warnings have bytes of the body, uvicorn's access log has the query string."""
    logging.getLogger("python_multipart.multipart").warning("secret")
    logging.getLogger("uvicorn.access").info("GET /?labels=secret")
    assert "" == stream.getvalue()


def test_a_traceback_shows_where_and_what_but_no_input(stream: io.StringIO) -> None:
    """The text of an exception that may quote a label is withheld; that of its cause, which cannot, is shown."""

    def run_out() -> None:
        raise RuntimeError("CUDA out of memory")

    def fail() -> None:
        try:
            run_out()
        except RuntimeError as exc:
            raise InferenceFailed("label 'secret' failed") from exc

    try:
        fail()
    except InferenceFailed:
        logs.get_logger("service.test").exception("request failed")
    key = "sec" + "ret"
    try:
        {"known": 1}[key]
    except KeyError:
        logging.getLogger("some.library").exception("lookup failed")
    first, second = lines(stream)
    assert "in fail" in first["exception"]
    assert "RuntimeError: CUDA out of memory" in first["exception"]
    assert "service.errors.InferenceFailed: (text withheld)" in first["exception"]
    assert "KeyError: (text withheld)" in second["exception"]
    assert "secret" not in second["exception"]
    assert "label 'secret' failed" not in first["exception"].partition("InferenceFailed: ")[2]


def test_an_exception_may_be_passed_directly(stream: io.StringIO) -> None:
    """As `exc_info`, outside of any except block."""
    logs.get_logger("service.test").error("failed", exc_info=InvalidLabels("secret"))
    assert "service.errors.InvalidLabels: (text withheld)" == lines(stream)[0]["exception"]


def test_console_lines_are_for_people() -> None:
    """They have no colours without a terminal."""
    stream = io.StringIO()
    logs.configure("info", "console", stream)
    logs.get_logger("service.test").info("hello", answer=42)
    assert "hello" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
