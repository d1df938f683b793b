import base64
import json
import tracemalloc
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from service.api.problems.table import BodyTimeout, FieldErrors, UnsupportedMediaType
from service.api.request.classify_request import parse_batch, parse_single
from service.api.request.fields import ClassifyRequest
from service.api.request.image_field import decode_image_text
from service.api.request.memory_budget import BufferedBody, MemoryBudget
from service.api.request.strict_json import parse_json_object
from service.classification.types import LabelQuery, ScoringOptions
from service.errors import (
    AnyclassError,
    InvalidImage,
    MalformedRequest,
    PayloadTooLarge,
    TooManyLabels,
)
from service.monitoring.metrics import Metrics
from service.settings import Settings

IMAGE = b"\x89PNG\r\n\x1a\n--not really\r\n--b\xff"
BASE64 = base64.b64encode(IMAGE).decode()
SETTINGS = Settings(max_body_bytes=20_000, max_labels=20, max_templates=5, max_batch_images=3)

Part = tuple[str, str | bytes, str | None]  # name, content, file name


def request_of(
    body: bytes, content_type: str | None, *, query: str = "", chunk: int = 1000, headers: dict[str, str] | None = None
) -> Request:
    """Make a request whose body arrives in chunks."""
    chunks = [body[start : start + chunk] for start in range(0, len(body), chunk)] or [b""]
    messages = iter(
        [{"type": "http.request", "body": part, "more_body": i < len(chunks) - 1} for i, part in enumerate(chunks)]
    )

    async def receive() -> Any:
        return next(messages, {"type": "http.disconnect"})

    given_headers = {**(headers or {}), **({"content-type": content_type} if content_type else {})}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/classify",
        "query_string": query.encode(),
        "state": {"buffered_body": BufferedBody(MemoryBudget(2**20, Metrics()))},
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given_headers.items()],
    }
    return Request(scope, receive)


def as_json(fields: object) -> Request:
    """Make a JSON request."""
    return request_of(json.dumps(fields).encode(), "application/json; charset=utf-8")


def form_body(parts: Sequence[Part]) -> bytes:
    """Write a form by hand."""
    body = b""
    for name, content, filename in parts:
        data = content.encode() if isinstance(content, str) else content
        more = f'; filename="{filename}"' if filename is not None else ""
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"
    return body + b"--b--\r\n"


def as_form(*parts: Part, chunk: int = 1000) -> Request:
    """Make a request with a form."""
    return request_of(form_body(parts), "multipart/form-data; boundary=b", chunk=chunk)


def as_raw(fields: Sequence[tuple[str, str]], body: bytes = IMAGE, content_type: str = "image/png") -> Request:
    """Make a request whose body is the image."""
    return request_of(body, content_type, query=urlencode(fields))


FULL = ClassifyRequest(
    images=(IMAGE,),
    query=LabelQuery(("cat", "großer Hund"), ("a {}.", "the {}.")),
    options=ScoringOptions(method="sigmoid", top_k=1, min_score=0.25, temperature=2.0),
    model="demo",
)
SCALARS = [("scoring", "sigmoid"), ("top_k", "1"), ("min_score", "0.25"), ("temperature", "2"), ("model", "demo")]
FORM_SCALARS: list[Part] = [(name, value, None) for name, value in SCALARS]
FILE: Part = ("image", IMAGE, "a.png")


