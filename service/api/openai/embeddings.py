"""POST /v1/embeddings in OpenAI's form, for texts and for images."""

import base64
import json
import re
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, WithJsonSchema

from service.api.documentation.examples import RED_DOT
from service.api.documentation.request_bodies import json_body
from service.api.documentation.responses import BODY_ERRORS, IMAGE_ERRORS, INFERENCE_ERRORS, error_responses, header
from service.api.json_writer import json_numbers, written
from service.api.openai.schemas import EmbeddingsAnswer
from service.api.problems.table import FieldErrors
from service.api.request.disconnect import cancel_on_disconnect
from service.api.request.image_field import image_from_text
from service.api.request.json_body import read_json
from service.api.request.off_loop import decoded
from service.api.request.validation import RequestModel, validate_fields
from service.api.services import Services, services_of
from service.api.timing import server_timing
from service.api.warning_header import warning_headers
from service.classification.embedder import Embedded, EmbedQuery
from service.classification.types import ImageSource
from service.errors import InvalidImage, InvalidLabels, PromptTooLong, UnknownModel
from service.images.fetching import ImageFetcher
from service.model.answer_warnings import AnswerWarning, warn_of_urls
from service.model.arrays import STORED_FLOAT32

_MAX_NAME_CHARS: Final = 256
_OTHER_VALUES: Final = 256
_RED_DOT: Final = f"data:image/png;base64,{RED_DOT}"

_INPUT: Final[list[dict[str, Any]]] = [
    {"type": "string"},
    {
        "type": "object",
        "required": ["image"],
        "additionalProperties": False,
        "properties": {
            "image": {"type": "string", "description": "A data URI, base64, or a URL if this server allows URLs."}
        },
    },
]

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "texts": {"summary": "Two texts", "value": {"input": ["a photo of a cat", "a photo of a dog"]}},
    "image": {"summary": "An image", "value": {"input": [{"image": _RED_DOT}], "encoding_format": "base64"}},
    "both": {"summary": "A text and an image", "value": {"input": ["something red", _RED_DOT]}},
}

_DATA_URI: Final = re.compile(r"data:(image/|[\w.+/;=-]{0,255};base64,)", re.IGNORECASE | re.ASCII)
"""The media type is not believed, and many clients know none: the bytes decide."""

router = APIRouter(tags=["OpenAI"])


class EmbeddingsRequest(RequestModel):
    """The fields of OpenAI's request."""

    input: Annotated[
        Any,
        WithJsonSchema({"anyOf": [*_INPUT, {"type": "array", "minItems": 1, "items": {"anyOf": _INPUT}}]}),
        Field(
            description='A text; an image, as a data URI or as {"image": …}; or a list of these.',
            examples=["a photo of a cat"],
        ),
    ]
    model: Annotated[
        str | None,
        Field(max_length=_MAX_NAME_CHARS, description="Name or alias of a model; the default model if null."),
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"], Field(description="Numbers, or base64 of little-endian float32.")
    ] = "float"
    dimensions: Annotated[
        int | None, Field(ge=1, description="The model's own number of dimensions; no other is available.")
    ] = None
    user: Annotated[str | None, Field(description="Accepted and ignored.")] = None


@router.post(
    "/v1/embeddings",
    response_model=EmbeddingsAnswer,
    summary="Vectors of texts and images",
    openapi_extra=json_body(EmbeddingsRequest, EXAMPLES),
    responses={
        200: {"headers": header("Server-Timing", always=True) | header("X-Anyclass-Warnings")},
        **error_responses(
            "/v1/embeddings",
            *BODY_ERRORS,
            *IMAGE_ERRORS,
            InvalidLabels,
            PromptTooLong,
            UnknownModel,
            *INFERENCE_ERRORS,
        ),
    },
)
async def embeddings(request: Request) -> Response:
    """Vectors have unit length; texts and images share one space. Texts are embedded as they are, without template."""
    services = services_of(request)
    services.require_loaded()
    settings = services.settings
    # An image may be an object, which is two values.
    most = 2 * (settings.max_embed_texts + 2 * settings.max_batch_images) + _OTHER_VALUES
    parsed = validate_fields(EmbeddingsRequest, await read_json(request, settings, max_values=most))
    body, warnings = await cancel_on_disconnect(request, answer_embeddings(services, parsed))
    headers = {"server-timing": server_timing(request.state.started, None), **warning_headers(warnings)}
    return Response(body, media_type="application/json", headers=headers)


