"""The table from a path to its protocol and its form of errors."""

import pytest

from service.api.protocols import ErrorForm, Protocol, error_form_of, protocol_of


@pytest.mark.parametrize(
    ("path", "protocol", "form"),
    [
        ("/", "huggingface", "huggingface"),
        ("", "other", "problem"),
        ("//", "other", "problem"),
        ("/x", "other", "problem"),
        ("/x/v2", "other", "problem"),
        ("/v1", "other", "problem"),
        ("/v1/classify", "own", "problem"),
        ("/v1/classify/", "own", "problem"),
        ("/v1/classify/batch", "batch", "problem"),
        ("/v1/classify/batchx", "own", "problem"),
        ("/v1/classifyx", "other", "problem"),
        ("/v1/label-sets", "label-sets", "problem"),
        ("/v1/label-sets/animals", "label-sets", "problem"),
        ("/v1/embeddings", "openai", "openai"),
        ("/v1/embeddings/", "openai", "openai"),
        ("/v1/embeddingsx", "other", "problem"),
        ("/v1/files", "jobs", "openai"),
        ("/v1/files/file-1/content", "jobs", "openai"),
        ("/v1/batches", "jobs", "openai"),
        ("/v1/batches/batch_1/cancel", "jobs", "openai"),
        ("/v1/models", "operations", "problem"),
        ("/v1/models/", "operations", "openai"),
        ("/v1/models/demo", "operations", "openai"),
        ("/v1/models/openai/clip", "operations", "openai"),
        ("/v1/modelsx", "other", "problem"),
        ("/v1/templates", "operations", "problem"),
        ("/v1/chat", "other", "openai"),
        ("/v1/chat/completions", "other", "openai"),
        ("/v1/chatx", "other", "problem"),
        ("/v1/completions", "other", "openai"),
        ("/v1/assistants/a", "other", "openai"),
        ("/v1/audio/speech", "other", "openai"),
        ("/v1/conversations", "other", "openai"),
        ("/v1/fine_tuning/jobs", "other", "openai"),
        ("/v1/images/edits", "other", "openai"),
        ("/v1/moderations", "other", "openai"),
        ("/v1/responses", "other", "openai"),
        ("/v1/threads/t/runs", "other", "openai"),
        ("/v1/uploads", "other", "openai"),
        ("/v1/vector_stores", "other", "openai"),
        ("/v1/videos", "other", "openai"),
        ("/models", "huggingface", "huggingface"),
        ("/models/openai/clip", "huggingface", "huggingface"),
        ("/modelsx", "other", "problem"),
        ("/v2", "open-inference", "open-inference"),
        ("/v2/", "open-inference", "open-inference"),
        ("/v2x", "other", "problem"),
        ("/v2/models/demo/infer", "open-inference", "open-inference"),
        ("/v2/health", "operations", "open-inference"),
        ("/v2/health/live", "operations", "open-inference"),
        ("/v2/healthy", "open-inference", "open-inference"),
        ("/livez", "operations", "problem"),
        ("/readyz", "operations", "problem"),
        ("/metrics", "operations", "problem"),
        ("/page/page.js", "operations", "problem"),
        ("/docs", "operations", "problem"),
        ("/docs/assets/favicon.png", "operations", "problem"),
        ("/openapi.json", "operations", "problem"),
    ],
)
def test_the_protocol_and_the_form_of_a_path(path: str, protocol: Protocol, form: ErrorForm) -> None:
    """A row of the table matches whole segments, and the first match counts."""
    assert (protocol, form) == (protocol_of("POST", path), error_form_of(path))


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "other"])
def test_the_root_is_a_protocol_for_post_only(method: str) -> None:
    """GET / is the page for people, though an error at / keeps the form."""
    assert "operations" == protocol_of(method, "/")
    assert "own" == protocol_of(method, "/v1/classify")