@pytest.mark.parametrize(
    "request_",
    [
        lambda: as_json(
            {
                "image": BASE64,
                "labels": ["cat", "großer Hund"],
                "label_set": None,
                "templates": ["a {}.", "the {}."],
                "scoring": "sigmoid",
                "top_k": 1,
                "min_score": 0.25,
                "temperature": 2,
                "model": "demo",
            }
        ),
        lambda: as_form(
            FILE,
            ("labels", "cat", None),
            ("labels", "großer Hund", None),
            ("templates", "a {}.", None),
            ("templates", "the {}.", None),
            *FORM_SCALARS,
        ),
        lambda: as_form(
            ("labels", ' ["cat", "großer Hund"]', None),
            ("templates", '["a {}.", "the {}."]', None),
            *FORM_SCALARS,
            FILE,
        ),
        lambda: as_raw(
            [("labels", "cat"), ("labels", "großer Hund"), ("templates", "a {}."), ("templates", "the {}."), *SCALARS]
        ),
        lambda: as_raw(
            [("labels", '["cat", "großer Hund"]'), ("templates", '["a {}.", "the {}."]'), *SCALARS],
            content_type="application/octet-stream",
        ),
    ],
    ids=["json", "form", "form with lists", "raw", "raw with lists"],
)
async def test_all_forms_of_a_request_are_one(request_: Any) -> None:
    """JSON, form and raw body parse to the same internal request."""
    assert FULL == await parse_single(request_(), SETTINGS)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
async def test_a_form_may_arrive_in_any_pieces(chunk: int) -> None:
    """The sizes of the chunks do not matter."""
    parsed = await parse_single(as_form(FILE, ("labels", "cat", None), chunk=chunk), SETTINGS)
    assert (IMAGE,) == parsed.images


async def test_defaults() -> None:
    """Fields that are left out, null, or empty in a form have their defaults."""
    by_json = await parse_single(as_json({"image": BASE64, "labels": ["cat"], "top_k": None}), SETTINGS)
    by_form = await parse_single(as_form(FILE, ("labels", "cat", None), ("top_k", "", None)), SETTINGS)
    assert by_json == by_form
    assert LabelQuery(("cat",), "default") == by_json.query
    assert ScoringOptions() == by_json.options


async def test_one_template_may_stand_by_itself_in_a_form() -> None:
    """A value with {} is a template, one without is the name of a set."""
    template = await parse_single(as_raw([("labels", "cat"), ("templates", "a {}")]), SETTINGS)
    assert ("a {}",) == template.query.templates
    name = await parse_single(as_raw([("labels", "cat"), ("templates", "none")]), SETTINGS)
    assert "none" == name.query.templates


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"labels": ["cat"]}, "image"),
        ({"image": 5, "labels": ["cat"]}, "image"),
        ({"image": None, "labels": ["cat"]}, "image"),
        ({"image": BASE64}, "labels"),
        ({"image": BASE64, "labels": None}, "labels"),
        ({"image": BASE64, "labels": "cat"}, "labels"),
        ({"image": BASE64, "labels": ["cat", 7]}, "labels[1]"),
        ({"image": BASE64, "label_set": "animals", "templates": "default"}, "templates"),
        ({"image": BASE64, "label_set": "a" * 300}, "label_set"),
        ({"image": BASE64, "labels": ["cat"], "label_set": "animals"}, "labels"),
        ({"image": BASE64, "labels": ["cat"], "top_k": 0}, "top_k"),
        ({"image": BASE64, "labels": ["cat"], "top_k": 1.5}, "top_k"),
        ({"image": BASE64, "labels": ["cat"], "top_k": "1"}, "top_k"),
        ({"image": BASE64, "labels": ["cat"], "top_k": True}, "top_k"),
        ({"image": BASE64, "labels": ["cat"], "temperature": 0}, "temperature"),
        ({"image": BASE64, "labels": ["cat"], "scoring": "magic"}, "scoring"),
        ({"image": BASE64, "labels": ["cat"], "templates": 3}, "templates"),
        ({"image": BASE64, "labels": ["cat"], "model": "m" * 300}, "model"),
        ({"image": BASE64, "labels": ["cat"], "lables": ["dog"]}, "lables"),
        ({"image": BASE64, "labels": ["cat"], "images": []}, "images"),
    ],
)
async def test_a_wrong_field_is_named(fields: dict[str, Any], named: str) -> None:
    """Missing, unknown and mistyped fields are refused by name."""
    with pytest.raises(FieldErrors) as caught:
        await parse_single(as_json(fields), SETTINGS)
    assert named == caught.value.fields[0][0]
    assert caught.value.detail.startswith(named)


