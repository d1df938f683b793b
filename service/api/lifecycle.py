"""The phases of the service from start to end, which probes and clients see."""

import time
from collections.abc import Callable
from enum import Enum

from service.errors import AnyclassError, NotReady


class Phase(Enum):
    """The phases in their order; a start that fails ends in `FAILED` in place of `READY`."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class Lifecycle:
    """Tracks the phase of one application; its lifespan and the server's signals change it.

    Attributes:
        reason: why the service is not ready, for people; empty when it is ready.
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
        """Return whether load balancers should send requests here."""
        return self.phase is Phase.READY

    @property
    def stopping(self) -> bool:
        """Return whether a stop was requested; accepted requests are still answered."""
        return self.phase is Phase.STOPPING

    def when_ready(self, callback: Callable[[float], None]) -> None:
        """Call `callback` in the event loop once the service is ready, with the seconds since its start."""
        self._on_ready.append(callback)

    def when_failed(self, callback: Callable[[Exception], None]) -> None:
        """Call `callback` in the event loop with the error if the start fails."""
        self._on_failed.append(callback)

    def when_stopped(self, callback: Callable[[], None]) -> None:
        """Call `callback` at every request to stop."""
        self._on_stop.append(callback)

    def loaded(self) -> None:
        """Become ready, unless the service is already stopping."""
        if self.phase is Phase.STARTING:
            self.phase, self.reason = Phase.READY, ""
            for callback in self._on_ready:
                callback(time.monotonic() - self._began)

    def failed(self, error: Exception) -> None:
        """Record that the start failed with `error`."""
        self.phase = Phase.FAILED
        self.reason = error.detail if isinstance(error, AnyclassError) else "the service could not start; see its log"
        for callback in self._on_failed:
            callback(error)

    def stop(self) -> None:
        """Record a request to stop; readiness fails from now on."""
        if self.phase is not Phase.FAILED:
            self.phase, self.reason = Phase.STOPPING, "the service is stopping"
            for callback in self._on_stop:
                callback()

    def require_ready(self) -> None:
        """Raise `NotReady` unless load balancers should send requests here."""
        if not self.ready:
            raise NotReady(f"Not ready: {self.reason}.")

    def require_loaded(self) -> None:
        """Raise `NotReady` unless requests can be answered, which they are while stopping too."""
        if self.phase not in (Phase.READY, Phase.STOPPING):
            raise NotReady(f"The service cannot answer yet: {self.reason}.")