async def answer_embeddings(
    services: Services, parsed: EmbeddingsRequest, *, background: bool = False
) -> tuple[bytes, tuple[AnswerWarning, ...]]:
    """Return the answer as JSON, and its warnings. `background` marks work without a waiting client."""
    dim = services.models.get(parsed.model).manifest.dim
    if parsed.dimensions not in (None, dim):
        raise FieldErrors([("dimensions", f"must be {dim} or left out: vectors of this model cannot be shortened")])
    images, texts, is_image = await decoded(
        _chars(parsed.input), lambda: _sorted_inputs(parsed.input, services.image_fetcher)
    )
    embedded = await services.embedder.embed(EmbedQuery(images, texts), model=parsed.model, background=background)
    content = await written(lambda: _answer(embedded, is_image, parsed.encoding_format))
    return content, (*embedded.warnings, *warn_of_urls(texts))


def _chars(given: object) -> int:
    """Return the number of characters of the inputs, about."""
    inputs = given if isinstance(given, list) else [given]
    texts = (each.get("image") if isinstance(each, dict) else each for each in inputs)
    return sum(len(text) for text in texts if isinstance(text, str))


def _sorted_inputs(given: object, fetcher: ImageFetcher | None) -> tuple[list[ImageSource], list[str], list[bool]]:
    """Return the images, the texts, and for each input whether it is an image."""
    inputs = given if isinstance(given, list) else [given]
    if not inputs:
        raise FieldErrors([("input", "must not be empty; send at least one text or image")])
    images: list[ImageSource] = []
    texts: list[str] = []
    is_image = []
    for index, each in enumerate(inputs):
        name = f"input[{index}]" if isinstance(given, list) else "input"
        image = _image_text(name, each)
        is_image.append(image is not None)
        if image is None:
            texts.append(each)
            continue
        try:
            images.append(image_from_text(image, fetcher))
        except InvalidImage as exc:
            raise FieldErrors([(name, exc.detail)]) from exc
    return images, texts, is_image


def _image_text(name: str, given: object) -> str | None:
    """Return the image of an input, as text; None if the input is a text."""
    match given:
        case str() if _DATA_URI.match(given):
            return given
        case str():
            return None
        case {"image": str(image), **others} if not others:
            return image
        case int() | [*_]:
            message = "must be a text or an image; lists of token ids are not supported, because each model has its own"
        case _:
            message = 'must be a text, an image as a data URI, or {"image": data URI or base64}'
    raise FieldErrors([(name, message)])


def _answer(embedded: Embedded, is_image: list[bool], encoding: Literal["float", "base64"]) -> bytes:
    """Return the answer as JSON, written row by row: a single `json.dumps` would block all threads."""
    images, texts = iter(embedded.images), iter(embedded.texts)
    rows = []
    for index, image in enumerate(is_image):
        vector = next(images if image else texts)
        if encoding == "base64":
            written = f'"{base64.b64encode(vector.astype(STORED_FLOAT32).tobytes()).decode()}"'
        else:
            written = f"[{json_numbers(vector)}]"
        rows.append(f'{{"object":"embedding","index":{index},"embedding":{written}}}')
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    tail = f'"model":{json.dumps(embedded.model.name)},"usage":{json.dumps(usage)}'
    return f'{{"object":"list","data":[{",".join(rows)}],{tail}}}'.encode()
