"""The protocols of the HTTP interface: one table from a path to its protocol and its form of errors."""

from typing import Final, Literal, NamedTuple, TypeAlias

Protocol: TypeAlias = Literal[
    "own", "batch", "label-sets", "huggingface", "openai", "open-inference", "jobs", "operations", "other"
]
"""The label `protocol` of the metrics."""
ErrorForm: TypeAlias = Literal["problem", "openai", "huggingface", "open-inference"]
"""The form of an error's body; `problem` is RFC 9457."""


class _Row(NamedTuple):
    path: str
    protocol: Protocol
    errors: ErrorForm


_ROOT: Final = _Row("/", "huggingface", "huggingface")
_OTHER: Final = _Row("", "other", "problem")
_TABLE: Final = (
    _Row("/v1/classify/batch", "batch", "problem"),
    _Row("/v1/classify", "own", "problem"),
    _Row("/v1/label-sets", "label-sets", "problem"),
    _Row("/v1/embeddings", "openai", "openai"),
    _Row("/v1/files", "jobs", "openai"),
    _Row("/v1/batches", "jobs", "openai"),
    _Row("/v1/models/", "operations", "openai"),
    _Row("/v1/models", "operations", "problem"),
    _Row("/v1/templates", "operations", "problem"),
    _Row("/models", "huggingface", "huggingface"),
    _Row("/v2/health", "operations", "open-inference"),
    _Row("/v2", "open-inference", "open-inference"),
    _Row("/livez", "operations", "problem"),
    _Row("/readyz", "operations", "problem"),
    _Row("/metrics", "operations", "problem"),
    _Row("/page", "operations", "problem"),
    _Row("/docs", "operations", "problem"),
    _Row("/openapi.json", "operations", "problem"),
    # Not served. OpenAI's clients ask for these, and show a message only from an error in their own form.
    _Row("/v1/assistants", "other", "openai"),
    _Row("/v1/audio", "other", "openai"),
    _Row("/v1/chat", "other", "openai"),
    _Row("/v1/completions", "other", "openai"),
    _Row("/v1/conversations", "other", "openai"),
    _Row("/v1/fine_tuning", "other", "openai"),
    _Row("/v1/images", "other", "openai"),
    _Row("/v1/moderations", "other", "openai"),
    _Row("/v1/responses", "other", "openai"),
    _Row("/v1/threads", "other", "openai"),
    _Row("/v1/uploads", "other", "openai"),
    _Row("/v1/vector_stores", "other", "openai"),
    _Row("/v1/videos", "other", "openai"),
)
"""A row covers its path and every path below it, one that ends in a slash only those below; the first match counts."""


def protocol_of(method: str, path: str) -> Protocol:
    """Return the protocol at `path`, for the metrics; a refused request has no route yet, so the path decides."""
    if path == "/" and method != "POST":
        return "operations"
    return _row(path).protocol


def error_form_of(path: str) -> ErrorForm:
    """Return the form of errors at `path`."""
    return _row(path).errors


def _row(path: str) -> _Row:
    if path == "/":
        return _ROOT
    return next(
        (row for row in _TABLE if path == row.path or path.startswith(f"{row.path.removesuffix('/')}/")), _OTHER
    )