async def test_all_wrong_fields_are_named_at_once() -> None:
    """All faulty fields are reported together."""
    with pytest.raises(FieldErrors) as caught:
        await parse_single(as_json({"image": BASE64, "labels": [1], "top_k": "x", "min_score": "y"}), SETTINGS)
    assert ["labels[0]", "top_k", "min_score"] == [name for name, _ in caught.value.fields]


@pytest.mark.parametrize(
    "parts",
    [
        [FILE, ("labels", "cat", None), ("top_k", "1", None), ("top_k", "2", None)],
        [FILE, ("labels", "cat", None), ("top_k", "1.0", None)],
        [FILE, ("labels", "cat", None), ("top_k", "９", None)],
        [FILE, ("labels", "cat", None), ("min_score", "nan", None)],
        [FILE, ("labels", "cat", None), ("min_score", "inf", None)],
        [FILE, ("labels", "cat", None), ("min_score", "1e999", None)],
        [FILE, ("labels", "cat", None), ("temperature", "1_0", None)],
        [FILE, ("labels", '["cat"', None)],
        [FILE, ("labels", "[1]", None)],
        [FILE, ("labels", "cat", None), ("unknown", "x", None)],
        [FILE, ("labels", "cat", None), ("other", b"x", "x.png")],
        [FILE, FILE, ("labels", "cat", None)],
        [FILE],
        [("labels", "cat", None)],
        [("labels", "cat", None), ("image", "photo.jpg", None)],
        [FILE, ("labels", b"\xff", None)],
    ],
    ids=repr,
)
async def test_a_wrong_form_field_is_named(parts: list[Part]) -> None:
    """Repeated, mistyped, unknown and missing form fields are refused by name, through the same validation."""
    with pytest.raises(FieldErrors) as caught:
        await parse_single(as_form(*parts), SETTINGS)
    assert parts[-1][0] in (caught.value.fields[0][0].partition("[")[0], "image", "labels")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe{}",
        b'{"image": "AAAA", "labels": ["cat"], "min_score": NaN}',
        b'{"image": "AAAA", "labels": ["cat"], "min_score": -Infinity}',
        b'{"image": ' + b"[" * 15_000,
        b'{"top_k": ' + b"9" * 10_000 + b"}",
    ],
)
async def test_what_is_not_json_is_malformed(body: bytes) -> None:
    """Syntax errors, NaN, infinities and absurd nesting are refused as such."""
    with pytest.raises(MalformedRequest):
        await parse_single(request_of(body, "application/json"), SETTINGS)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (['["cat", "dog"]', "cup"], ("cat", "dog", "cup")),
        (["cup", ' ["cat", "dog"]'], ("cup", "cat", "dog")),
        (["cat", "", "dog"], ("cat", "dog")),
        (['["salt, pepper"]', "cat"], ("salt, pepper", "cat")),
    ],
)
async def test_a_list_means_the_same_however_often_the_field_is_there(
    values: list[str], labels: tuple[str, ...]
) -> None:
    """A JSON list among repeated values is no label; an empty value counts as not given."""
    form = as_form(FILE, *[("labels", value, None) for value in values])
    raw = as_raw([("labels", value) for value in values])
    for request in (form, raw):
        assert labels == (await parse_single(request, SETTINGS)).query.labels


async def test_a_repeated_value_that_is_no_list_is_refused() -> None:
    """A label that begins so goes into a JSON list."""
    with pytest.raises(FieldErrors, match="labels: begins with \\[ but is not a valid JSON list"):
        await parse_single(as_raw([("labels", "[x"), ("labels", "cup")]), SETTINGS)


