"""OpenAPI descriptions of the routes of the Open Inference Protocol."""

from typing import Annotated, Any, Final

from fastapi import Path

from service.api.documentation.examples import RED_DOT, REVISION
from service.api.documentation.request_bodies import json_content, parameter
from service.api.documentation.responses import BODY_ERRORS, IMAGE_ERRORS, INFERENCE_ERRORS, error_responses, header
from service.api.open_inference.schemas import InferAnswer, InferRequest, ModelMetadata, ModelReady
from service.api.request.body import JSON, OCTETS
from service.errors import InvalidLabels, InvalidScoring, InvalidTemplates, NotReady, PromptTooLong, UnknownModel

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "scores": {
        "summary": "Scores of two labels for one image",
        "value": {
            "inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [1], "data": [RED_DOT]},
                {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["something red", "something green"]},
            ],
            "outputs": [{"name": "scores"}],
            "parameters": {"templates": "default"},
        },
    },
    "vectors": {
        "summary": "Vectors of two texts",
        "value": {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": [["a cat"], ["a dog"]]}]},
    },
}

Version = Annotated[
    str, Path(description="The model's version, from `GET /v2/models/{model}`.", examples=[REVISION[:12]])
]


def _binary(model: str) -> dict[str, Any]:
    """Describe a body of JSON and binary tensors."""
    description = f"`{model}` as JSON, followed by the tensors that have a `binary_data_size`, in order."
    return {"schema": {"type": "string", "format": "binary", "description": description}}


_MODEL_ERRORS: Final = error_responses("/v2", NotReady, UnknownModel)
READY: Final[dict[str, Any]] = {"response_model": ModelReady, "responses": _MODEL_ERRORS}
METADATA: Final[dict[str, Any]] = {"response_model": ModelMetadata, "responses": _MODEL_ERRORS}
INFER: Final[dict[str, Any]] = {
    "response_model": InferAnswer,
    "openapi_extra": {
        "parameters": [
            parameter(
                "Inference-Header-Content-Length",
                "Bytes of the JSON, if binary tensors follow it.",
                {"type": "integer", "minimum": 1},
                "header",
            )
        ],
        "requestBody": {
            "required": True,
            "content": {JSON: json_content(InferRequest, EXAMPLES), OCTETS: _binary("InferRequest")},
        },
    },
    "responses": {
        200: {
            "content": {OCTETS: _binary("InferAnswer")},
            "description": "The outputs as JSON. Binary outputs follow the JSON, and the header "
            "Inference-Header-Content-Length has its length in bytes.",
            "headers": header("Server-Timing", always=True)
            | header("Inference-Header-Content-Length")
            | header("X-Anyclass-Warnings"),
        },
        **error_responses(
            "/v2",
            *BODY_ERRORS,
            *IMAGE_ERRORS,
            InvalidLabels,
            InvalidTemplates,
            InvalidScoring,
            PromptTooLong,
            UnknownModel,
            *INFERENCE_ERRORS,
        ),
    },
}
