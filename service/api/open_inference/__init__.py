"""The Open Inference Protocol (v2) of KServe and Triton."""

from typing import Final

from service.api.open_inference import routes
from service.api.open_inference.schemas import InferRequest

ROUTERS: Final = (routes.router,)
REQUEST_MODELS: Final = (InferRequest,)
"""Models to which routes refer by name in the OpenAPI document."""