async def test_empty_fields_of_a_form_are_not_given() -> None:
    """A browser sends each field of its form, the empty ones too."""
    empty: list[Part] = [
        (name, "", None) for name in ("label_set", "templates", "scoring", "top_k", "min_score", "temperature", "model")
    ]
    given = await parse_single(as_form(FILE, ("labels", "red", None), ("labels", "blue", None), *empty), SETTINGS)
    plain = await parse_single(as_form(FILE, ("labels", "red", None), ("labels", "blue", None)), SETTINGS)
    assert plain == given
    by_set = await parse_single(
        as_form(FILE, ("label_set", "animals", None), ("labels", "", None), ("templates", "", None)), SETTINGS
    )
    assert LabelQuery((), "default", "animals") == by_set.query
    with pytest.raises(FieldErrors, match="labels"):
        await parse_single(as_form(FILE, ("labels", "", None), ("labels", "", None)), SETTINGS)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("labels[]", "labels"), ("labels[0]", "labels"), ("label", "labels"), ("topk", "top_k"), ("csrf", None)],
)
async def test_an_unknown_field_is_named_as_such_though_repeated(name: str, meant: str | None) -> None:
    """Otherwise the client removes one of the two and has learnt nothing."""
    fields: list[Part] = [(name, "1", None), (name, "2", None)]
    with pytest.raises(FieldErrors) as caught:
        await parse_single(as_form(FILE, ("labels", "red", None), *fields), SETTINGS)
    hint = f" (did you mean {meant}?)" if meant else ""
    assert f"{name}: is not a field of this request{hint}; it has labels, label_set," in caught.value.detail


def part_of(disposition: str, content: bytes = IMAGE) -> Request:
    """Make a form of a picture, with a disposition of its own, and two labels."""
    head = f"--b\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()
    labels = form_body([("labels", "red", None), ("labels", "blue", None)])
    return request_of(head + content + b"\r\n" + labels, "multipart/form-data; boundary=b")


@pytest.mark.parametrize(
    "disposition",
    [
        "name=image",
        "name=\"image\"; filename*=UTF-8''na%C3%AFve.png",
        "name=image; filename=",
    ],
)
async def test_a_picture_is_a_file_however_its_part_is_marked(disposition: str) -> None:
    """.NET sends no file name, some Java clients only the extended one."""
    assert (IMAGE,) == (await parse_single(part_of(disposition), SETTINGS)).images
    assert (IMAGE,) == (await parse_batch(part_of(disposition), SETTINGS)).images


async def test_pictures_without_a_file_name_are_counted() -> None:
    """The limit on files is the same."""
    with pytest.raises(PayloadTooLarge, match="files"):
        await parse_batch(as_form(*[("image", IMAGE, None)] * 4), SETTINGS)


async def test_a_text_in_place_of_the_picture() -> None:
    """The message is about the forgotten @ of curl."""
    with pytest.raises(FieldErrors, match="image: must be sent as a file"):
        await parse_single(part_of("name=image", b"photo.jpg"), SETTINGS)


@pytest.mark.parametrize("content_type", ["application/x-xz", "image/png", None])
async def test_an_archive_of_another_type_is_refused_by_its_type(content_type: str | None) -> None:
    """Not by the query, which would be right beside an archive."""
    with pytest.raises(UnsupportedMediaType, match="application/x-tar, application/gzip, application/zip"):
        await parse_batch(request_of(b"", content_type, query="labels=red&labels=blue"), SETTINGS)


async def test_a_repeated_json_name_is_refused() -> None:
    """Neither of two values with the same name is silently dropped."""
    with pytest.raises(FieldErrors, match="labels: is given more than once"):
        await parse_single(request_of(b'{"labels": ["a"], "labels": ["b"]}', "application/json"), SETTINGS)


async def test_an_infinite_number_that_is_json_is_refused() -> None:
    """1e999 is valid JSON, but not a usable number."""
    with pytest.raises(FieldErrors, match="min_score: must be a finite number"):
        await parse_single(
            request_of(b'{"image":"AAAA","labels":["a"],"min_score":1e999}', "application/json"), SETTINGS
        )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"junk",
        b"--b\r\n",
        form_body([FILE])[:-9],
        b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: attachment; name=x\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\n" + b"A" * 19_000 + b": x\r\n\r\nx\r\n--b--\r\n",
    ],
)
async def test_a_broken_form_is_malformed(body: bytes) -> None:
    """Truncated forms and parts without a name are refused."""
    with pytest.raises(MalformedRequest):
        await parse_single(request_of(body, "multipart/form-data; boundary=b"), SETTINGS)


