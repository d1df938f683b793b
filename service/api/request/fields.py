"""The one validation path: whatever form a request came in, its fields pass through here."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NoReturn, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from service.api.problems.table import FieldErrors, quoted
from service.classification.types import ImageSource, LabelQuery, ScoringOptions
from service.errors import AnyclassError, MalformedRequest, PayloadTooLarge, TooManyLabels
from service.settings import Settings
from service.validation_messages import worded

_MAX_ERRORS_SHOWN: Final = 20
_MAX_NAME_CHARS: Final = 256
_MAX_VALUES: Final = 2**21
"""Values in JSON; commas and brackets inside strings are taken for some."""
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")

FORM_LISTS: Final = ("labels", "templates")


class Options(BaseModel):
    """The fields of a request next to its image or images, as JSON types."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    labels: Annotated[
        list[str] | None,
        Field(
            fail_fast=True,
            description="What the image may show: one or more, each once (white space and Unicode form aside).",
            examples=[["cat", "dog"]],
        ),
    ] = None
    label_set: Annotated[
        str | None,
        Field(
            max_length=_MAX_NAME_CHARS,
            description="In place of `labels` and `templates`: the name of a label set (`GET /v1/label-sets`).",
        ),
    ] = None
    templates: Annotated[
        str | list[str],
        Field(
            description="The name of one of the model's template sets (`GET /v1/templates`), "
            "or a list of templates with one `{}` each."
        ),
    ] = "default"
    scoring: Annotated[
        Literal["softmax", "sigmoid", "cosine"] | None,
        Field(description="How similarities become scores; the model's own way when null."),
    ] = None
    top_k: Annotated[int | None, Field(ge=1, description="Answer with the best `top_k` labels only.")] = None
    min_score: Annotated[
        float | None, Field(description="Answer only with labels of at least this score (a cosine with `cosine`).")
    ] = None
    temperature: Annotated[float, Field(gt=0, description="Scores are flatter above 1 and sharper below it.")] = 1.0
    model: Annotated[
        str | None,
        Field(
            max_length=_MAX_NAME_CHARS,
            description="Name or alias of a model (`GET /v1/models`); the default model when null.",
        ),
    ] = None

    @model_validator(mode="after")
    def _exactly_one_kind_of_labels(self) -> Self:
        if self.label_set is not None and self.labels is not None:
            raise PydanticCustomError("labels", "give either labels or label_set, not both")
        if self.label_set is not None:
            if "templates" in self.model_fields_set:
                raise PydanticCustomError("templates", "belong to the label set; leave them out")
            return self
        if self.labels is None:
            raise PydanticCustomError("labels", "is missing; give the labels to choose from, or a label_set")
        return self

    def query(self) -> LabelQuery:
        """The labels and templates, for the classifier, which checks them."""
        templates = self.templates if isinstance(self.templates, str) else tuple(self.templates)
        return LabelQuery(labels=tuple(self.labels or ()), templates=templates, label_set=self.label_set)

    def scoring_options(self) -> ScoringOptions:
        """How to score, for the classifier, which checks it."""
        return ScoringOptions(
            method=self.scoring, top_k=self.top_k, min_score=self.min_score, temperature=self.temperature
        )


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """A request in the one internal form. An image that could not even be unpacked stands as its error.

    With an `archive` the images are in it, and `images` is empty.
    """

    images: tuple[ImageSource, ...]
    query: LabelQuery
    options: ScoringOptions
    model: str | None
    archive: bytes | None = None


def validated(fields: Mapping[str, object], settings: Settings) -> Options:
    """Check fields of JSON types. Raises `FieldErrors` naming each field that is at fault, and `TooManyLabels`."""
    if unknown := [name for name in fields if name not in Options.model_fields]:
        message = f"is not a field of this request; it has {', '.join(Options.model_fields)}"
        raise FieldErrors([(quoted(name), message) for name in unknown[:_MAX_ERRORS_SHOWN]])
    labels = fields.get("labels")
    if isinstance(labels, list) and len(labels) > settings.max_labels:
        raise TooManyLabels(f"The request has {len(labels)} labels; {settings.max_labels} may be sent at once here.")
    try:
        return Options.model_validate(dict(fields))
    except ValidationError as exc:
        raise FieldErrors(list(field_errors(exc))) from exc


