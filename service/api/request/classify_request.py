"""From an HTTP request in one of its three forms to the one internal request."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from starlette.requests import Request

from service.api.problems.table import FieldErrors, UnsupportedMediaType, quoted
from service.api.request import body as bodies
from service.api.request.fields import ClassifyRequest, Options, from_text, parse_json_object, validated
from service.api.request.form import read_form
from service.api.request.image_field import image_source
from service.api.request.memory_budget import HeldBody
from service.classification.types import ImageSource
from service.errors import AnyclassError, InvalidImage, MalformedRequest, PayloadTooLarge
from service.images.fetching import ImageFetcher
from service.settings import Settings

JSON: Final = "application/json"
MULTIPART: Final = "multipart/form-data"
ARCHIVE: Final = "archive"
OCTETS: Final = "application/octet-stream"
_URLENCODED: Final = "application/x-www-form-urlencoded"

_T = TypeVar("_T")

_OTHER_FIELDS: Final = 64
"""How many fields a form may have next to its labels and templates: all that exist, and some to name as unknown."""
_MAX_ERRORS_SHOWN: Final = 20


async def parse_single(request: Request, settings: Settings, fetcher: ImageFetcher | None = None) -> ClassifyRequest:
    """A request to classify one image: JSON, a form, or the image itself. Raises `AnyclassError`.

    With a `fetcher` the image may be a URL; it is still to be fetched then.
    """
    kind = media_type(request)
    body = body_of(request, settings)
    if kind == JSON:
        refuse_query(request)
        fields = parse_json_object(await bodies.read(body))
        text = _take(fields, "image", str, "a string: a data URI or base64")
        options = validated(fields, settings)
        return _request(options, [image_source(text, fetcher)])
    if kind == MULTIPART:
        refuse_query(request)
        # Room for more than one, so that one too many can be told where to go.
        options, images = await _form(request, body, settings, max_files=settings.max_batch_images)
        if len(images) > 1:
            raise FieldErrors([("image", "is given more than once; send several to /v1/classify/batch")])
        return _request(options, [_not_empty(image) for image in images])
    if kind.startswith("image/") or kind == OCTETS:
        # The fields first: a request that lacks its labels is refused without reading the picture.
        options = validated(from_text(_query_fields(request, settings)), settings)
        return _request(options, [_not_empty(await bodies.read(body))])
    raise _unsupported(kind, "application/json, multipart/form-data, or the picture itself as image/*")


async def parse_batch(request: Request, settings: Settings, fetcher: ImageFetcher | None = None) -> ClassifyRequest:
    """A request to classify several images: JSON or a form. Raises `AnyclassError` for what concerns the whole.

    With a `fetcher` an image may be a URL; it is still to be fetched then.
    """
    kind = media_type(request)
    body = body_of(request, settings)
    refuse_query(request)
    if kind == JSON:
        fields = parse_json_object(await bodies.read(body))
        texts = _take(fields, "images", list, "a list of data URIs or base64 strings")
        _check_count(len(texts), settings.max_batch_images)
        if wrong := [index for index, text in enumerate(texts) if not isinstance(text, str)]:
            raise FieldErrors([(f"images[{index}]", "must be a string") for index in wrong[:_MAX_ERRORS_SHOWN]])
        options = validated(fields, settings)
        return _request(options, [_or_error(text, fetcher) for text in texts])
    if kind == MULTIPART:
        return await _batch_form(request, body, settings)
    raise _unsupported(kind, "application/json, multipart/form-data, or a tar, tar.gz or zip archive")


def parse_archive_query(request: Request, settings: Settings) -> ClassifyRequest:
    """The fields of a request whose body is an archive: it has no image yet. Raises `AnyclassError`."""
    return _request(validated(from_text(_query_fields(request, settings)), settings), [])


def _request(options: Options, images: Sequence[ImageSource]) -> ClassifyRequest:
    return ClassifyRequest(
        images=tuple(images), query=options.query(), options=options.scoring_options(), model=options.model
    )


def media_type(request: Request) -> str:
    """The body's media type in lower case, without parameters. Raises `UnsupportedMediaType` for an encoded body."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType("Send the body as it is: a Content-Encoding is not read here.")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def body_of(request: Request, settings: Settings) -> AsyncIterator[bytes]:
    """The body as it arrives, within the limits of one request and of all together.

    Raises `MalformedRequest`, `PayloadTooLarge` and `BodiesFull`, as `body.chunks` and `body.counted` do.
    """
    limit = settings.max_body_bytes
    held: HeldBody = request.state.held_body
    held.expect(bodies.check_declared_length(request.headers.get("content-length"), limit))
    return bodies.counted(bodies.chunks(request.receive, limit=limit, timeout_s=settings.request_timeout_s), held)


