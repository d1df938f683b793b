"""Parses a request to classify, sent as JSON, as a form, or as the image or archive itself."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from starlette.requests import Request

from service.api.problems.table import FieldErrors, UnsupportedMediaType, quoted
from service.api.request.archive import DOCUMENTED_MEDIA_TYPES as ARCHIVE_TYPES
from service.api.request.body import JSON, MULTIPART, OCTETS, body_chunks, content_type_shown, join_chunks, media_type
from service.api.request.fields import ClassifyRequest, Options, max_values, read_options, read_text_options
from service.api.request.form import read_form
from service.api.request.image_field import image_from_text
from service.api.request.off_loop import off_loop, parsed
from service.api.request.query import refuse_query
from service.api.request.strict_json import parse_json_object
from service.api.request.validation import MAX_ERRORS_SHOWN
from service.classification.types import ImageSource
from service.errors import AnyclassError, InvalidImage, MalformedRequest, PayloadTooLarge
from service.images.fetching import ImageFetcher
from service.settings import Settings

_ARCHIVE: Final = "archive"
_URLENCODED: Final = "application/x-www-form-urlencoded"

_T = TypeVar("_T")

_SHORT_TEXT: Final = 2**14
"""Characters of a query or of a form's fields that are parsed on the event loop."""
_OTHER_FIELDS: Final = 64
"""Fields that a form may have next to its labels and templates: all known ones, and some to report as unknown."""


async def parse_single(request: Request, settings: Settings, fetcher: ImageFetcher | None = None) -> ClassifyRequest:
    """Parse a request to classify one image: JSON, a form, or the image itself. Raises `AnyclassError`.

    With a `fetcher` the image may be a URL, which is not fetched here.
    """
    kind = media_type(request)
    chunks = body_chunks(request, settings)
    if kind == JSON:
        refuse_query(request)
        body = await join_chunks(chunks)
        return await parsed(body, lambda: _single_json(body, settings, fetcher))
    if kind == MULTIPART:
        refuse_query(request)
        # More than one image is read, to answer a second one with the route for several.
        options, files = await _read_form(request, chunks, settings, ("image",))
        if len(images := files["image"]) > 1:
            raise FieldErrors([("image", "is given more than once; send several images to /v1/classify/batch")])
        return _request(options, [_not_empty(image) for image in images])
    if kind.startswith("image/") or kind == OCTETS:
        # The fields first: a request without labels is refused before its image is read.
        options = await _query_options(request, settings)
        return _request(options, [_not_empty(await join_chunks(chunks))])
    raise _unsupported(kind, "application/json, multipart/form-data, or the image itself as image/*")


async def parse_batch(request: Request, settings: Settings, fetcher: ImageFetcher | None = None) -> ClassifyRequest:
    """Parse a request to classify several images: JSON or a form. Raises `AnyclassError` for the request as a whole.

    With a `fetcher` images may be URLs, which are not fetched here.
    """
    kind = media_type(request)
    if kind not in (JSON, MULTIPART):
        raise _unsupported(kind, f"application/json, multipart/form-data, or an archive as {', '.join(ARCHIVE_TYPES)}")
    chunks = body_chunks(request, settings)
    refuse_query(request)
    if kind == MULTIPART:
        return await _batch_form(request, chunks, settings)
    body = await join_chunks(chunks)
    return await parsed(body, lambda: _batch_json(body, settings, fetcher))


async def parse_archive_query(request: Request, settings: Settings) -> ClassifyRequest:
    """Parse the fields of a request whose body is an archive; `images` is empty. Raises `AnyclassError`."""
    return _request(await _query_options(request, settings), [])


def _single_json(body: bytes, settings: Settings, fetcher: ImageFetcher | None) -> ClassifyRequest:
    fields = parse_json_object(body, max_values=max_values(settings))
    text = _take(fields, "image", str, "a string: a data URI or base64")
    options = read_options(fields, settings)
    return _request(options, [image_from_text(text, fetcher)])


def _batch_json(body: bytes, settings: Settings, fetcher: ImageFetcher | None) -> ClassifyRequest:
    fields = parse_json_object(body, max_values=max_values(settings, images=settings.max_batch_images))
    texts = _take(fields, "images", list, "a list of data URIs or base64 strings")
    _check_count(len(texts), settings.max_batch_images)
    if wrong := [index for index, text in enumerate(texts) if not isinstance(text, str)]:
        raise FieldErrors([(f"images[{index}]", "must be a string") for index in wrong[:MAX_ERRORS_SHOWN]])
    options = read_options(fields, settings)
    return _request(options, [_or_error(text, fetcher) for text in texts])


