"""Client of a running service over HTTP, with retries while it is busy."""

import email.utils
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

import httpx

from service.cli.remote.backoff import AdaptiveLimit
from service.installation import VERSION

_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
_IMAGE_PROBLEMS: Final = ("invalid-image", "image-not-fetched", "unsupported-image-format", "payload-too-large")
"""Problems of one image; others may still be classified."""
_SINGLE_FAILURES: Final = ("internal", "inference-failed", "non-finite-output")
"""Failures of the service that need not affect other images."""
_BUSY: Final = (429, 502, 503, 504)
"""Busy, starting, stopping, or a proxy that cannot reach the service at the moment."""
_NOTIFY_AFTER_S: Final = 3.0
"""Shorter waits go unnoticed."""
_COMPUTING: Final = "label-set-computing"
_UNKNOWN_SET: Final = "unknown-label-set"
_PROBLEM: Final = "urn:anyclass:problem:"
_STATE_STATUSES: Final = (408, 409, 412, 429)
"""Client errors about the state of the service, not about the request."""
_KEY: Final = re.compile(r"[!-~]+")
_UNAUTHORIZED: Final = 401


class RemoteError(Exception):
    """The service did not fulfil a request. The text is for people.

    Attributes:
        image_at_fault: whether other images may still be classified.
        exit_code: of the command: 2 if the request is at fault, else 1.
        status: HTTP status of the answer, if any.
        problem: the service's own problem (RFC 9457), empty if the answer has none.
    """

    def __init__(
        self,
        message: str,
        *,
        image_at_fault: bool = False,
        exit_code: int = 1,
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.image_at_fault = image_at_fault
        self.exit_code = exit_code
        self.status = status
        self.problem = problem or {}


class Service:
    """Client of the service at a base URL such as ``http://127.0.0.1:8000``. Use once, as an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        in_flight: int = 1,
        retry_for_s: float = 60.0,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`on_wait` is called once, with a sentence, when the service keeps refusing and the client retries.

        Raises `RemoteError` for an invalid URL or key.
        """
        self.url = url.rstrip("/")
        self._retry_for_s = retry_for_s
        self._on_wait = on_wait
        self._notified = False
        self._limit = AdaptiveLimit(in_flight, retry_for_s=retry_for_s)
        headers = {"user-agent": f"anyclass/{VERSION}"}
        if api_key:
            if not _KEY.fullmatch(api_key):
                raise RemoteError(
                    "The API key is invalid: it must have printable ASCII characters only, and no spaces.", exit_code=2
                )
            headers["authorization"] = f"Bearer {api_key}"
        if not self.url.lower().startswith(("http://", "https://")):
            raise RemoteError(f"{url} is not a service URL: it must begin with http:// or https://.", exit_code=2)
        try:
            self._http = httpx.AsyncClient(
                base_url=self.url,
                timeout=_TIMEOUT,
                headers=headers,
                limits=httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight),
            )
        except httpx.InvalidURL as exc:
            raise RemoteError(f"{self.url} is not a service URL.", exit_code=2) from exc

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def send(
        self,
        method: str,
        path: str,
        *,
        position: int = 0,
        make_body: Callable[[], AsyncIterator[bytes]] | None = None,
        stream: bool = False,
        **request: Any,  # noqa: ANN401 - httpx' own
    ) -> httpx.Response:
        """Send a request, retry while the service is busy, and return a successful answer.

        Args:
            path: below the base URL.
            position: the lowest is sent first if several requests wait.
            make_body: called for each attempt.
            stream: leave the body of a successful answer unread; the caller closes it.
            request: as `httpx.AsyncClient.build_request` takes it.

        Raises: `RemoteError`.
        """
        while True:
            await self._limit.acquire(position)
            body: dict[str, Any] = {} if make_body is None else {"content": make_body()}
            try:
                answer = await self._http.send(self._http.build_request(method, path, **request, **body), stream=stream)
                if not answer.is_success:
                    await answer.aread()
            except httpx.TransportError as exc:
                # A service that has answered before may be restarting; one that never has is taken to be absent.
                if not self._limit.ever_answered:
                    self._limit.release()
                    raise self._unreachable(exc) from exc
                if not self._limit.record_refusal(None):
                    raise self._unreachable(exc) from exc
                self._notify_wait(str(self._unreachable(exc)))
                continue
            except BaseException:
                self._limit.release()
                raise
            if answer.is_success or not _is_busy(answer):
                self._limit.record_answer()
                if not answer.is_success:
                    raise _refusal(answer)
                return answer
            if not self._limit.record_refusal(retry_after_s(answer.headers)):
                raise self._out_of_time(answer)
            self._notify_wait(str(_refusal(answer)))

    async def json(self, method: str, path: str, members: Sequence[str], **request: Any) -> dict[str, Any]:  # noqa: ANN401 - as `send`
        """Send a request as `send` does, and return the JSON object of the answer, which must have `members`."""
        found = document(await self.send(method, path, **request))
        if not isinstance(found, dict) or any(name not in found for name in members):
            raise RemoteError("The server's answer lacks required fields; it does not look like an anyclass service.")
        return found

    @asynccontextmanager
    async def download(self, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Stream the content at `path`. Raises `RemoteError`, also if the stream breaks off."""
        answer = await self.send("GET", path, stream=True)
        try:
            yield answer.aiter_bytes()
        except httpx.TransportError as exc:
            raise self._unreachable(exc) from exc
        finally:
            await answer.aclose()

    def _notify_wait(self, why: str) -> None:
        """Call `on_wait` once, and not for a short wait."""
        if not self._notified and self._limit.stalled_s >= _NOTIFY_AFTER_S:
            self._notified = True
            self._on_wait(f"{why} Retrying for up to {self._retry_for_s:g} s (--retry-for).")

    def _unreachable(self, error: httpx.TransportError) -> RemoteError:
        match error:
            case httpx.ConnectTimeout() | httpx.ConnectError():
                return RemoteError(
                    f"No service answers at {self.url}: {str(error) or 'the connection was not accepted'}"
                )
            case httpx.TimeoutException():
                return RemoteError(f"The service at {self.url} did not answer in time.")
            case _:
                return RemoteError(f"The connection to {self.url} broke: {str(error) or type(error).__name__}")

    def _out_of_time(self, answer: httpx.Response) -> RemoteError:
        refusal = _refusal(answer)
        asked = retry_after_s(answer.headers)
        if asked is not None and asked > self._retry_for_s:
            how = f"the service asks to retry in {asked:.0f} s; --retry-for allows {self._retry_for_s:g} s"
        else:
            how = f"gave up after {self._retry_for_s:g} s of retries (--retry-for)"
        return RemoteError(f"{refusal} ({how})", status=answer.status_code)


def document(answer: httpx.Response) -> Any:  # noqa: ANN401 - any JSON
    """Return the JSON of an answer. Raises `RemoteError` if it is not JSON."""
    try:
        return answer.json()
    except ValueError as exc:
        raise RemoteError("The server's answer is not JSON; it does not look like an anyclass service.") from exc


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of the header `Retry-After`: a number, or a date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _is_busy(answer: httpx.Response) -> bool:
    if answer.headers.get("x-should-retry") == "false":
        return False
    return answer.status_code in _BUSY or _problem(answer)[1] == _COMPUTING


def _problem(answer: httpx.Response) -> tuple[str | None, str | None]:
    """Return the detail and the type of a problem in the service's own form or OpenAI's; None if it is neither."""
    try:
        content = answer.json()
        if "error" in content:
            return str(content["error"]["message"]), str(content["error"]["code"]).replace("_", "-")
        if str(content["type"]).startswith(_PROBLEM):
            return str(content["detail"]), str(content["type"]).removeprefix(_PROBLEM)
    except (ValueError, KeyError, TypeError):
        pass
    return None, None


def _refusal(answer: httpx.Response) -> RemoteError:
    """Make the error from the problem's detail, or from the status if the answer is not from this service."""
    detail, kind = _problem(answer)
    code = answer.status_code
    if detail is None:
        status = f"{code} {answer.reason_phrase}".strip()
        if code in _BUSY:
            return RemoteError(f"The server answered {status}.", status=code)
        return RemoteError(f"The server answered {status}; it does not look like an anyclass service.", status=code)
    if code == _UNAUTHORIZED:
        detail += " Give this command a key with --api-key or the variable ANYCLASS_API_KEY."
    elif kind == _UNKNOWN_SET:
        # The detail of the service names its route, not this command.
        detail = "No label set has this name; list them: anyclass label-sets list"
    about_image = kind in _IMAGE_PROBLEMS or kind in _SINGLE_FAILURES
    wrong = answer.is_client_error and not about_image and code not in _STATE_STATUSES
    problem = answer.json() if about_image else {}
    return RemoteError(detail, image_at_fault=about_image, exit_code=2 if wrong else 1, status=code, problem=problem)
