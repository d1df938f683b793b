"""Schemas of label sets: requests, answers, and their OpenAPI descriptions."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from fastapi import Path
from pydantic import Field

from service.api.documentation.request_bodies import json_body, parameter
from service.api.json_writer import json_text
from service.api.native.schemas import WarningOut
from service.api.problems.schemas import AnswerModel
from service.api.request.validation import RequestModel
from service.label_sets.definition import NAME, Definition
from service.label_sets.status import LabelSetStatus

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1_000


class DescribedLabel(RequestModel):
    """A label with descriptions that replace it; repeat the label among them if it should count too."""

    label: Annotated[str, Field(examples=["cat"])]
    descriptions: Annotated[
        list[str], Field(fail_fast=True, examples=[["a cat", "a small furry animal with whiskers"]])
    ]


class LabelSetIn(RequestModel):
    """A label set as clients write it."""

    labels: Annotated[
        list[str | DescribedLabel],
        Field(fail_fast=True, description="Each once, as in `/v1/classify`.", examples=[["cat", "dog"]]),
    ]
    templates: Annotated[
        str | list[str] | None,
        Field(description="The name of a template set, or templates with one `{}` each; `default` if null."),
    ] = None


class Progress(AnswerModel):
    """Labels whose class vectors are computed, and all labels, summed over the models."""

    done: int
    total: int


class ModelProgress(AnswerModel):
    """Progress for one model; `reason` explains a failure."""

    model: str
    status: Literal["computing", "ready", "failed"]
    done: int
    total: int
    reason: str | None = None


class LabelSetOut(AnswerModel):
    """A label set; with its labels if requested."""

    name: Annotated[str, Field(examples=["animals"])]
    version: Annotated[str, Field(description="Changes with each writing of other content; it is the ETag too.")]
    status: Literal["computing", "ready", "failed"]
    progress: Progress
    label_count: int
    templates: str | list[str]
    written: Annotated[str, Field(description="When this version was written (RFC 3339, UTC).")]
    models: list[ModelProgress]
    labels: Annotated[
        list[str | DescribedLabel] | None, Field(description="With `?include=labels`; descriptions are normalised.")
    ] = None
    warnings: Annotated[
        list[WarningOut] | None, Field(description="Only in the answer to a write; left out without warnings.")
    ] = None


class LabelSetsOut(AnswerModel):
    """A page of label sets, by name. Send `next` as `after` for the next page; it is null on the last."""

    label_sets: list[LabelSetOut]
    next: str | None


Name = Annotated[
    str, Path(description="The set's name.", examples=["animals"], json_schema_extra={"pattern": f"^{NAME.pattern}$"})
]
"""A name in a path. Not validated here, because most routes answer an impossible name as an unknown one."""

_TAGS: Final = r'^(\*|(W/)?"[!#-~]*"(, *(W/)?"[!#-~]*")*)$'
_CONDITIONS: Final = [
    # No example here, nor for other parameters that change the effect of a request: Swagger UI would fill it in.
    parameter(name, f"{text} Entity tags, or `*` for any.", {"type": "string", "pattern": _TAGS}, "header")
    for name, text in (
        ("If-Match", "Change the set only in one of these versions."),
        ("If-None-Match", "Change it only in none of these versions; `*` creates and never replaces."),
    )
]
DELETE: Final[dict[str, Any]] = {"parameters": [*_CONDITIONS]}
PUT: Final[dict[str, Any]] = {
    "parameters": [*_CONDITIONS],
    **json_body(
        LabelSetIn,
        {
            "labels": {"summary": "Two labels", "value": {"labels": ["cat", "dog"]}},
            "descriptions": {
                "summary": "Descriptions and templates",
                "value": {
                    "labels": [{"label": "cat", "descriptions": ["cat", "small cat"]}, "dog"],
                    "templates": ["a photo of a {}.", "{}"],
                },
            },
        },
    ),
}
GET: Final[dict[str, Any]] = {
    "parameters": [
        parameter("include", "`labels` adds the labels to the answer.", {"type": "string", "enum": ["labels"]}),
        {**_CONDITIONS[1], "description": "Answer 304 when the set is ready in one of these versions."},
    ]
}
LIST: Final[dict[str, Any]] = {
    "parameters": [
        parameter(
            "after",
            "Only names after this one: `next` of the previous page.",
            {"type": "string", "pattern": f"^({NAME.pattern})?$"},
        ),
        parameter(
            "limit",
            "Sets on a page.",
            {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
        ),
    ]
}


def label_set_json(status: LabelSetStatus) -> dict[str, Any]:
    """Return a set as `LabelSetOut` describes it, without its labels."""
    head = status.head
    return {
        "name": status.name,
        "version": head.version,
        "status": status.state,
        "progress": {
            "done": sum(model.done for model in status.models),
            "total": sum(model.total for model in status.models),
        },
        "label_count": head.labels,
        "templates": head.templates,
        "written": datetime.fromtimestamp(head.written, UTC).isoformat(timespec="seconds"),
        "models": [
            {
                "model": model.model,
                "status": model.state,
                "done": model.done,
                "total": model.total,
                **({"reason": model.reason} if model.reason else {}),
            }
            for model in status.models
        ],
    }


def labels_text(definition: Definition) -> str:
    """Return the labels as a JSON list, written one by one: `json.dumps` would block every other thread meanwhile."""
    rows = []
    for index, label in enumerate(definition.labels):
        texts = definition.descriptions.get(index)
        rows.append(json_text(label if texts is None else {"label": label, "descriptions": texts}))
    return f"[{','.join(rows)}]"
