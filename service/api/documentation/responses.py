"""What the OpenAPI document says of answers: their headers, their examples, and every error that a route may give.

A route names the exceptions that it may answer with; the table of problems and the form of its path make statuses,
bodies, headers and examples of them, by the very functions that answer a request.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeAlias

from service import errors
from service.api.documentation import examples
from service.api.problems import table as problems
from service.api.problems.protocol_forms import Form, form_of
from service.api.problems.table import BodiesFull, BodyTimeout, FieldErrors, NotAcceptable, UnsupportedMediaType
from service.images.decoding import FORMATS

Refusal: TypeAlias = errors.AnyclassError | type[errors.AnyclassError]
"""An error that a route may answer with: its class, or one as it would be there."""

REFERENCE: Final = "#/components/schemas/"
REQUEST_ID: Final = "5a3f0c1e9b7d4c2f8e6a1b0d9c8f7e6a"
"""The request id of every example."""

_SAMPLES: Final[Mapping[type[errors.AnyclassError], errors.AnyclassError]] = {
    type(sample): sample
    for sample in (
        errors.AnyclassError(problems.INTERNAL_DETAIL),
        errors.InvalidRequest("custom_id: must be a string of 1 to 256 characters"),
        errors.InvalidLabels("Labels 0 and 1 are the same; send each label once."),
        errors.InvalidTemplates("Template 0 must hold {} exactly once, where the label goes."),
        errors.InvalidScoring("This model has no bias, so sigmoid scores mean nothing; use softmax or cosine."),
        errors.PromptTooLong("Label 3 has more tokens, with its template, than this model can read; shorten it."),
        errors.InvalidImage("The JPEG image is corrupt, truncated or of a kind that cannot be read."),
        errors.ImageNotFetched("The image could not be fetched: its server answers 404."),
        errors.InvalidLine("invalid_method", "method: must be POST", "method"),
        errors.UnsupportedImageFormat(f"This is not an image of a format that is read here: {', '.join(FORMATS)}."),
        errors.PayloadTooLarge("The request body is larger than 20 MiB, the limit of this server."),
        errors.TooManyLabels("The request has 10001 labels; 10000 may be sent at once here."),
        errors.MalformedRequest("The body is not valid JSON: Expecting value at line 1, column 1."),
        errors.UnknownModel("There is no model 'clip' here; served are demo."),
        errors.UnknownLabelSet("There is no label set of that name; GET /v1/label-sets lists those there are."),
        errors.LabelSetComputing("The label set is being computed: 1200 of 5000 labels are done.", 4.0),
        errors.LabelSetFailed("The label set cannot be computed with model demo; its status says why."),
        errors.VersionMismatch("The label set is not, or no longer, in the version of If-Match; read it again."),
        errors.UnknownObject("There is no file of that id here."),
        errors.Conflict("A batch still reads this file; cancel the batch first, or wait for its end."),
        errors.StateFull("There are 1000 label sets, as many as may be; delete one first."),
        errors.StateUnavailable("The state store cannot be used at the moment; try again later."),
        errors.StateCorrupt("The stored entry label-sets/animals is damaged; delete it."),
        errors.Overloaded("Too much work is waiting; try again later.", 2.0),
        errors.Unauthorized(
            "This server needs an API key. Send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."
        ),
        errors.RateLimited("You ask more often than this server allows.", 1.0),
        errors.NotReady("The service cannot answer yet: the model is being loaded."),
        errors.DeadlineExceeded("The request was not answered within 30 s."),
        errors.InferenceFailed("The model could not be run."),
        errors.NonFiniteOutput("The model answered with numbers that are not finite."),
        errors.DeviceOutOfMemory("The device has too little memory at the moment."),
        errors.DeviceLost("The device has failed; the process must be started anew."),
        errors.BundleError("manifest.json: the file is missing"),
        errors.ProviderUnavailable("The provider cuda is not there; it comes with the extra gpu."),
        errors.ConfigurationError("ANYCLASS_API_KEYS and ANYCLASS_API_KEYS_FILE are both set."),
        FieldErrors([("labels[3]", "must be a string")]),
        UnsupportedMediaType("This route does not read the Content-Type text/plain; send application/json."),
        NotAcceptable("This route answers with application/json or application/x-ndjson; accept one of them."),
        BodyTimeout("The request body did not arrive within 30 s."),
        BodiesFull("Too many bytes of requests are in memory; try again later.", 2.0),
    )
}
"""One of each, for the examples."""

_EVERYWHERE: Final = (errors.Unauthorized, errors.RateLimited, errors.AnyclassError)
READING: Final = (
    errors.MalformedRequest,
    FieldErrors,
    UnsupportedMediaType,
    errors.PayloadTooLarge,
    BodyTimeout,
    BodiesFull,
)
"""A body is read."""
LABELLING: Final = (
    errors.InvalidLabels,
    errors.InvalidTemplates,
    errors.InvalidScoring,
    errors.PromptTooLong,
    errors.TooManyLabels,
)
"""Labels become class vectors."""
STORED: Final = (errors.NotReady, errors.StateUnavailable, errors.StateCorrupt)
"""Something is read or written that is kept."""
COMPUTING: Final = (
    errors.Overloaded,
    errors.NotReady,
    errors.DeadlineExceeded,
    errors.InferenceFailed,
    errors.NonFiniteOutput,
    errors.DeviceOutOfMemory,
    errors.DeviceLost,
)
"""The model runs."""
PICTURES: Final = (errors.InvalidImage, errors.ImageNotFetched, errors.UnsupportedImageFormat)
"""A picture is fetched, where that is allowed, and decoded."""
LABEL_SETS: Final = (
    errors.UnknownLabelSet,
    errors.LabelSetComputing,
    errors.LabelSetFailed,
    errors.StateUnavailable,
    errors.StateCorrupt,
)
"""A label set takes the place of labels."""

HEADERS: Final[Mapping[str, dict[str, Any]]] = {
    "X-Request-ID": {
        "description": "The request's id: the one that the client sent in this header, or a new one.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
        "example": REQUEST_ID,
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 2,
    },
    "WWW-Authenticate": {
        "description": "How to authenticate (RFC 6750).",
        "schema": {"type": "string"},
        "example": 'Bearer realm="anyclass"',
    },
    "X-Should-Retry": {
        "description": "`false`: the same request would be answered the same way. OpenAI's clients look for it.",
        "schema": {"type": "string", "enum": ["false"]},
    },
    "RateLimit": {
        "description": "What is left of the rate limit, where there is one (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
        "example": '"default";r=9;t=1',
    },
    "RateLimit-Policy": {
        "description": "The rate limit, where there is one (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
        "example": '"default";q=10;w=1',
    },
    "Server-Timing": {
        "description": "Milliseconds in each stage and in all; stages overlap.",
        "schema": {"type": "string", "pattern": r"total;dur=\d+\.\d\d$"},
        "example": "decode;dur=1.20, queue;dur=0.05, text;dur=0.00, image;dur=9.80, score;dur=0.10, total;dur=11.40",
    },
    "ETag": {
        "description": "The version of the label set, in double quotes.",
        "schema": {"type": "string", "pattern": '^".+"$'},
        "example": '"3f2a9c0d1e5b7a84"',
    },
    "Inference-Header-Content-Length": {
        "description": "Bytes of the JSON, where binary tensors follow it.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 155,
    },
}
"""Every header that an answer may have, by the name under which the document refers to it."""

_ONE_SEGMENT: Final = re.compile(r"\{\w+\}")
"""A parameter of a path; a slash in it leads to no route."""
_FORM_MODELS: Final = {
    form_of("/v1/classify"): "Problem",
    form_of("/v1/embeddings"): "OpenAIError",
    form_of("/"): "PlainError",
    form_of("/v2"): "PlainError",
}


def header(name: str, *, always: bool = False) -> dict[str, dict[str, Any]]:
    """An entry for a response's `headers`; `always` where no such answer is without it."""
    return {name: {**HEADERS[name], "required": True} if always else {"$ref": f"#/components/headers/{name}"}}


