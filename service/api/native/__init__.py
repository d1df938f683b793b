"""The service's own protocol: classification, label sets, operations."""

from typing import Final

from service.api.native import classify, classify_batch, label_sets, operations
from service.api.native.label_set_schemas import LabelSetIn

ROUTERS: Final = (classify.router, classify_batch.router, operations.router, label_sets.router)
REQUEST_MODELS: Final = (LabelSetIn,)
"""Models to which routes refer by name in the OpenAPI document."""