async def test_a_form_without_a_boundary_is_malformed() -> None:
    """The hint is about the usual cause: a Content-Type set by hand."""
    with pytest.raises(MalformedRequest, match="boundary"):
        await parse_single(request_of(form_body([FILE]), "multipart/form-data"), SETTINGS)


async def test_parts_are_counted() -> None:
    """A form of thousands of tiny parts is refused while it arrives."""
    with pytest.raises(PayloadTooLarge, match="fields"):
        await parse_single(as_form(FILE, *[("x", "", None)] * 200), SETTINGS)
    with pytest.raises(PayloadTooLarge, match="files"):
        await parse_batch(as_form(*[("image", b"x", "x")] * 4), SETTINGS)
    with pytest.raises(PayloadTooLarge, match="fields"):
        await parse_single(as_raw([("x", "")] * 200), SETTINGS)


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=b", "image/png"])
async def test_the_body_is_counted_as_it_comes(content_type: str) -> None:
    """Without a Content-Length, or with a wrong one, the limit holds to the byte."""
    for headers in ({}, {"content-length": "10"}):
        body = b"--b\r\nContent-Disposition: form-data; name=image; filename=x\r\n\r\n" + b"x" * 30_000
        request = request_of(body, content_type, query="labels=a" * (content_type == "image/png"), headers=headers)
        with pytest.raises(PayloadTooLarge, match="20000 bytes"):
            await parse_single(request, SETTINGS)


async def test_exactly_the_limit_is_accepted() -> None:
    """The limit itself is allowed, one byte more is not."""
    parsed = await parse_single(as_raw([("labels", "a")], b"x" * 20_000), SETTINGS)
    assert (b"x" * 20_000,) == parsed.images
    with pytest.raises(PayloadTooLarge):
        await parse_single(as_raw([("labels", "a")], b"x" * 20_001), SETTINGS)


@pytest.mark.parametrize(("length", "error"), [("99999999999999999999999", PayloadTooLarge), ("-1", MalformedRequest)])
async def test_a_declared_length_is_refused_before_reading(length: str, error: type[Exception]) -> None:
    """A body whose declared length is too large is not read."""

    async def receive() -> Any:
        raise AssertionError("read")

    request = request_of(b"", "image/png", query="labels=a", headers={"content-length": length})
    request._receive = receive
    with pytest.raises(error):
        await parse_single(request, SETTINGS)


async def test_a_slow_body_is_given_up() -> None:
    """A client that trickles its body is refused after the timeout."""
    import asyncio

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    request = request_of(b"", "image/png", query="labels=a")
    request._receive = receive
    with pytest.raises(BodyTimeout):
        await parse_single(request, Settings(request_timeout_s=0.1))


async def test_a_client_that_goes_while_sending() -> None:
    """Half a body is not a request."""

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    request = request_of(b"", "image/png", query="labels=a")
    request._receive = receive
    with pytest.raises(ClientDisconnect):
        await parse_single(request, SETTINGS)


@pytest.mark.parametrize(
    ("content_type", "headers"),
    [
        (None, {}),
        ("text/plain", {}),
        ("application/x-www-form-urlencoded", {}),
        ("application/json", {"content-encoding": "gzip"}),
        ("video/mp4", {}),
    ],
)
async def test_other_content_types_are_refused(content_type: str | None, headers: dict[str, str]) -> None:
    """The refusal names the accepted types."""
    with pytest.raises(UnsupportedMediaType):
        await parse_single(request_of(b"{}", content_type, headers=headers), SETTINGS)


async def test_query_parameters_go_with_a_raw_body_only() -> None:
    """A field in the query next to a JSON body or a form is not silently ignored."""
    for content_type in ("application/json", "multipart/form-data; boundary=b"):
        with pytest.raises(FieldErrors, match="top_k"):
            await parse_single(request_of(b"{}", content_type, query="top_k=1"), SETTINGS)


async def test_a_query_must_be_utf_8() -> None:
    """Percent-encoded Latin-1 is refused rather than guessed."""
    with pytest.raises(MalformedRequest):
        await parse_single(request_of(IMAGE, "image/png", query="labels=%E4"), SETTINGS)


