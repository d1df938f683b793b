"""Which of the protocols that the service speaks a request belongs to: one table, for the metrics."""

from typing import Final, Literal, TypeAlias

Protocol: TypeAlias = Literal[
    "own", "batch", "label-sets", "huggingface", "openai", "open-inference", "jobs", "operations", "other"
]

_PREFIXES: Final[tuple[tuple[str, Protocol], ...]] = (
    ("/v1/classify/batch", "batch"),
    ("/v1/classify", "own"),
    ("/v1/label-sets", "label-sets"),
    ("/v1/embeddings", "openai"),
    ("/v1/files", "jobs"),
    ("/v1/batches", "jobs"),
    ("/models", "huggingface"),
    ("/v2/health", "operations"),
    ("/v2", "open-inference"),
    ("/v1/models", "operations"),
    ("/v1/templates", "operations"),
    ("/livez", "operations"),
    ("/readyz", "operations"),
    ("/metrics", "operations"),
    ("/docs", "operations"),
    ("/openapi.json", "operations"),
)
"""The first that fits counts."""


def protocol_of(method: str, path: str) -> Protocol:
    """The protocol spoken at `path`, whether there is anything or not; a request that was refused has no route yet."""
    if path == "/":
        return "huggingface" if method == "POST" else "operations"
    return next((name for at, name in _PREFIXES if path == at or path.startswith(f"{at}/")), "other")
