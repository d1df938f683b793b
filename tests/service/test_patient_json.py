"""Parsing of large JSON: the values of `json`, in steps that are short for the other threads."""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import patient_json
from service.api.request import strict_json
from service.api.request.strict_json import MAX_NAMES, parse_json_object
from service.errors import AnyclassError, MalformedRequest, PayloadTooLarge
from service.patient_json import MAX_TEXT_BYTES, PatientParser
from tests.support.longest_step import longest_step

SIZE = 2**20
LONGEST_S = 0.01

DECODER = json.JSONDecoder(object_pairs_hook=lambda pairs: pairs, parse_constant=lambda name: name)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)
MARKS = ['"', "\\", "[", "]", "{", "}", ",", ":", " ", "\n", "1", "-", ".", "e", "true", "null", "NaN", "\x01"]
MARKS += ["\\u12", "\\ud83d\\ude00", "\\ud83d", "\\ude00", "é", '"a"', '"a":', "[1,2]", '"x",', '{"a":1},']


def patient(text: str) -> Any:
    """Parse without any limit."""
    return PatientParser(DECODER, lambda *_: None, max_names=MAX_NAMES).parse(text.encode())


def outcome(parse: Callable[[str], Any], text: str) -> object:
    """Return the value of `text`, or its error with the place."""
    try:
        return parse(text)
    except json.JSONDecodeError as exc:
        return exc.msg, exc.lineno, exc.colno
    except ValueError as exc:
        return type(exc)


