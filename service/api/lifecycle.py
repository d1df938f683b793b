"""Where the service stands between its start and its end, and what that means to probes and clients."""

import time
from collections.abc import Callable
from enum import Enum

from service.errors import AnyclassError, NotReady


class Phase(Enum):
    """The phases in their order; `FAILED` takes the place of `READY` when there is nothing to serve."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class Lifecycle:
    """The phase of one application, moved by its lifespan and by the server's signals.

    Attributes:
        phase: the phase now.
        reason: why the service is not ready, for people; empty when it is.
    """

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.reason = "the model is being loaded"
        self._began = time.monotonic()
        self._on_ready: list[Callable[[float], None]] = []
        self._on_failed: list[Callable[[Exception], None]] = []
        self._on_stop: list[Callable[[], None]] = []

    @property
    def ready(self) -> bool:
        """Whether load balancers should send requests here."""
        return self.phase is Phase.READY

    @property
    def stopping(self) -> bool:
        """Whether the end was asked for; accepted requests are still answered."""
        return self.phase is Phase.STOPPING

    def when_ready(self, callback: Callable[[float], None]) -> None:
        """Have `callback` told, in the event loop, how many seconds it took to be ready."""
        self._on_ready.append(callback)

    def when_failed(self, callback: Callable[[Exception], None]) -> None:
        """Have `callback` told, in the event loop, why the service will never be ready."""
        self._on_failed.append(callback)

    def when_stopped(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once the end was asked for, and again whenever it is."""
        self._on_stop.append(callback)

    def loaded(self) -> None:
        """Everything is loaded and warm. A service that is already stopping stays so."""
        if self.phase is Phase.STARTING:
            self.phase, self.reason = Phase.READY, ""
            for callback in self._on_ready:
                callback(time.monotonic() - self._began)

    def failed(self, error: Exception) -> None:
        """There is nothing to serve."""
        self.phase = Phase.FAILED
        self.reason = error.detail if isinstance(error, AnyclassError) else "the service could not start; see its log"
        for callback in self._on_failed:
            callback(error)

    def stop(self) -> None:
        """The end was asked for: readiness fails from now on."""
        if self.phase is not Phase.FAILED:
            self.phase, self.reason = Phase.STOPPING, "the service is stopping"
            for callback in self._on_stop:
                callback()

    def require_ready(self) -> None:
        """Raise `NotReady` unless load balancers should send requests here."""
        if not self.ready:
            raise NotReady(f"Not ready: {self.reason}.")

    def require_loaded(self) -> None:
        """Raise `NotReady` unless requests can be answered; while stopping they still can."""
        if self.phase not in (Phase.READY, Phase.STOPPING):
            raise NotReady(f"The service cannot answer yet: {self.reason}.")