def example(name: str) -> dict[str, dict[str, Any]]:
    """The example of `examples.ANSWERS` with that name, as a member of a media type.

    It stands in another place: FastAPI leaves out null wherever it comes by.
    """
    return {"examples": {"answer": {"$ref": f"#/components/examples/{name}"}}}


def answer(
    name: str, *, media_type: str = "application/json", schema: dict[str, Any] | None = None, **more: object
) -> dict[str, Any]:
    """An answer that is no error, with the example of that name, for a route's `responses`.

    `more` are the response's other members.
    """
    return {"content": {media_type: example(name) | ({} if schema is None else {"schema": schema})}, **more}


def refusals(path: str, *given: Refusal) -> dict[int | str, dict[str, Any]]:
    """The errors of the route at `path`, for its `responses`; those that every route may give need not be named."""
    form = form_of(path)
    told = [_told(form, each) for each in dict.fromkeys((*given, *_EVERYWHERE))]
    if _ONE_SEGMENT.search(path):
        detail = f"There is no {path.partition('{')[0]}a/b here; GET /docs shows what there is."
        told.append(_of_problem(form, problems.problem(problems.NOT_FOUND, detail, REQUEST_ID)))
    by_status: dict[int, list[_Told]] = {}
    for each in told:
        by_status.setdefault(each.status, []).append(each)
    return {status: _response(by_status[status], _FORM_MODELS[form]) for status in sorted(by_status)}


