"""Every exception the service raises on purpose.

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

The last three happen while the service starts, all others while it answers. What an exception means to
a client of one protocol or another is the business of that protocol's table; nothing here knows of it.
"""
# ruff: noqa: N818 - named after what happened, as the table above reads; only the base and start-up ones end in Error


class AnyclassError(Exception):
    """Base of all errors of this project.

    Attributes:
        detail: one sentence that is safe to show to a client and says what to do about it. It never quotes
            an internal message; the foreign exception, where there is one, is the `__cause__`.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequest(AnyclassError):
    """The request was understood and cannot be fulfilled as it is."""


class InvalidLabels(InvalidRequest):
    """Labels that are missing, empty, repeated, too long or not text."""


class InvalidTemplates(InvalidRequest):
    """A template set that is unknown or empty, or a template without exactly one `{}`."""


class InvalidScoring(InvalidRequest):
    """A scoring method, temperature, `top_k` or `min_score` that the model cannot serve."""


class PromptTooLong(InvalidRequest):
    """A template filled with a label has more tokens than the text encoder's context.

    Attributes:
        index: position of the first such text among the texts that were encoded, where it is known.
    """

    def __init__(self, detail: str, *, index: int | None = None) -> None:
        super().__init__(detail)
        self.index = index


class InvalidImage(InvalidRequest):
    """Bytes of an accepted format that are corrupt, truncated or hold too many pixels."""


class ImageNotFetched(InvalidImage):
    """An image URL that must not be fetched, or that gave no image."""


class InvalidLine(InvalidRequest):
    """A line of a batch job's file that is not a request.

    Attributes:
        code: a word that never changes.
        param: the field at fault, where it is known.
    """

    def __init__(self, code: str, detail: str, param: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.param = param


class UnsupportedImageFormat(AnyclassError):
    """Bytes that are not an image of any accepted format."""


class PayloadTooLarge(AnyclassError):
    """More bytes than the limit."""


class TooManyLabels(AnyclassError):
    """More labels than the limit."""


class MalformedRequest(AnyclassError):
    """A request that cannot be parsed at all."""


class UnknownModel(AnyclassError):
    """No model is served under that name or alias."""


class UnknownLabelSet(AnyclassError):
    """No label set of that name is kept."""


class LabelSetComputing(AnyclassError):
    """The class vectors of a label set are not all there yet.

    Attributes:
        retry_after_s: seconds after which they may be.
    """

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class LabelSetFailed(AnyclassError):
    """The class vectors of a label set could not be computed, and will not be until it is written again."""


class VersionMismatch(AnyclassError):
    """What was to be changed is not, or no longer, in the version that the client named."""


class UnknownObject(AnyclassError):
    """No file or batch job of that id is kept."""


class Conflict(AnyclassError):
    """What is asked for does not go together with what is there already."""


class StateFull(AnyclassError):
    """As much of one kind is kept already as may be, by number or by bytes."""


class StateUnavailable(AnyclassError):
    """The durable state cannot be read or written at the moment.

    Attributes:
        lasting: whether it never could since the start, so that trying again is of no use.
    """

    def __init__(self, detail: str, *, lasting: bool = False) -> None:
        super().__init__(detail)
        self.lasting = lasting


class StateCorrupt(AnyclassError):
    """An entry of the durable state that was not written by this service as it stands; the detail names it."""


class Overloaded(AnyclassError):
    """Too much work is waiting already; nothing of this request was begun.

    Attributes:
        retry_after_s: seconds after which a new attempt is likely to be accepted.
    """

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unauthorized(AnyclassError):
    """A request without a valid API key.

    Attributes:
        presented: whether it had a key at all.
    """

    def __init__(self, detail: str, *, presented: bool = False) -> None:
        super().__init__(detail)
        self.presented = presented


class RateLimited(AnyclassError):
    """A client that asks more often than it may.

    Attributes:
        retry_after_s: seconds after which its next request may pass.
    """

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class NotReady(AnyclassError):
    """The service is still starting, or already stopping."""


class DeadlineExceeded(AnyclassError):
    """The service's own time limit for a request ran out."""


class InferenceFailed(AnyclassError):
    """The model could not be run on an input that passed every check."""


class NonFiniteOutput(InferenceFailed):
    """The model answered NaN or infinity."""


class DeviceOutOfMemory(InferenceFailed):
    """The device has too little memory for a batch of this size at this moment."""


class DeviceLost(InferenceFailed):
    """The device answers nothing any more until the process is started anew."""


class BundleError(AnyclassError):
    """A model bundle that must not be served; the detail begins with the file that is at fault."""


class ProviderUnavailable(AnyclassError):
    """The execution provider that was asked for is not there; the detail says what to install."""


class ConfigurationError(AnyclassError):
    """Settings that contradict each other or cannot be met."""
