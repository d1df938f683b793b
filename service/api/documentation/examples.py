"""Examples for the OpenAPI document: of every answer, and of values that several examples share."""

from typing import Any, Final

from service.api.problems.protocol_forms import write_error
from service.api.problems.table import FieldErrors, problem_of
from service.installation import VERSION

REQUEST_ID: Final = "5a3f0c1e9b7d4c2f8e6a1b0d9c8f7e6a"
RED_DOT: Final = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR4nGP4z8CAFWEXHbQSACj/P8F7UQOfAAAAAElFTkSuQmCC"
"""A PNG image of 8×8 red pixels, small enough for an example."""
REVISION: Final = "38fc8dd378c48fb27a452c0b6dacdc65bc1d6679ca838f36a58ad52ab3d1e798"
FILE_ID: Final = "file-01a212d6c605f94d760cdac344b54030"
BATCH_ID: Final = "batch_01a212d6c605f94d760cdac344b54031"
_CREATED: Final = 1_795_612_395
_DAY_S: Final = 24 * 3_600

FILE_LINES: Final = (
    '{"custom_id":"1","method":"POST","url":"/v1/embeddings","body":{"input":"a photo of a cat"}}\n'
    '{"custom_id":"2","method":"POST","url":"/v1/embeddings","body":{"input":"a photo of a dog"}}\n'
)
RESULT_LINES: Final = (
    '{"index":0,"name":"photos/1.jpg","predictions":[{"label":"cat","score":0.9731544}]}\n'
    '{"index":1,"name":"photos/2.jpg","predictions":[{"label":"dog","score":0.8812001}]}\n'
)
METRICS: Final = (
    "# HELP anyclass_http_requests_total HTTP requests that were answered.\n"
    "# TYPE anyclass_http_requests_total counter\n"
    'anyclass_http_requests_total{method="POST",protocol="own",route="/v1/classify",status="2xx"} 1024.0\n'
)
PREDICTIONS: Final = [{"label": "cat", "score": 0.9731544}, {"label": "dog", "score": 0.02684565}]

_USAGE: Final = {"labels": 2, "labels_cached": 2}
_PROBLEM: Final = problem_of(FieldErrors([("labels[3]", "must be a string")]), REQUEST_ID)
_OPENAI_MODEL: Final = {"id": "demo", "object": "model", "created": 0, "owned_by": "anyclass"}
_LABEL_SET: Final = {
    "name": "animals",
    "version": "3f2a9c0d1e5b7a84",
    "status": "ready",
    "progress": {"done": 2, "total": 2},
    "label_count": 2,
    "templates": "default",
    "written": "2026-11-25T13:00:00+00:00",
    "models": [{"model": "demo", "status": "ready", "done": 2, "total": 2}],
}
_FILE: Final = {
    "id": FILE_ID,
    "object": "file",
    "bytes": len(FILE_LINES),
    "created_at": _CREATED,
    "expires_at": _CREATED + 30 * _DAY_S,
    "filename": "requests.jsonl",
    "purpose": "batch",
    "status": "processed",
}
_BATCH: Final = {
    "id": BATCH_ID,
    "object": "batch",
    "endpoint": "/v1/embeddings",
    "errors": None,
    "input_file_id": FILE_ID,
    "completion_window": "24h",
    "status": "in_progress",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": _CREATED,
    "in_progress_at": _CREATED + 1,
    "expires_at": _CREATED + _DAY_S,
    **dict.fromkeys(
        ("finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at"), None
    ),
    "request_counts": {"total": 2, "completed": 1, "failed": 0},
    "metadata": {"experiment": "7"},
}


def _page(entry: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [entry], "first_id": entry["id"], "last_id": entry["id"], "has_more": False}


ANSWERS: Final[dict[str, dict[str, Any]]] = {
    "Problem": _PROBLEM,
    "OpenAIError": write_error("/v1/embeddings", _PROBLEM)[2],
    "PlainError": write_error("/v2", _PROBLEM)[2],
    "ClassifyAnswer": {"model": "demo", "revision": REVISION, "predictions": PREDICTIONS, "usage": _USAGE},
    "BatchAnswer": {
        "model": "demo",
        "results": [{"index": 0, "predictions": PREDICTIONS}, {"index": 1, "error": _PROBLEM}],
        "usage": _USAGE,
    },
    "ModelsAnswer": {
        "models": [
            {
                "name": "demo",
                "aliases": [],
                "default": True,
                "architecture": "clip/residual_conv",
                "revision": REVISION,
                "provider": "cpu",
                "precision": "fp32",
                "because": "asked for by name",
                "parity": None,
                "dim": 256,
                "image": {"height": 32, "width": 32},
                "context_length": 32,
                "scoring": "softmax",
                "templates": ["default", "none"],
            }
        ],
        "object": "list",
        "data": [_OPENAI_MODEL],
    },
    "OpenAIModel": _OPENAI_MODEL,
    "TemplatesAnswer": {"model": "demo", "templates": {"default": ["a photo of a {}."], "none": ["{}"]}},
    "Status": {"status": "ready"},
    "LabelSetOut": _LABEL_SET,
    "LabelSetsOut": {"label_sets": [_LABEL_SET], "next": None},
    "FileOut": _FILE,
    "FilesOut": _page(_FILE),
    "FileDeletedOut": {"id": FILE_ID, "object": "file", "deleted": True},
    "BatchOut": _BATCH,
    "BatchesOut": _page(_BATCH),
    "EmbeddingsAnswer": {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.0123, -0.0456, 0.0789]}],
        "model": "demo",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    },
    "ServerInfo": {"name": "anyclass", "version": VERSION, "extensions": ["binary_tensor_data"]},
    "Live": {"live": True},
    "Ready": {"ready": True},
    "ModelReady": {"name": "demo", "ready": True},
    "ModelMetadata": {
        "name": "demo",
        "versions": [REVISION[:12]],
        "platform": "onnxruntime_cpu",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "text", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": "image_embeddings", "datatype": "FP32", "shape": [-1, 256]},
            {"name": "text_embeddings", "datatype": "FP32", "shape": [-1, 256]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, -1]},
        ],
    },
    "InferAnswer": {
        "model_name": "demo",
        "model_version": REVISION[:12],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.9731544, 0.02684565]}],
    },
}
"""One example for each schema of an answer, by the schema's name."""
