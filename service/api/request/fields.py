"""The fields of a request to classify, next to its images. JSON, forms and query strings are all validated here."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from service.api.problems.table import FieldErrors
from service.api.request.strict_json import parse_json_list
from service.api.request.validation import MAX_ERRORS_SHOWN, RequestModel, unknown_field, validate_fields
from service.classification.types import ImageSource, LabelQuery, ScoringOptions
from service.errors import TooManyLabels
from service.model.choices import ScoringMethod
from service.model.prompts import is_template
from service.settings import Settings

_MAX_NAME_CHARS: Final = 256
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")

_FORM_LISTS: Final = ("labels", "templates")
_LONE_COMMA: Final = (
    "is one value with a comma in it. Repeat the field for each label (labels=cat, labels=dog), or send a JSON list: "
    '["cat", "dog"]; one label with a comma in it is a list too: ["salt, pepper"]'
)
_OTHER_VALUES: Final = 256


class Options(RequestModel):
    """The fields of a request next to its images, as JSON types."""

    labels: Annotated[
        list[str] | None,
        Field(
            fail_fast=True,
            description="The labels to choose from: one or more, all different (white space and Unicode form aside).",
            examples=[["cat", "dog"]],
        ),
    ] = None
    label_set: Annotated[
        str | None,
        Field(
            max_length=_MAX_NAME_CHARS,
            description="Instead of `labels` and `templates`: the name of a label set (`GET /v1/label-sets`).",
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
        ScoringMethod | None,
        Field(description="How similarities become scores; the model's own scoring if null."),
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
            description="Name or alias of a model (`GET /v1/models`); the default model if null.",
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
        """Return the labels and templates, which the classifier checks."""
        templates = self.templates if isinstance(self.templates, str) else tuple(self.templates)
        return LabelQuery(labels=tuple(self.labels or ()), templates=templates, label_set=self.label_set)

    def scoring_options(self) -> ScoringOptions:
        """Return the scoring options, which the classifier checks."""
        return ScoringOptions(
            method=self.scoring, top_k=self.top_k, min_score=self.min_score, temperature=self.temperature
        )


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """A request to classify, independent of the form it was sent in.

    Attributes:
        images: an image that could not be unpacked is replaced by its error; empty if `archive` has the images.
    """

    images: tuple[ImageSource, ...]
    query: LabelQuery
    options: ScoringOptions
    model: str | None
    archive: bytes | None = None


def max_values(settings: Settings, *, images: int = 1) -> int:
    """Return the limit on the values of a JSON request: twice those of use, so that a list has its own error first."""
    return 2 * (settings.max_labels + settings.max_templates + images) + _OTHER_VALUES


def read_options(fields: Mapping[str, object], settings: Settings) -> Options:
    """Validate fields of JSON types. Raises `TooManyLabels`, and `FieldErrors` with each faulty field."""
    _refuse_unknown(fields)
    return _validated(fields, settings)


def read_text_options(fields: Mapping[str, list[str]], settings: Settings) -> Options:
    """Validate the fields of a form or a query string: `read_options` of `_fields_from_text`."""
    _refuse_unknown(fields)
    return _validated(_fields_from_text(fields, max_values=max_values(settings)), settings)


def _validated(fields: Mapping[str, object], settings: Settings) -> Options:
    labels = fields.get("labels")
    if isinstance(labels, list) and len(labels) > settings.max_labels:
        raise TooManyLabels(
            f"The request has {len(labels)} labels; this server accepts at most {settings.max_labels} in one request."
        )
    return validate_fields(Options, fields)


def _refuse_unknown(fields: Iterable[str]) -> None:
    if unknown := [name for name in fields if name not in Options.model_fields]:
        raise FieldErrors([unknown_field(name, Options.model_fields) for name in unknown[:MAX_ERRORS_SHOWN]])


def _fields_from_text(fields: Mapping[str, list[str]], *, max_values: int) -> dict[str, Any]:
    """Convert known fields of a form or a query string to JSON types.

    `labels` and `templates` may be repeated; a value that begins with ``[`` is a JSON list, whose values count as if
    they were repeated. A single template needs no list. Numbers are written as in JSON. An empty value counts as not
    given. A JSON list has at most `max_values` values.

    Raises `FieldErrors` for a field that is repeated, for a list that is not JSON, and for a lone label with a comma in
    it, which is almost always meant as several labels.
    """
    typed: dict[str, Any] = {}
    for name, values in fields.items():
        given = [value for value in values if value]
        if not given:
            continue
        if name in _FORM_LISTS:
            typed[name] = _list_from_text(name, given, max_values)
        elif len(values) > 1:
            raise FieldErrors([(name, "is given more than once")])
        else:
            typed[name] = _scalar_from_text(name, given[0])
    return typed


def _list_from_text(name: str, values: list[str], max_values: int) -> object:
    """Return the values, those of JSON lists among them. The name of a template set stays a string."""
    if len(values) == 1 and not _is_list(only := values[0]):
        if name == "templates" and not is_template(only):
            return only
        if name == "labels" and "," in only:
            raise FieldErrors([(name, _LONE_COMMA)])
        return [only]
    typed: list[Any] = []
    for value in values:
        if _is_list(value):
            typed += parse_json_list(name, value, max_values=max_values)
        else:
            typed.append(value)
    return typed


def _is_list(value: str) -> bool:
    return value.lstrip().startswith("[")


def _scalar_from_text(name: str, value: str) -> object:
    if name == "top_k" and _INTEGER.fullmatch(value):
        return int(value)
    if name in ("min_score", "temperature") and _NUMBER.fullmatch(value):
        return float(value)
    return value
