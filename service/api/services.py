"""The parts of an application that its routes use."""

from dataclasses import dataclass, field
from typing import TypeVar, cast

from starlette.requests import Request

from service.api.access.api_keys import ApiKeys
from service.api.access.rate_limit import Limiter
from service.api.lifecycle import Lifecycle, Phase
from service.api.route_table import RouteTable
from service.classification.classifier import Classifier
from service.classification.embedder import Embedder
from service.errors import NotReady
from service.images.fetching import ImageFetcher
from service.inference.registry import ModelRegistry
from service.jobs.use_cases import Jobs
from service.monitoring.metrics import Metrics
from service.settings import Settings

T = TypeVar("T")


@dataclass(slots=True)
class Services:
    """Holds the parts of one application. `ready_jobs` and those after it are None until the models are loaded.

    Attributes:
        archives: number of uploaded archives in work.
    """

    settings: Settings
    metrics: Metrics
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    api_keys: ApiKeys = field(default_factory=ApiKeys)
    routes: RouteTable = field(default_factory=RouteTable)
    limiter: Limiter | None = None
    image_fetcher: ImageFetcher | None = None
    archives: int = 0
    ready_jobs: Jobs | None = None
    registry: ModelRegistry | None = None
    ready_classifier: Classifier | None = None
    ready_embedder: Embedder | None = None

    @property
    def models(self) -> ModelRegistry:
        """Return the loaded models. Raises `NotReady` until they are loaded."""
        return self._loaded(self.registry)

    @property
    def classifier(self) -> Classifier:
        """Return the classifier. Raises `NotReady` until the models are loaded."""
        return self._loaded(self.ready_classifier)

    @property
    def embedder(self) -> Embedder:
        """Return the embedder. Raises `NotReady` until the models are loaded."""
        return self._loaded(self.ready_embedder)

    @property
    def jobs(self) -> Jobs:
        """Return the use cases of files and batch jobs. Raises `NotReady` until the models are loaded."""
        return self._loaded(self.ready_jobs)

    def require_loaded(self) -> None:
        """Raise `NotReady` until the models are loaded; for routes that check before they read the body."""
        self._loaded(self.ready_classifier)

    def require_alive(self) -> None:
        """Raise `NotReady` if only a restart helps: the start failed, or a device's scheduler died."""
        if self.lifecycle.phase is Phase.FAILED:
            raise NotReady(f"The service could not start: {self.lifecycle.reason}.")
        if self.registry is not None and not self.registry.healthy:
            raise NotReady("A device's scheduler has died; restart the process.")

    def _loaded(self, part: T | None) -> T:
        self.lifecycle.require_loaded()
        if part is None:
            raise NotReady("The service is stopping.")
        return part


def services_of(request: Request) -> Services:
    """Return the parts of the application that serves `request`."""
    return cast("Services", request.app.state.services)
