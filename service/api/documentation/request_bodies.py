"""Request bodies and parameters for the OpenAPI document, of routes that read them without FastAPI."""

from typing import Annotated, Any, Final

from fastapi import Path
from pydantic import BaseModel

from service.api.documentation.examples import RED_DOT
from service.api.documentation.responses import REFERENCE
from service.api.request.fields import Options

_IMAGE_TEXT: Final = {
    "type": "string",
    "description": "The image as a data URI or as base64 (standard or URL-safe alphabet), "
    "or as an http:// or https:// URL if the operator allows that.",
}
_FILE: Final = {"type": "string", "format": "binary", "description": "The image's bytes."}

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "labels": {
        "summary": "Two labels",
        "value": {"image": f"data:image/png;base64,{RED_DOT}", "labels": ["something red", "something green"]},
    },
    "all fields": {
        "summary": "Every field",
        "value": {
            "image": RED_DOT,
            "labels": ["red", "green", "blue"],
            "templates": ["a photo of something {}.", "the colour {}."],
            "scoring": "cosine",
            "top_k": 2,
            "min_score": -1.0,
            "temperature": 1.0,
            "model": None,
        },
    },
}
BATCH_EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "batch": {
        "summary": "Two images, one of them broken",
        "value": {"images": [RED_DOT, "AAAA"], "labels": ["red", "green"]},
    }
}
FORM_FIELDS: Final = {"labels": ["cat", "dog"], "top_k": 1}
_FILLED_IN: Final[dict[str, Any]] = {"labels": FORM_FIELDS["labels"], "templates": []}
"""Values that Swagger UI fills into its form in place of made-up ones. All others are empty, so it leaves them out."""
_EMPTY: Final = ""
_REPEATED: Final = {"style": "form", "explode": True}
"""A list is sent as a part for each item. The default for forms is one part with commas."""
_BYTES: Final = "(the bytes of a file)"


def json_body(model: type[BaseModel], examples: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a route's `openapi_extra` for a JSON body that the route checks against `model`."""
    return {"requestBody": {"required": True, "content": {"application/json": json_content(model, examples)}}}


def json_content(model: type[BaseModel], examples: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the media type of `json_body` alone, for a route that takes others too."""
    return {"schema": {"$ref": REFERENCE + model.__name__}, "examples": examples}


def parameter(name: str, description: str, schema: dict[str, Any], place: str = "query") -> dict[str, Any]:
    """Return an optional parameter that a route reads by itself."""
    return {"name": name, "in": place, "required": False, "description": description, "schema": schema}


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter or a field without null: it is left out instead."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**kinds[0], **{name: value for name, value in schema.items() if name != "anyOf"}}


def _labelled(required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with labels, or with the name of a label set."""
    return {
        "type": "object",
        "required": required,
        "anyOf": [{"required": ["labels"]}, {"required": ["label_set"]}],
        "additionalProperties": False,
        "properties": properties,
    }


def _json_schema(image: dict[str, Any], name: str) -> dict[str, Any]:
    return _labelled([name], {name: image, **Options.model_json_schema()["properties"]})


def _text_fields() -> dict[str, Any]:
    """Return the fields as a form or a query has them: without null, for a field is left out instead."""
    fields = {}
    for name, schema in Options.model_json_schema()["properties"].items():
        kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
        said = {key: schema[key] for key in ("description", "examples") if key in schema}
        # One schema for the three spellings of a list: repeated, once, or one JSON list.
        array = next((kind for kind in kinds if kind.get("type") == "array"), None)
        one = array or (kinds[0] if "anyOf" in schema else {k: v for k, v in schema.items() if k != "default"})
        fields[name] = {**{k: v for k, v in one.items() if k != "title"}, **said}
    return fields


def _form(image: dict[str, Any]) -> dict[str, Any]:
    fields = _text_fields()
    for name, field in fields.items():
        field["examples"] = [_FILLED_IN.get(name, _EMPTY)]
        if "items" in field:
            field["items"] = {**field["items"], "examples": [_EMPTY]}
    lists = [name for name, field in fields.items() if "items" in field]
    return {
        "schema": _labelled(["image"], {"image": image, **fields}),
        "encoding": dict.fromkeys(lists, _REPEATED),
        "examples": {"form": {"summary": "A file", "value": {"image": _BYTES, **FORM_FIELDS}}},
    }


def _batch_form() -> dict[str, Any]:
    """Return the form for several images, or for one archive of them."""
    form = _form({"type": "array", "minItems": 1, "items": _FILE})
    schema = form["schema"]
    archive = {**_FILE, "description": "A tar, tar.gz or zip of images, in place of `image`."}
    properties = {**schema["properties"], "archive": archive}
    images = {"oneOf": [{"required": ["image"]}, {"required": ["archive"]}]}
    del schema["required"]
    return {
        **form,
        "schema": {**schema, **images, "properties": properties},
        "examples": {
            "images": {"summary": "Files", "value": {"image": [_BYTES, _BYTES], **FORM_FIELDS}},
            "archive": {"summary": "An archive", "value": {"archive": _BYTES, **FORM_FIELDS}},
        },
    }


def _query_parameters(when: str) -> list[dict[str, Any]]:
    return [parameter(name, when + schema.pop("description", ""), schema) for name, schema in _text_fields().items()]


_RAW: Final = {"schema": {"type": "string", "format": "binary"}}

CLASSIFY: Final[dict[str, Any]] = {
    "parameters": _query_parameters("Only with the image as the body. "),
    "requestBody": {
        "description": "A form with the image as a file; JSON with the image as text; or the image itself, with the "
        "other fields in the query.",
        "required": True,
        "content": {
            # Swagger UI shows the first one, and this is the one to try with a file.
            "multipart/form-data": _form(_FILE),
            "application/json": {"schema": _json_schema(_IMAGE_TEXT, "image"), "examples": EXAMPLES},
            "image/*": _RAW,
            "application/octet-stream": _RAW,
        },
    },
}

_ARCHIVE: Final = {
    "schema": {"type": "string", "format": "binary", "description": "The archive's bytes; its files are the images."}
}

BATCH: Final[dict[str, Any]] = {
    "parameters": _query_parameters("Only with an archive as the body. "),
    "requestBody": {
        "description": "A form with the images as files, or with one archive; JSON with the images as text; or the "
        "archive itself, with the other fields in the query.",
        "required": True,
        "content": {
            "multipart/form-data": _batch_form(),
            "application/json": {
                "schema": _json_schema({"type": "array", "minItems": 1, "items": _IMAGE_TEXT}, "images"),
                "examples": BATCH_EXAMPLES,
            },
            "application/x-tar": _ARCHIVE,
            "application/gzip": _ARCHIVE,
            "application/zip": _ARCHIVE,
        },
    },
}

ModelName = Annotated[
    str, Path(description="Name or alias of a model (`GET /v1/models`); it may contain a slash.", examples=["demo"])
]

MODEL_PARAMETER: Final[dict[str, Any]] = {
    "parameters": [parameter("model", "Name or alias of a model; the default model if left out.", {"type": "string"})]
}