async def _batch_form(request: Request, body: AsyncIterator[bytes], settings: Settings) -> ClassifyRequest:
    """Several parts `image`, or one part `archive`."""
    options, files = await _form_files(request, body, settings, ("image", ARCHIVE), settings.max_batch_images)
    if ARCHIVE not in files:
        return _request(options, [image or InvalidImage("The image is empty.") for image in files["image"]])
    if "image" in files or len(files[ARCHIVE]) > 1:
        raise FieldErrors([(ARCHIVE, "goes alone: one archive, or one or more images")])
    return replace(_request(options, []), archive=files[ARCHIVE][0])


async def _form(
    request: Request, body: AsyncIterator[bytes], settings: Settings, *, max_files: int
) -> tuple[Options, list[bytes]]:
    options, files = await _form_files(request, body, settings, ("image",), max_files)
    return options, files["image"]


async def _form_files(
    request: Request, body: AsyncIterator[bytes], settings: Settings, parts: tuple[str, ...], max_files: int
) -> tuple[Options, dict[str, list[bytes]]]:
    """The fields and the files of a form; at least one file."""
    part = parts[0]
    form = await read_form(body, request.headers["content-type"], max_fields=_max_fields(settings), max_files=max_files)
    if strangers := [name for name in form.files if name not in parts]:
        raise FieldErrors([(quoted(name), f"is a file; only {_either(parts)} may be one") for name in strangers])
    if part in form.fields:
        raise FieldErrors([(part, f"must be sent as a file (with curl: -F {part}=@photo.jpg, mind the @)")])
    if not form.files:
        archive = f", or a tar, tar.gz or zip of pictures as the part `{ARCHIVE}`" if ARCHIVE in parts else ""
        raise FieldErrors([(part, f"is missing; send the picture as a file part of that name{archive}")])
    return validated(from_text(form.fields), settings), form.files


def _either(parts: Sequence[str]) -> str:
    return " or ".join(f"`{part}`" for part in parts)


def _query_fields(request: Request, settings: Settings) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    try:
        text = request.scope["query_string"].decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError as exc:
        raise MalformedRequest("The query string is not percent-encoded UTF-8.") from exc
    if len(pairs) > _max_fields(settings):
        raise PayloadTooLarge(f"The query has more than {_max_fields(settings)} fields, the limit of this server.")
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def refuse_query(request: Request) -> None:
    """Raise `FieldErrors` where there are query parameters."""
    if names := list(dict.fromkeys(request.query_params.keys())):
        message = "belongs into the body; query parameters go with a picture as the body"
        raise FieldErrors([(quoted(name), message) for name in names[:_MAX_ERRORS_SHOWN]])


def _take(fields: dict[str, Any], name: str, kind: type[_T], wanted: str) -> _T:
    value = fields.pop(name, None)
    if value is None:
        raise FieldErrors([(name, f"is missing; it must be {wanted}")])
    if not isinstance(value, kind):
        raise FieldErrors([(name, f"must be {wanted}")])
    return value


def _check_count(count: int, limit: int) -> None:
    if count == 0:
        raise FieldErrors([("images", "is empty; send one image or more")])
    if count > limit:
        raise PayloadTooLarge(f"The request has {count} images; {limit} may be sent at once here.")


def _not_empty(image: bytes) -> bytes:
    if not image:
        raise InvalidImage("The image is empty.")
    return image


def _or_error(text: str, fetcher: ImageFetcher | None) -> ImageSource:
    try:
        return image_source(text, fetcher)
    except AnyclassError as exc:
        return exc


def _max_fields(settings: Settings) -> int:
    return settings.max_labels + settings.max_templates + _OTHER_FIELDS


def _unsupported(kind: str, wanted: str) -> UnsupportedMediaType:
    given = f"the Content-Type {quoted(kind, 100)}" if kind else "a body without a Content-Type"
    hint = (
        " (curl's --data-binary says so by itself; add -H 'Content-Type: image/jpeg' to send a picture)"
        if kind == _URLENCODED
        else ""
    )
    return UnsupportedMediaType(f"This route does not read {given}{hint}; send {wanted}.")
