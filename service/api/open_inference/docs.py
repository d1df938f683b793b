"""What the routes of the Open Inference Protocol say about themselves in the OpenAPI document."""

from typing import Annotated, Any, Final

from fastapi import Path

from service.api.documentation import examples
from service.api.documentation import responses as answers
from service.api.documentation.examples import RED_DOT
from service.api.open_inference.schemas import InferAnswer, ModelMetadata, ModelReady
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
    str,
    Path(description="The model's version, which `GET /v2/models/{model}` tells.", examples=[examples.REVISION[:12]]),
]

_FINDING: Final = answers.refusals("/v2", NotReady, UnknownModel)
READY: Final[dict[str, Any]] = {
    "response_model": ModelReady,
    "responses": {200: answers.answer("MODEL_READY"), **_FINDING},
}
METADATA: Final[dict[str, Any]] = {
    "response_model": ModelMetadata,
    "responses": {200: answers.answer("MODEL_METADATA"), **_FINDING},
}
INFER: Final[dict[str, Any]] = {
    "response_model": InferAnswer,
    "response_model_exclude_none": True,
    "openapi_extra": {
        "parameters": [
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "required": False,
                "description": "Bytes of the JSON, where binary tensors follow it.",
                "schema": {"type": "integer", "minimum": 1},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": {"$ref": "#/components/schemas/InferRequest"}, "examples": EXAMPLES},
                OCTETS: {
                    "schema": {
                        "type": "string",
                        "format": "binary",
                        "description": "`InferRequest` as JSON, and after it the tensors that have a "
                        "`binary_data_size`, in their order.",
                    }
                },
            },
        },
    },
    "responses": {
        200: {
            "content": {
                JSON: answers.example("INFERRED"),
                OCTETS: {
                    "schema": {
                        "type": "string",
                        "format": "binary",
                        "description": "`InferAnswer` as JSON, and after it the tensors that have a "
                        "`binary_data_size`, in their order.",
                    }
                },
            },
            "description": "The outputs as JSON; where some are binary these follow it, and the header "
            "Inference-Header-Content-Length has the bytes of the JSON.",
            "headers": answers.header("Server-Timing", always=True) | answers.header("Inference-Header-Content-Length"),
        },
        **answers.refusals(
            "/v2",
            *answers.READING,
            *answers.PICTURES,
            InvalidLabels("Text 0 is empty."),
            InvalidTemplates,
            InvalidScoring,
            PromptTooLong("Text 0 has 90 tokens with its template; this model reads 32. Shorten it."),
            UnknownModel,
            *answers.COMPUTING,
        ),
    },
}