@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 0, 2]))
def test_every_document_has_the_value_that_json_gives_it(value: Any, ascii_only: bool, indent: int | None) -> None:
    """Also with escapes and white space."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert DECODER.decode(text) == patient(text)


@given(st.lists(st.sampled_from(MARKS), max_size=14), st.sampled_from(["{}", "[{}]", '{{"a":{}}}', '["{}"]']))
def test_what_json_refuses_is_refused(marks: list[str], around: str) -> None:
    """And nothing else; with the same message, line and column."""
    text = around.format("".join(marks))
    assert outcome(DECODER.decode, text) == outcome(patient, text)


@given(st.lists(st.sampled_from(["a", "\\n", "\\\\", '\\"', "\\u00e9", "\\ud83d\\ude00", "\\ud83d", "é"]), max_size=60))
def test_a_long_string_is_the_same_wherever_it_is_divided(parts: list[str]) -> None:
    """No escape is cut in two, nor a pair of surrogates."""
    text = f'["{"".join(parts)}"]'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patient_json, "_PIECE", 13)
        assert DECODER.decode(text) == patient(text)


def filled(head: bytes, unit: bytes, tail: bytes = b"]}") -> bytes:
    """Return a large document; of arrays and objects a smaller one, because the measurement takes long."""
    size = SIZE // 4 if unit[:1] in b"[{" and tail else SIZE
    return head + unit * (size // len(unit)) + unit.rstrip(b",") + tail


LARGE = {
    "empty lists": filled(b'{"a":[', b"[],"),
    "short texts": filled(b'{"a":[', b'"ab",'),
    "numbers": filled(b'{"a":[', b"17,"),
    "pixels": filled(b'{"a":[', b"[1,2,3],"),
    "rows of pixels": filled(b'{"a":[', b"[" + b"[1,2,3]," * 200 + b"[1,2,3]],"),
    "digits": filled(b'{"a":[', b"9" * 4_000 + b","),
    "names": filled(b'{"a":[', b'{"label":"a","descriptions":["b","c"]},'),
    "base64": filled(b'{"a":"', b"QUJD", b'"}'),
    "escaped slashes": filled(b'{"a":"', b"QUJ\\/", b'"}'),
    "escapes": filled(b'{"a":"', b"\\n", b'"}'),
    "backslashes": filled(b'{"a":"', b"\\\\", b'"}'),
    "surrogates": filled(b'{"a":"', b"\\ud83d\\ude00", b'"}'),
    "emoji": filled(b'{"a":"', "\U0001f600".encode(), b'"}'),
    "white space": filled(b'{"a":', b" ", b"1}"),
    "one number": filled(b'{"a":1.', b"9", b"}"),
    "nesting": filled(b'{"a":', b"[", b""),
    "no end": filled(b'{"a":"', b'\\"', b""),
}


@pytest.mark.parametrize("name", LARGE)
def test_no_step_holds_the_lock_for_long(name: str) -> None:
    """Between two calls other threads can run: no call to C takes long, though the whole may."""
    body, parsed = LARGE[name], dict[str, Any]()
    with longest_step() as step:
        try:
            parsed = parse_json_object(body, numbers=True)
        except AnyclassError:
            assert name in ("one number", "nesting", "no end")
    assert step.seconds < LONGEST_S
    assert not parsed or json.loads(body) == parsed


@pytest.mark.parametrize(
    ("body", "values"),
    [(b'{"a":[%s]}', 5_002), (b'{"a":[[%s]]}', 5_003), (b'{"a":[{"b":[%s]},1]}', 5_005), (b'{"a":[%s,[1,{}]]}', 5_005)],
)
def test_values_are_counted_without_those_in_strings(body: bytes, values: int) -> None:
    """A label with commas is one value."""
    whole = body % b",".join([b'"a, b, [c]"'] * 5_000)
    assert json.loads(whole) == parse_json_object(whole, max_values=values)
    with pytest.raises(PayloadTooLarge, match=f"more than {values - 1} values"):
        parse_json_object(whole, max_values=values - 1)


def test_an_object_of_many_names_is_refused() -> None:
    """Each name costs time, and no object here has more than a few; in a large document the rest is not read."""
    names = b",".join(b'"%x":1' % number for number in range(MAX_NAMES + 1))
    for body in (b"{%s}" % names, b'{"a":{%s},"b":"%s"}' % (names, b"c" * 2**17), b'{"a":[{%s},1]}' % (names * 99)):
        with pytest.raises(PayloadTooLarge, match="more than 256 names"):
            parse_json_object(body)


def test_a_document_is_not_copied_as_text() -> None:
    """Text with an emoji takes four bytes for each character: 20 MB would become 80, in one step."""
    body = b'{"a":%s"\xf0\x9f\x90\xb1"}' % (b" " * 2**22)
    tracemalloc.start()
    try:
        assert {"a": "\N{CAT FACE}"} == parse_json_object(body)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_long_text_is_ascii() -> None:
    """As base64 is. Its pieces become one text in one step, which takes long if a character takes four bytes."""
    long = b"a" * MAX_TEXT_BYTES
    assert {"a": long.decode()} == parse_json_object(b'{"a":"%s"}' % long)
    with pytest.raises(PayloadTooLarge, match=f"more than {MAX_TEXT_BYTES} bytes"):
        parse_json_object(b'{"a":"%s\xc3\xa9"}' % long)


@pytest.mark.parametrize("body", [b'{"a":"\xff"}', b'{"a":"\xc3"}', b'{"a":1}\xe2\x82'])
def test_a_document_that_is_not_utf_8_is_refused(body: bytes) -> None:
    """Also in its last bytes, and however long it is."""
    for space in (b"", b" " * 2**17):
        with pytest.raises(MalformedRequest, match="must be in UTF-8"):
            parse_json_object(space + body)


def test_a_byte_order_mark_is_passed_over() -> None:
    """PowerShell and .NET write one; RFC 8259 allows to ignore it (section 8.1). Elsewhere it is no JSON."""
    body = b'{"a": 1}'
    assert {"a": 1} == parse_json_object(b"\xef\xbb\xbf" + body)
    long = b'{"a": "%s"}' % (b"x" * 2 * strict_json._SHORT_BYTES)
    assert json.loads(long) == parse_json_object(b"\xef\xbb\xbf" + long)
    with pytest.raises(MalformedRequest):
        parse_json_object(b"\xef\xbb\xbf\xef\xbb\xbf" + body)