async def test_too_many_labels_are_refused_before_they_are_looked_at() -> None:
    """A million labels of the wrong type are not a million errors."""
    with pytest.raises(TooManyLabels):
        await parse_single(as_json({"image": BASE64, "labels": [1] * 21}), SETTINGS)


async def test_labels_are_checked_before_the_picture_is_read() -> None:
    """A raw request without labels is refused without waiting for its body."""

    async def receive() -> Any:
        raise AssertionError("read")

    request = request_of(b"", "image/png")
    request._receive = receive
    with pytest.raises(FieldErrors, match="labels"):
        await parse_single(request, SETTINGS)


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        base64.urlsafe_b64encode(IMAGE).decode(),
        BASE64.rstrip("="),
        base64.encodebytes(IMAGE).decode().replace("\n", "\r\n"),
        f"data:image/png;base64,{BASE64}",
        f"DATA:;BASE64,{BASE64}",
        f"data:image/png;name=x;base64,{BASE64}",
    ],
)
def test_spellings_of_an_image(text: str) -> None:
    """Base64 of either alphabet, with or without padding and line breaks, plain or in a data URI."""
    assert IMAGE == decode_image_text(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://example.org/cat.jpg", "switched off"),
        ("HTTPS://example.org/cat.jpg", "switched off"),
        ("file:///etc/passwd", "file://"),
        ("data:image/png,abc", "base64"),
        ("data:image/png;base64", "base64"),
        ("data:image/png;base64,", "empty"),
        ("", "empty"),
        ("=", "empty"),
        ("AAAA AAAA", "not valid base64"),
        ("AAAAA", "not valid base64"),
        ("AA=AAA", "not valid base64"),
        ("ÄÄÄÄ", "not valid base64"),
        ("\ud800", "not valid base64"),
        ("photo.jpg", "not valid base64"),
    ],
)
def test_what_is_not_an_image_text(text: str, words: str) -> None:
    """URLs, other schemes and bad base64 are refused with the reason."""
    with pytest.raises(InvalidImage, match=words):
        decode_image_text(text)


async def test_a_batch_keeps_the_places_of_bad_images() -> None:
    """An image that cannot be unpacked is replaced by its error."""
    parsed = await parse_batch(as_json({"images": [BASE64, "http://x", BASE64], "labels": ["a"]}), SETTINGS)
    assert (IMAGE, InvalidImage, IMAGE) == tuple(
        type(image) if isinstance(image, AnyclassError) else image for image in parsed.images
    )
    by_form = await parse_batch(as_form(FILE, ("image", b"", "x"), FILE, ("labels", "a", None)), SETTINGS)
    assert InvalidImage is type(by_form.images[1])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"images": [], "labels": ["a"]}, FieldErrors),
        ({"images": [BASE64, None], "labels": ["a"]}, FieldErrors),
        ({"images": BASE64, "labels": ["a"]}, FieldErrors),
        ({"image": BASE64, "labels": ["a"]}, FieldErrors),
        ({"images": [BASE64] * 4, "labels": ["a"]}, PayloadTooLarge),
    ],
)
async def test_what_is_wrong_with_a_batch_as_a_whole(fields: dict[str, Any], error: type[Exception]) -> None:
    """No images, too many, or values that are not strings."""
    with pytest.raises(error):
        await parse_batch(as_json(fields), SETTINGS)


async def test_a_batch_is_not_a_raw_body() -> None:
    """A batch route refuses a single image as its body."""
    with pytest.raises(UnsupportedMediaType):
        await parse_batch(request_of(IMAGE, "image/png"), SETTINGS)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)
FIELD_NAMES = st.sampled_from(
    ["image", "labels", "label_set", "templates", "scoring", "top_k", "min_score", "temperature", "model"]
)


