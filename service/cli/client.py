"""The command line's other side: classify over HTTP, against a running service."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from service.classifier import Classification, LabelQuery, Prediction, ScoringOptions

_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
_ABOUT_THE_IMAGE: Final = (":invalid-image", ":unsupported-image-format", ":payload-too-large")
"""Endings of the problem types that another image of the same request need not share."""


class RemoteError(Exception):
    """The service did not classify. The text says why, for people.

    Attributes:
        image_at_fault: whether another image may fare better.
        request_at_fault: whether no image can fare better with the same labels and options.
    """

    def __init__(self, message: str, *, image_at_fault: bool = False, request_at_fault: bool = False) -> None:
        super().__init__(message)
        self.image_at_fault = image_at_fault
        self.request_at_fault = request_at_fault


@dataclass(frozen=True, slots=True)
class _Fields:
    query: LabelQuery
    options: ScoringOptions
    model: str | None

    def json_fields(self) -> dict[str, Any]:
        """The request's fields that differ from their defaults."""
        templates = self.query.templates
        fields: dict[str, Any] = {
            "labels": list(self.query.labels),
            "templates": templates if isinstance(templates, str) else list(templates),
            "scoring": self.options.method,
            "top_k": self.options.top_k,
            "min_score": self.options.min_score,
            "temperature": self.options.temperature,
            "model": self.model,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def form(self) -> Iterator[tuple[str, str]]:
        """The same as a form's fields."""
        for name, value in self.json_fields().items():
            yield name, json.dumps(value) if isinstance(value, list) else str(value)


class RemoteClassifier:
    """A service at a base URL such as ``http://127.0.0.1:8000``. Use as a context manager."""

    def __init__(self, url: str) -> None:
        """Raises `RemoteError` for what is not a URL."""
        self._url = url.rstrip("/")
        try:
            self._http = httpx.Client(base_url=self._url, timeout=_TIMEOUT)
        except httpx.InvalidURL as exc:
            raise RemoteError(f"{self._url} is not a URL of a service.") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def classify(
        self, image: Path, query: LabelQuery, options: ScoringOptions, *, model: str | None = None
    ) -> Classification:
        """Classify an image file. Raises `RemoteError`, and `OSError` for a file that cannot be read."""
        data = image.read_bytes()
        fields = dict(_Fields(query, options, model).form())
        try:
            answer = self._http.post("/v1/classify", data=fields, files={"image": (image.name, data)})
        except httpx.UnsupportedProtocol as exc:
            raise RemoteError(f"{self._url} is not a URL of a service; it begins with http:// or https://.") from exc
        except httpx.TimeoutException as exc:
            raise RemoteError(f"The service at {self._url} did not answer in time.") from exc
        except httpx.HTTPError as exc:
            raise RemoteError(f"No service answers at {self._url}: {exc}") from exc
        if not answer.is_success:
            raise _refusal(answer)
        return _classification(answer)


def _refusal(answer: httpx.Response) -> RemoteError:
    """What the problem says, or the status of an answer that is none of ours."""
    try:
        problem = answer.json()
        detail, kind = str(problem["detail"]), str(problem["type"])
    except (ValueError, KeyError, TypeError):
        status = f"{answer.status_code} {answer.reason_phrase}"
        return RemoteError(f"The server answered {status}; it does not look like this service.")
    about_image = kind.endswith(_ABOUT_THE_IMAGE)
    return RemoteError(detail, image_at_fault=about_image, request_at_fault=answer.is_client_error and not about_image)


def _classification(answer: httpx.Response) -> Classification:
    try:
        body = answer.json()
        return Classification(
            model=body["model"],
            revision=body["revision"],
            predictions=tuple(Prediction(each["label"], each["score"]) for each in body["predictions"]),
            labels=body["usage"]["labels"],
            labels_cached=body["usage"]["labels_cached"],
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise RemoteError("The server's answer is not a classification; it does not look like this service.") from exc
