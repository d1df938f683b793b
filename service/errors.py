"""Every exception the service raises on purpose.

* AnyclassError
  * InvalidRequest
    · InvalidLabels
    · InvalidTemplates
    · InvalidScoring
    · PromptTooLong
    · InvalidImage
  * UnsupportedImageFormat
  * PayloadTooLarge
  * TooManyLabels
  * MalformedRequest
  * UnknownModel
  * Overloaded
  * NotReady
  * DeadlineExceeded
  * InferenceFailed
    · NonFiniteOutput
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


class Overloaded(AnyclassError):
    """Too much work is waiting already; nothing of this request was begun.

    Attributes:
        retry_after_s: seconds after which a new attempt is likely to be accepted.
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


class BundleError(AnyclassError):
    """A model bundle that must not be served; the detail begins with the file that is at fault."""


class ProviderUnavailable(AnyclassError):
    """The execution provider that was asked for is not there; the detail says what to install."""


class ConfigurationError(AnyclassError):
    """Settings that contradict each other or cannot be met."""
