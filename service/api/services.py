"""What the routes work with, held by the application and handed to each of them."""

from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request

from service.api.lifecycle import Lifecycle
from service.classifier import Classifier
from service.errors import NotReady
from service.metrics import Metrics
from service.models import ModelRegistry
from service.settings import Settings


@dataclass(slots=True)
class Services:
    """One application's parts. The last two are there as soon as the models are loaded."""

    settings: Settings
    metrics: Metrics
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    registry: ModelRegistry | None = None
    ready_classifier: Classifier | None = None

    @property
    def models(self) -> ModelRegistry:
        """The loaded models. Raises `NotReady` before they are."""
        self.lifecycle.require_loaded()
        if self.registry is None:
            raise NotReady("The service is stopping.")
        return self.registry

    @property
    def classifier(self) -> Classifier:
        """The use case. Raises `NotReady` before the models are loaded."""
        self.lifecycle.require_loaded()
        if self.ready_classifier is None:
            raise NotReady("The service is stopping.")
        return self.ready_classifier


def services_of(request: Request) -> Services:
    """The parts of the application that serves `request`."""
    return cast("Services", request.app.state.services)