@given(st.dictionaries(FIELD_NAMES | st.text(max_size=5), JSON_VALUES))
async def test_any_json_object_is_parsed_or_refused(fields: dict[str, Any]) -> None:
    """No fields cause any other exception than a refusal."""
    try:
        await parse_single(as_json(fields), SETTINGS)
    except AnyclassError as exc:
        refused = exc.detail
        assert refused


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300), st.sampled_from(["multipart/form-data; boundary=b", "application/json"]), st.booleans())
async def test_any_bytes_are_parsed_or_refused(body: bytes, content_type: str, framed: bool) -> None:
    """No body causes any other exception than a refusal."""
    if framed:
        body = b"--b\r\nContent-Disposition: form-data; name=image\r\n" + body
    try:
        await parse_single(request_of(body, content_type), SETTINGS)
    except AnyclassError as exc:
        refused = exc.detail
        assert refused


@pytest.mark.parametrize("value", [b"[]", b"{}", b'"ab"'])
def test_json_of_millions_of_values_is_refused_before_it_takes_memory(value: bytes) -> None:
    """Each value takes 50 bytes of memory or more: a body within the byte limit would take twenty times its size."""
    body = b'{"labels": [' + (value + b",") * 2**21 + value + b"]}"
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            parse_json_object(body)
        # The body as text; that is all.
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body)
    finally:
        tracemalloc.stop()


def test_pixels_in_json_may_be_millions_of_numbers() -> None:
    """Numbers in arrays are not counted where they are expected; nested values are."""
    body = b'{"data": [' + b"0," * 2**21 + b"0]}"
    assert 2**21 + 1 == len(parse_json_object(body, numbers=True)["data"])
    with pytest.raises(PayloadTooLarge):
        parse_json_object(b'{"data": [' + b"[]," * 2**21 + b"0]}", numbers=True)


@pytest.mark.parametrize("value", ["cat,dog", "cat, sleeping", ",", "cat,"])
async def test_a_lone_label_with_a_comma_is_refused(value: str) -> None:
    """In a form and in a query it is meant as several labels; the message says how to send them."""
    for request in (as_form(FILE, ("labels", value, None)), as_raw([("labels", value)])):
        with pytest.raises(FieldErrors, match=r"labels: is one value with a comma .* Repeat the field .* JSON list"):
            await parse_single(request, SETTINGS)
    with pytest.raises(FieldErrors, match="labels: is one value with a comma"):
        await parse_batch(as_form(FILE, ("labels", value, None)), SETTINGS)


async def test_a_comma_is_part_of_a_label() -> None:
    """In a JSON list, and in a repeated field, commas separate nothing."""
    as_fields = await parse_single(as_form(FILE, ("labels", '["cat, sleeping"]', None)), SETTINGS)
    in_query = await parse_single(as_raw([("labels", '["cat, sleeping"]')]), SETTINGS)
    assert ("cat, sleeping",) == as_fields.query.labels == in_query.query.labels
    repeated = await parse_single(as_raw([("labels", "cat, sleeping"), ("labels", "dog")]), SETTINGS)
    assert ("cat, sleeping", "dog") == repeated.query.labels


@pytest.mark.parametrize("template", ["a photo of {{}}.", "a {label}", "a {0}", "a photo of %s."])
async def test_a_template_is_no_name_of_a_set(template: str) -> None:
    """A value with braces or %s is a template, so its error says what is wrong with it."""
    for request in (
        as_form(FILE, ("labels", "cat", None), ("templates", template, None)),
        as_raw([("labels", "cat"), ("templates", template)]),
    ):
        assert (template,) == (await parse_single(request, SETTINGS)).query.templates


async def test_a_batch_without_pictures_names_both_ways_to_send_them() -> None:
    """Files, or an archive of them; a single image has no archive."""
    with pytest.raises(FieldErrors, match=r"^image: is missing; .* as the part `archive`$"):
        await parse_batch(as_form(("labels", "a", None)), SETTINGS)
    with pytest.raises(FieldErrors, match=r"^image: is missing; send the image as a file part of that name$"):
        await parse_single(as_form(("labels", "a", None)), SETTINGS)
    with pytest.raises(FieldErrors, match=r"send the file as `image` or `archive`$"):
        await parse_batch(as_form(("picture", IMAGE, "a.png"), ("labels", "a", None)), SETTINGS)
