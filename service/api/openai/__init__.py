"""OpenAI's protocol: embeddings, files, batches."""

from typing import Final

from service.api.openai import batches, embeddings, files
from service.api.openai.embeddings import EmbeddingsRequest
from service.api.openai.schemas import BatchRequest

ROUTERS: Final = (files.router, batches.router, embeddings.router)
REQUEST_MODELS: Final = (BatchRequest, EmbeddingsRequest)
"""Models to which routes refer by name in the OpenAPI document."""
