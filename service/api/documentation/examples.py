"""What the routes answer, for the OpenAPI document: one example of each answer that is no error."""

from typing import Any, Final

from service.installation import VERSION

REVISION: Final = "38fc8dd378c48fb27a452c0b6dacdc65bc1d6679ca838f36a58ad52ab3d1e798"
FILE_ID: Final = "file-01a212d6c605f94d760cdac344b54030"
BATCH_ID: Final = "batch_01a212d6c605f94d760cdac344b54031"
_CREATED: Final = 1_795_612_395
_DAY_S: Final = 24 * 3_600

_PREDICTIONS: Final = [{"label": "cat", "score": 0.9731544}, {"label": "dog", "score": 0.02684565}]
_USAGE: Final = {"labels": 2, "labels_cached": 2}
_BROKEN: Final = {
    "type": "urn:anyclass:problem:invalid-image",
    "title": "The image cannot be read",
    "status": 422,
    "detail": "The PNG image is corrupt, truncated or of a kind that cannot be read.",
    "request_id": "5a3f0c1e9b7d4c2f8e6a1b0d9c8f7e6a",
}

CLASSIFIED: Final[dict[str, Any]] = {
    "model": "demo",
    "revision": REVISION,
    "predictions": _PREDICTIONS,
    "usage": _USAGE,
}
BATCH: Final[dict[str, Any]] = {
    "model": "demo",
    "results": [{"index": 0, "predictions": _PREDICTIONS}, {"index": 1, "error": _BROKEN}],
    "usage": _USAGE,
}
BATCH_LINES: Final = (
    '{"index":0,"name":"photos/1.jpg","predictions":[{"label":"cat","score":0.9731544}]}\n'
    '{"index":1,"name":"photos/2.jpg","predictions":[{"label":"dog","score":0.8812001}]}\n'
)
MODELS: Final[dict[str, Any]] = {
    "models": [
        {
            "name": "demo",
            "aliases": [],
            "default": True,
            "architecture": "clip/residual_conv",
            "revision": REVISION,
            "provider": "cpu",
            "precision": "fp32",
            "parity": None,
            "dim": 256,
            "image": {"height": 32, "width": 32},
            "context_length": 32,
            "scoring": "softmax",
            "templates": ["default", "none"],
        }
    ],
    "object": "list",
    "data": [{"id": "demo", "object": "model", "created": 0, "owned_by": "anyclass"}],
}
ONE_MODEL: Final[dict[str, Any]] = MODELS["data"][0]
TEMPLATES: Final[dict[str, Any]] = {
    "model": "demo",
    "templates": {"default": ["a photo of a {}."], "none": ["{}"]},
}
ALIVE: Final = {"status": "alive"}
READY: Final = {"status": "ready"}
METRICS: Final = (
    "# HELP anyclass_http_requests_total HTTP requests that were answered.\n"
    "# TYPE anyclass_http_requests_total counter\n"
    'anyclass_http_requests_total{method="POST",protocol="own",route="/v1/classify",status="2xx"} 1024.0\n'
)

LABEL_SET: Final[dict[str, Any]] = {
    "name": "animals",
    "version": "3f2a9c0d1e5b7a84",
    "status": "ready",
    "progress": {"done": 2, "total": 2},
    "label_count": 2,
    "templates": "default",
    "written": "2026-11-25T13:00:00+00:00",
    "models": [{"model": "demo", "status": "ready", "done": 2, "total": 2}],
}
LABEL_SET_COMPUTING: Final[dict[str, Any]] = {
    **LABEL_SET,
    "status": "computing",
    "progress": {"done": 1_200, "total": 50_000},
    "label_count": 50_000,
    "models": [{"model": "demo", "status": "computing", "done": 1_200, "total": 50_000}],
}
LABEL_SETS: Final[dict[str, Any]] = {"label_sets": [LABEL_SET], "next": None}

FILE_LINES: Final = (
    '{"custom_id":"1","method":"POST","url":"/v1/embeddings","body":{"input":"a photo of a cat"}}\n'
    '{"custom_id":"2","method":"POST","url":"/v1/embeddings","body":{"input":"a photo of a dog"}}\n'
)
FILE: Final[dict[str, Any]] = {
    "id": FILE_ID,
    "object": "file",
    "bytes": len(FILE_LINES),
    "created_at": _CREATED,
    "expires_at": _CREATED + 30 * _DAY_S,
    "filename": "requests.jsonl",
    "purpose": "batch",
    "status": "processed",
}
FILES: Final[dict[str, Any]] = {
    "object": "list",
    "data": [FILE],
    "first_id": FILE_ID,
    "last_id": FILE_ID,
    "has_more": False,
}
FILE_DELETED: Final[dict[str, Any]] = {"id": FILE_ID, "object": "file", "deleted": True}

JOB: Final[dict[str, Any]] = {
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
    "finalizing_at": None,
    "completed_at": None,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": {"total": 2, "completed": 1, "failed": 0},
    "metadata": {"experiment": "7"},
}
JOB_CANCELLING: Final[dict[str, Any]] = {**JOB, "status": "cancelling", "cancelling_at": _CREATED + 60}
JOBS: Final[dict[str, Any]] = {
    "object": "list",
    "data": [JOB],
    "first_id": BATCH_ID,
    "last_id": BATCH_ID,
    "has_more": False,
}

EMBEDDINGS: Final[dict[str, Any]] = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.0123, -0.0456, 0.0789]}],
    "model": "demo",
    "usage": {"prompt_tokens": 7, "total_tokens": 7},
}
SCORES: Final = _PREDICTIONS
SERVER: Final = {"name": "anyclass", "version": VERSION, "extensions": ["binary_tensor_data"]}
LIVE: Final = {"live": True}
SERVER_READY: Final = {"ready": True}
MODEL_READY: Final = {"name": "demo", "ready": True}
MODEL_METADATA: Final[dict[str, Any]] = {
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
}
INFERRED: Final[dict[str, Any]] = {
    "model_name": "demo",
    "model_version": REVISION[:12],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.9731544, 0.02684565]}],
}

ANSWERS: Final[dict[str, Any]] = {
    "CLASSIFIED": CLASSIFIED,
    "BATCH": BATCH,
    "BATCH_LINES": BATCH_LINES,
    "MODELS": MODELS,
    "ONE_MODEL": ONE_MODEL,
    "TEMPLATES": TEMPLATES,
    "ALIVE": ALIVE,
    "READY": READY,
    "METRICS": METRICS,
    "LABEL_SET": LABEL_SET,
    "LABEL_SET_COMPUTING": LABEL_SET_COMPUTING,
    "LABEL_SETS": LABEL_SETS,
    "FILE": FILE,
    "FILES": FILES,
    "FILE_DELETED": FILE_DELETED,
    "JOB": JOB,
    "JOB_CANCELLING": JOB_CANCELLING,
    "JOBS": JOBS,
    "EMBEDDINGS": EMBEDDINGS,
    "SCORES": SCORES,
    "SERVER": SERVER,
    "LIVE": LIVE,
    "SERVER_READY": SERVER_READY,
    "MODEL_READY": MODEL_READY,
    "MODEL_METADATA": MODEL_METADATA,
    "INFERRED": INFERRED,
}
"""Each by the name under which the document refers to it."""


RED_DOT: Final = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR4nGP4z8CAFWEXHbQSACj/P8F7UQOfAAAAAElFTkSuQmCC"
"""A picture small enough to stand in an example: 8×8 pixels of red."""