def from_text(fields: Mapping[str, list[str]]) -> dict[str, Any]:
    """Turn a form's or a query string's fields into JSON types, for `validated`.

    `labels` and `templates` may be repeated or hold one JSON list; one template may stand by itself. Numbers
    must look like JSON's. An empty value of any other field means that it is not given.
    """
    typed: dict[str, Any] = {}
    for name, values in fields.items():
        if name in FORM_LISTS:
            typed[name] = _list_from_text(name, values)
        elif len(values) > 1:
            raise FieldErrors([(quoted(name), "is given more than once")])
        elif name not in Options.model_fields or values[0]:
            typed[name] = _scalar_from_text(name, values[0])
    return typed


def parse_json_object(body: bytes | str, *, numbers: bool = False) -> dict[str, Any]:
    """A JSON object (RFC 8259), strictly: UTF-8, no repeated names, no NaN and no infinity.

    With `numbers` it may be an array of millions of them.

    Raises `MalformedRequest`, `FieldErrors` for a name that is repeated, and `PayloadTooLarge` for too many values.
    """
    value = _parse_json(body, numbers=numbers)
    if not isinstance(value, dict):
        raise MalformedRequest("The body must be a JSON object.")
    return value


def parse_json_list(name: str, text: str) -> list[Any]:
    """The JSON list in `text`, which begins with ``[``; raises `FieldErrors` for `name` where it is not valid."""
    try:
        return cast("list[Any]", _parse_json(text))
    except AnyclassError as exc:
        raise FieldErrors([(name, "begins like a JSON list and is not a valid one")]) from exc


def _parse_json(body: bytes | str, *, numbers: bool = False) -> Any:  # noqa: ANN401 - any JSON value
    try:
        text = body if isinstance(body, str) else body.decode("utf-8")
        # Before any of it is made: a list without anything in it is 3 bytes of JSON and 64 bytes of memory.
        if text.count("[") + text.count("{") + (0 if numbers else text.count(",")) > _MAX_VALUES:
            raise PayloadTooLarge(f"The JSON has more than {_MAX_VALUES} values, the limit of this server.")
        return json.loads(text, object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
    except UnicodeDecodeError as exc:
        raise MalformedRequest("The body is not valid JSON: it must be in UTF-8.") from exc
    except json.JSONDecodeError as exc:
        raise MalformedRequest(
            f"The body is not valid JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}."
        ) from exc
    except RecursionError as exc:
        raise MalformedRequest("The body is not acceptable JSON: it is nested too deeply.") from exc
    except ValueError as exc:
        raise MalformedRequest("The body is not acceptable JSON: a number in it has too many digits.") from exc


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise FieldErrors([(quoted(repeated), "is given more than once")])
    return names


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedRequest(f"The body is not valid JSON: {name} is not a JSON number.")


def _list_from_text(name: str, values: list[str]) -> object:
    """Repeated values, or one JSON list. A single template set's name stays a string."""
    if len(values) > 1:
        return values
    only = values[0]
    if only.lstrip().startswith("["):
        return parse_json_list(name, only)
    if name == "templates" and "{}" not in only:
        return only
    return [only]


def _scalar_from_text(name: str, value: str) -> object:
    if name == "top_k" and _INTEGER.fullmatch(value):
        return int(value)
    if name in ("min_score", "temperature") and _NUMBER.fullmatch(value):
        return float(value)
    return value


def field_errors(exc: ValidationError) -> Iterable[tuple[str, str]]:
    """Name and fault of each field that `exc` tells of, for `FieldErrors`."""
    for entry in exc.errors(include_url=False, include_input=False)[:_MAX_ERRORS_SHOWN]:
        yield quoted(_path(entry["loc"]) or entry["type"]), worded(entry)


def _path(location: tuple[int | str, ...]) -> str:
    """``labels[3]`` for ("labels", 3); the arms of a union that pydantic adds are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not path:
            path = part
    return path
