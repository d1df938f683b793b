"""Reads and answers the lines of batch jobs. Each line is a request to a route, with that route's rules."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from service.api.json_writer import answer_text, json_text, one_line, written
from service.api.openai.embeddings import EmbeddingsRequest, answer_embeddings
from service.api.problems.protocol_forms import write_error
from service.api.problems.table import INTERNAL, INTERNAL_DETAIL, FieldErrors, kind_of, problem, problem_of, quoted
from service.api.request.fields import read_options
from service.api.request.image_field import image_from_text
from service.api.request.off_loop import decoded
from service.api.request.strict_json import parse_json_object
from service.api.request.validation import validate_fields
from service.api.services import Services
from service.errors import AnyclassError, InvalidLine
from service.jobs.line_handler import LineAnswer, LineRequest

CLASSIFY: Final = "/v1/classify"
EMBEDDINGS: Final = "/v1/embeddings"
ENDPOINTS: Final = (CLASSIFY, EMBEDDINGS)

_FIELDS: Final = ("custom_id", "method", "url", "body")
_MAX_ID_CHARS: Final = 256
_OK: Final = 200


class RouteLineHandler:
    """A `LineHandler` that reads and answers lines as the service's own routes do."""

    endpoints: Collection[str] = ENDPOINTS

    def __init__(self, services: Services) -> None:
        self._services = services

    def read(self, line: bytes, endpoint: str) -> LineRequest:
        """See `LineHandler`."""
        try:
            fields = parse_json_object(line)
        except FieldErrors as exc:
            raise InvalidLine("invalid_json_line", exc.detail) from exc
        except AnyclassError as exc:
            raise InvalidLine("invalid_json_line", exc.detail.replace("The body", "The line", 1)) from exc
        custom_id, body = _envelope(fields, endpoint)
        try:
            self._check_body(body, endpoint)
        except FieldErrors as exc:
            raise InvalidLine("invalid_request", exc.detail, f"body.{exc.fields[0][0]}") from exc
        except AnyclassError as exc:
            raise InvalidLine(kind_of(exc).slug.replace("-", "_"), exc.detail, "body") from exc
        return LineRequest(custom_id, body)

    async def answer(self, request: LineRequest, endpoint: str) -> LineAnswer:
        """See `LineHandler`."""
        services = self._services
        fields = dict(request.body)
        if endpoint == EMBEDDINGS:
            content, _ = await answer_embeddings(services, validate_fields(EmbeddingsRequest, fields), background=True)
            return LineAnswer(_OK, content.decode())
        image = fields.pop("image")
        source = await decoded(len(image), lambda: image_from_text(image, services.image_fetcher))
        options = read_options(fields, services.settings)
        classification = await services.classifier.classify_in_background(
            source, options.query(), options.scoring_options(), model=options.model
        )
        text = await written(lambda: answer_text(classification), rows=len(classification.predictions))
        return LineAnswer(_OK, one_line(text))

    def failure(self, error: AnyclassError | None, endpoint: str, request_id: str) -> LineAnswer:
        """See `LineHandler`."""
        failure = problem(INTERNAL, INTERNAL_DETAIL, request_id) if error is None else problem_of(error, request_id)
        status, _, body = write_error(endpoint, failure)
        return LineAnswer(status, one_line(json_text(body)))

    def _check_body(self, body: Mapping[str, Any], endpoint: str) -> None:
        if endpoint == EMBEDDINGS:
            validate_fields(EmbeddingsRequest, body)
            return
        if not isinstance(body.get("image"), str):
            raise FieldErrors([("image", "must be a string: a data URI or base64")])
        read_options({name: value for name, value in body.items() if name != "image"}, self._services.settings)


def _envelope(fields: Mapping[str, Any], endpoint: str) -> tuple[str, Mapping[str, Any]]:
    """Return the id and the body of a line. Raises `InvalidLine`."""
    for name in fields:
        if name not in _FIELDS:
            message = f"{quoted(name)}: is not a field of a line; it has {', '.join(_FIELDS)}"
            raise InvalidLine("unknown_field", message, quoted(name))
    for name in _FIELDS:
        if name not in fields:
            raise InvalidLine("missing_required_parameter", f"{name}: is missing", name)
    custom_id, body = fields["custom_id"], fields["body"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_ID_CHARS:
        raise InvalidLine(
            "invalid_custom_id", f"custom_id: must be a string of 1 to {_MAX_ID_CHARS} characters", "custom_id"
        )
    if fields["method"] != "POST":
        raise InvalidLine("invalid_method", "method: must be POST", "method")
    if fields["url"] != endpoint:
        raise InvalidLine("invalid_url", f"url: must be {endpoint}, the endpoint of the batch", "url")
    if not isinstance(body, dict):
        raise InvalidLine("invalid_body", "body: must be an object", "body")
    return custom_id, body
