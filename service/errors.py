"""Exceptions that the service raises intentionally.

* AnyclassError
  * InvalidRequest
    · InvalidLabels
    · InvalidTemplates
    · InvalidScoring
    · PromptTooLong
    · InvalidImage
      · ImageNotFetched
    · InvalidLine
  * UnsupportedImageFormat
  * PayloadTooLarge
  * TooManyLabels
  * MalformedRequest
  * UnknownModel
  * UnknownLabelSet
  * LabelSetComputing
  * LabelSetFailed
  * VersionMismatch
  * StateFull
  * UnknownObject
  * Conflict
  * StateUnavailable
  * StateCorrupt
  * Overloaded
  * Unauthorized
  * RateLimited
  * NotReady
  * DeadlineExceeded
  * InferenceFailed
    · NonFiniteOutput
    · DeviceOutOfMemory
    · DeviceLost
  * BundleError
  * ProviderUnavailable
  * ConfigurationError

The last three occur while the service starts, all others while it answers. Each protocol maps exceptions to its own
answers in a table of `service.api.problems`; this module knows no HTTP.
"""
# ruff: noqa: N818 - named after the event; only the base and start-up errors end in Error


class AnyclassError(Exception):
    """Base of all errors of this project.

    Attributes:
        detail: one sentence for clients that says what to do. It never quotes an internal message; a foreign
            exception is the `__cause__`.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequest(AnyclassError):
    """The request is well-formed but cannot be fulfilled as it is."""


class InvalidLabels(InvalidRequest):
    """Labels are missing, empty, repeated, too long or not text."""


class InvalidTemplates(InvalidRequest):
    """A template set is unknown or empty, or a template has not exactly one `{}`."""


class InvalidScoring(InvalidRequest):
    """A scoring method, temperature, `top_k` or `min_score` is invalid for the model."""


class PromptTooLong(InvalidRequest):
    """A template filled with a label has more tokens than the text encoder's context.

    Attributes:
        index: position of the first such text among the encoded texts, if known.
    """

    def __init__(self, detail: str, *, index: int | None = None) -> None:
        super().__init__(detail)
        self.index = index


class InvalidImage(InvalidRequest):
    """An image of an accepted format is corrupt, truncated or has too many pixels."""


class ImageNotFetched(InvalidImage):
    """An image URL is forbidden or yields no image."""


class InvalidLine(InvalidRequest):
    """A line of a batch job's file is not a request.

    Attributes:
        code: a stable identifier.
        param: the field at fault, if known.
    """

    def __init__(self, code: str, detail: str, param: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.param = param


class UnsupportedImageFormat(AnyclassError):
    """The bytes are not an image of an accepted format."""


class PayloadTooLarge(AnyclassError):
    """The payload exceeds the limit in bytes."""


class TooManyLabels(AnyclassError):
    """The number of labels exceeds the limit."""


class MalformedRequest(AnyclassError):
    """The request cannot be parsed."""


class UnknownModel(AnyclassError):
    """No served model has this name or alias."""


class UnknownLabelSet(AnyclassError):
    """No stored label set has this name."""


class LabelSetComputing(AnyclassError):
    """Class vectors of a label set are still being computed.

    Attributes:
        retry_after_s: seconds after which they may be ready.
    """

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class LabelSetFailed(AnyclassError):
    """The class vectors of a label set could not be computed; the set must be written again."""


class VersionMismatch(AnyclassError):
    """The object to change does not have the version that the client named."""


class UnknownObject(AnyclassError):
    """No stored file or batch job has this id."""


class Conflict(AnyclassError):
    """The request conflicts with the current state."""


class StateFull(AnyclassError):
    """The limit for stored objects of one kind is reached, in number or in bytes."""


class StateUnavailable(AnyclassError):
    """The durable state cannot be read or written at the moment.

    Attributes:
        lasting: whether it has been unavailable since the start, which makes retries useless.
    """

    def __init__(self, detail: str, *, lasting: bool = False) -> None:
        super().__init__(detail)
        self.lasting = lasting


class StateCorrupt(AnyclassError):
    """An entry of the durable state is not as this service wrote it; the detail names the entry."""


class Overloaded(AnyclassError):
    """Too much work is waiting; no work on this request has started.

    Attributes:
        retry_after_s: seconds after which a retry is likely to be accepted.
    """

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unauthorized(AnyclassError):
    """The request has no valid API key.

    Attributes:
        presented: whether it had any key.
    """

    def __init__(self, detail: str, *, presented: bool = False) -> None:
        super().__init__(detail)
        self.presented = presented


class RateLimited(AnyclassError):
    """The client exceeds its rate limit.

    Attributes:
        retry_after_s: seconds after which its next request may be accepted.
    """

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class NotReady(AnyclassError):
    """The service is starting or stopping."""


class DeadlineExceeded(AnyclassError):
    """The request exceeded the service's time limit."""


class InferenceFailed(AnyclassError):
    """The model failed on an input that passed every check."""


class NonFiniteOutput(InferenceFailed):
    """The model returned NaN or infinity."""


class DeviceOutOfMemory(InferenceFailed):
    """The device currently lacks the memory for a batch of this size."""


class DeviceLost(InferenceFailed):
    """The device fails until the process restarts."""


class BundleError(AnyclassError):
    """A model bundle is invalid; the detail begins with the file at fault."""


class ProviderUnavailable(AnyclassError):
    """The requested execution provider is missing; the detail says what to install."""


class ConfigurationError(AnyclassError):
    """Settings contradict each other or cannot be met."""