def _request(options: Options, images: Sequence[ImageSource]) -> ClassifyRequest:
    return ClassifyRequest(
        images=tuple(images), query=options.query(), options=options.scoring_options(), model=options.model
    )


async def _batch_form(request: Request, chunks: AsyncIterator[bytes], settings: Settings) -> ClassifyRequest:
    """Parse a form with parts `image`, or with one part `archive`."""
    options, files = await _read_form(request, chunks, settings, ("image", _ARCHIVE))
    if _ARCHIVE not in files:
        return _request(options, [image or InvalidImage("The image is empty.") for image in files["image"]])
    if "image" in files or len(files[_ARCHIVE]) > 1:
        raise FieldErrors([(_ARCHIVE, "must be the only file: send one archive, or one or more images")])
    return replace(_request(options, []), archive=files[_ARCHIVE][0])


async def _read_form(
    request: Request, chunks: AsyncIterator[bytes], settings: Settings, parts: tuple[str, ...]
) -> tuple[Options, dict[str, list[bytes]]]:
    """Read the fields and the files of a form, at least one file. Files may have the names in `parts`."""
    part = parts[0]
    form = await read_form(
        chunks,
        request.headers["content-type"],
        files=parts,
        max_fields=_max_fields(settings),
        max_files=settings.max_batch_images,
    )
    if unknown := [name for name in form.files if name not in parts]:
        allowed = " or ".join(f"`{name}`" for name in parts)
        raise FieldErrors([(quoted(name), f"must not be a file; send the file as {allowed}") for name in unknown])
    if part in form.fields:
        raise FieldErrors([(part, f"must be sent as a file (with curl: -F {part}=@photo.jpg, with the @)")])
    if not form.files:
        archive = f", or a tar, tar.gz or zip of images as the part `{_ARCHIVE}`" if _ARCHIVE in parts else ""
        raise FieldErrors([(part, f"is missing; send the image as a file part of that name{archive}")])
    size = sum(len(value) for values in form.fields.values() for value in values)
    options = await _when_long(size, lambda: read_text_options(form.fields, settings))
    return options, form.files


async def _query_options(request: Request, settings: Settings) -> Options:
    """Parse the query string and validate its fields."""
    query: bytes = request.scope["query_string"]
    return await _when_long(len(query), lambda: read_text_options(_query_fields(query, settings), settings))


async def _when_long(size: int, work: Callable[[], _T]) -> _T:
    return work() if size < _SHORT_TEXT else await off_loop(size, work)


def _query_fields(query: bytes, settings: Settings) -> dict[str, list[str]]:
    if query.count(b"&") >= _max_fields(settings):
        raise PayloadTooLarge(f"The query has more than {_max_fields(settings)} fields, the limit of this server.")
    fields: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(query.decode("utf-8"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError as exc:
        raise MalformedRequest("The query string is not percent-encoded UTF-8.") from exc
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def _take(fields: dict[str, Any], name: str, kind: type[_T], wanted: str) -> _T:
    value = fields.pop(name, None)
    if value is None:
        raise FieldErrors([(name, f"is missing; it must be {wanted}")])
    if not isinstance(value, kind):
        raise FieldErrors([(name, f"must be {wanted}")])
    return value


def _check_count(count: int, limit: int) -> None:
    if count == 0:
        raise FieldErrors([("images", "must not be empty; send one image or more")])
    if count > limit:
        raise PayloadTooLarge(f"The request has {count} images; this server accepts at most {limit} in one request.")


def _not_empty(image: bytes) -> bytes:
    if not image:
        raise InvalidImage("The image is empty.")
    return image


def _or_error(text: str, fetcher: ImageFetcher | None) -> ImageSource:
    try:
        return image_from_text(text, fetcher)
    except AnyclassError as exc:
        return exc


def _max_fields(settings: Settings) -> int:
    return settings.max_labels + settings.max_templates + _OTHER_FIELDS


def _unsupported(kind: str, wanted: str) -> UnsupportedMediaType:
    hint = (
        " (the default of curl's --data-binary; add -H 'Content-Type: image/jpeg' to send an image)"
        if kind == _URLENCODED
        else ""
    )
    return UnsupportedMediaType(f"This route does not read {content_type_shown(kind)}{hint}; send {wanted}.")
