"""Hugging Face's zero-shot-image-classification pipeline over HTTP."""

from typing import Final

from service.api.huggingface import routes
from service.api.huggingface.schemas import ZeroShotRequest

ROUTERS: Final = (routes.router,)
REQUEST_MODELS: Final = (ZeroShotRequest,)
"""Models to which routes refer by name in the OpenAPI document."""