def shared_examples() -> dict[str, dict[str, Any]]:
    """The examples to which `example` and `refusals` refer, by name: each answer, and each error in its form."""
    return {name: {"value": value} for name, value in examples.ANSWERS.items()} | _told_examples


_told_examples: Final[dict[str, dict[str, Any]]] = {}
"""What `refusals` has told of, each once."""


@dataclass(frozen=True, slots=True)
class _Told:
    """An error as a problem, and as the protocol of the path has it."""

    problem: Mapping[str, Any]
    headers: Mapping[str, str]
    status: int
    media_type: str
    body: Mapping[str, Any]

    @property
    def slug(self) -> str:
        return str(self.problem["type"]).removeprefix(problems.TYPE_PREFIX)


def _told(form: Form, given: Refusal) -> _Told:
    error = _SAMPLES[given] if isinstance(given, type) else given
    return _of_problem(form, problems.problem_of(error, REQUEST_ID), problems.headers_of(error))


def _of_problem(form: Form, problem: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> _Told:
    status, media_type, body = form(problem)
    return _Told(problem, headers or {}, status, media_type, body)


def _response(told: Sequence[_Told], model: str) -> dict[str, Any]:
    """The answer of one status, which may have several reasons."""
    shown: dict[str, Any] = {}
    for each in told:
        name = each.slug if each.slug not in shown else f"{each.slug}-{len(shown) + 1}"
        shown[name] = {"$ref": f"#/components/examples/{_name_of_example(each, model)}"}
    headers: dict[str, Any] = {}
    for name in HEADERS:
        having = [each for each in told if name.lower() in each.headers]
        if having:
            headers |= header(name, always=len(having) == len(told))
    return {
        "description": "; ".join(dict.fromkeys(each.problem["title"] for each in told)),
        "headers": headers,
        "content": {told[0].media_type: {"schema": {"$ref": REFERENCE + model}, "examples": shown}},
    }


def _name_of_example(told: _Told, model: str) -> str:
    """Under which name the example stands among those that are shared; it is put there."""
    example = {"summary": told.problem["title"], "value": told.body}
    for number in count(1):
        name = f"{model}.{told.slug}" + (f".{number}" if number > 1 else "")
        if _told_examples.setdefault(name, example) == example:
            break
    return name
