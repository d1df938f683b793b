import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.openai.batch_lines import RouteLineHandler
from service.api.services import Services
from service.jobs.validation import CHUNK_LINES, MAX_FAULTS, LineSplitter, Validation
from service.monitoring.metrics import Metrics
from service.settings import Settings

BODY = {"image": "AAAA", "labels": ["a", "b"]}


def line(custom_id: object = "a", **changes: Any) -> dict[str, Any]:
    """Build a line that is valid except for `changes`; None omits a field."""
    fields = {"custom_id": custom_id, "method": "POST", "url": "/v1/classify", "body": BODY, **changes}
    return {name: value for name, value in fields.items() if value is not None}


def validated(content: bytes, *, pieces: int = 7, max_lines: int = 100, endpoint: str = "/v1/classify") -> Validation:
    """Validate a file that arrives in pieces."""
    handler = RouteLineHandler(Services(settings=Settings(), metrics=Metrics()))
    validation = Validation(handler, endpoint, max_lines=max_lines, max_line_bytes=1_000)
    for start in range(0, len(content), pieces):
        validation.feed(content[start : start + pieces])
    return validation


def file_of(*lines: object) -> bytes:
    """Join lines as in a file."""
    return b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines)


@given(st.lists(st.binary(max_size=12).filter(lambda each: b"\n" not in each)), st.integers(1, 20))
def test_lines_are_cut_wherever_the_pieces_end(lines: list[bytes], size: int) -> None:
    """Each line has its first byte and number; a line that is too long has no content."""
    content = b"".join(each + b"\n" for each in lines)
    splitter = LineSplitter(8)
    found = [each for start in range(0, len(content), size) for each in splitter.feed(content[start : start + size])]
    found += splitter.finish()
    assert [each if len(each) <= 8 else None for each in lines] == [each for _, _, each in found]
    assert list(range(1, len(lines) + 1)) == [number for _, number, _ in found]
    for start, number, _ in found:
        assert content[start:].startswith(lines[number - 1])


def test_blank_lines_are_few() -> None:
    """200 MiB of them would take minutes to read, again for each chunk; one after each line is usual."""
    lines = [each for n in range(10) for each in (line(f"id {n}"), b"")]
    assert [] == validated(file_of(*lines, b""), max_lines=10).faults
    validation = validated(file_of(*lines, b"", b"", *[b""] * 100), max_lines=10)
    validation.finish()
    assert [("too_many_blank_lines", 21)] == [(fault.code, fault.line) for fault in validation.faults]
    assert validation.over


def test_a_valid_file_is_cut_into_chunks_at_lines() -> None:
    """Each chunk begins at a line; blank lines only count for line numbers."""
    lines = [json.dumps(line(f"id {n}")).encode() for n in range(2 * CHUNK_LINES + 1)]
    content = b"\n\n" + b"\n".join(lines) + b"\r\n"
    validation = validated(content)
    plan = validation.finish()
    assert [] == validation.faults
    assert (2 * CHUNK_LINES + 1, len(content)) == (plan.lines, plan.bytes)
    assert [3, 3 + CHUNK_LINES, 3 + 2 * CHUNK_LINES] == list(plan.first_lines)
    assert [lines[0], lines[CHUNK_LINES], lines[-1]] == [
        content[start:].split(b"\n")[0].strip() for start in plan.starts
    ]


@pytest.mark.parametrize(
    ("broken", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b'{"custom_id": "a", "custom_id": "b"}', "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None),
        (b"[" * 900, "invalid_json_line", None),
        (b'{"custom_id": "' + b"x" * 1_000 + b'"}', "line_too_long", None),
        (line(None), "missing_required_parameter", "custom_id"),
        (line(method=None), "missing_required_parameter", "method"),
        (line(body=None), "missing_required_parameter", "body"),
        (line(7), "invalid_custom_id", "custom_id"),
        (line(""), "invalid_custom_id", "custom_id"),
        (line("x" * 257), "invalid_custom_id", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/embeddings"), "invalid_url", "url"),
        (line(body=[]), "invalid_body", "body"),
        (line(extra=1), "unknown_field", "extra"),
        (line(body={"labels": ["a"]}), "invalid_request", "body.image"),
        (line(body={**BODY, "image": ["a"]}), "invalid_request", "body.image"),
        (line(body={**BODY, "labels": "a"}), "invalid_request", "body.labels"),
        (line(body={**BODY, "top_k": 0}), "invalid_request", "body.top_k"),
        (line(body={**BODY, "colour": 1}), "invalid_request", "body.colour"),
        (line("good"), "duplicate_custom_id", "custom_id"),
    ],
)
def test_a_line_that_is_no_request_is_named(broken: object, code: str, param: str | None) -> None:
    """The fault has the line's number, a code and the field."""
    validation = validated(file_of(line("good"), b"", broken, line("fine")))
    validation.finish()
    assert [(3, code, param)] == [(fault.line, fault.code, fault.param) for fault in validation.faults]


def test_lines_for_embeddings_are_checked_as_the_route_does() -> None:
    """A body that the route would refuse is refused."""
    url = "/v1/embeddings"
    content = file_of(line(url=url, body={"input": "a"}), line("b", url=url, body={"inputs": "a"}))
    validation = validated(content, endpoint=url)
    validation.finish()
    assert [2] == [fault.line for fault in validation.faults]


def test_an_empty_file_is_a_fault() -> None:
    """A file without requests is refused."""
    validation = validated(b"\n \n")
    validation.finish()
    assert ["empty_file"] == [fault.code for fault in validation.faults]


def test_too_many_lines_are_a_fault() -> None:
    """The fault names the first line above the limit; later lines are not read."""
    validation = validated(file_of(*(line(f"id {n}") for n in range(5))), max_lines=3)
    validation.finish()
    assert [("too_many_requests", 4)] == [(fault.code, fault.line) for fault in validation.faults]


def test_only_so_many_faults_are_told() -> None:
    """A file of another format does not give a fault for every line."""
    validation = validated(b"x\n" * 500, pieces=100, max_lines=1_000)
    assert validation.over
    validation.finish()
    assert MAX_FAULTS == len(validation.faults)
