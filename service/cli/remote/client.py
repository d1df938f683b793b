"""The command line's other side: a service over HTTP, asked politely."""

import email.utils
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

import httpx

from service.cli.remote.backoff import Turns
from service.installation import VERSION

_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
_ABOUT_THE_IMAGE: Final = ("invalid-image", "image-not-fetched", "unsupported-image-format", "payload-too-large")
"""Problems that another image of the same request need not share."""
_OF_ITS_OWN: Final = ("internal", "inference-failed", "non-finite-output")
"""Failures of the service at one image, after which others may well be answered."""
_BUSY: Final = (429, 502, 503, 504)
"""Too busy, starting, stopping, or a proxy that finds no service for the moment."""
_NOTICED_S: Final = 3.0
"""A wait from which on people wonder what goes on."""
_COMPUTING: Final = "label-set-computing"
_UNKNOWN_SET: Final = "unknown-label-set"
_PROBLEM: Final = "urn:anyclass:problem:"
_NOT_THE_REQUEST: Final = (408, 409, 412, 429)
"""Client errors that say how things stand, not that the request is wrong."""
_KEY: Final = re.compile(r"[!-~]+")
_UNAUTHORIZED: Final = 401


class RemoteError(Exception):
    """The service did not do what was asked. The text says why, for people.

    Attributes:
        image_at_fault: whether another image may fare better.
        exit_code: what the command ends with: 2 where the request is at fault, else 1.
        status: of the answer, where there is one.
    """

    def __init__(
        self, message: str, *, image_at_fault: bool = False, exit_code: int = 1, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.image_at_fault = image_at_fault
        self.exit_code = exit_code
        self.status = status


class Service:
    """A service at a base URL such as ``http://127.0.0.1:8000``. Use as an async context manager, once."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        in_flight: int = 1,
        retry_for_s: float = 60.0,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`tell` gets a sentence, once, when the service keeps refusing and is asked again.

        Raises `RemoteError` for what is not a URL, or cannot be a key.
        """
        self.url = url.rstrip("/")
        self._retry_for_s = retry_for_s
        self._tell = tell
        self._told = False
        self._turns = Turns(in_flight, patience_s=retry_for_s)
        headers = {"user-agent": f"anyclass/{VERSION}"}
        if api_key:
            if not _KEY.fullmatch(api_key):
                raise RemoteError("An API key has printable ASCII characters only, and no spaces.", exit_code=2)
            headers["authorization"] = f"Bearer {api_key}"
        if not self.url.lower().startswith(("http://", "https://")):
            raise RemoteError(f"{url} is not a URL of a service; it begins with http:// or https://.", exit_code=2)
        try:
            self._http = httpx.AsyncClient(
                base_url=self.url,
                timeout=_TIMEOUT,
                headers=headers,
                limits=httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight),
            )
        except httpx.InvalidURL as exc:
            raise RemoteError(f"{self.url} is not a URL of a service.", exit_code=2) from exc

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
        place: int = 0,
        fresh: Callable[[], AsyncIterator[bytes]] | None = None,
        stream: bool = False,
        **request: Any,  # noqa: ANN401 - httpx' own
    ) -> httpx.Response:
        """Send a request, again where the service is too busy, and give the answer if it is one of success.

        Args:
            method: of HTTP.
            path: below the base URL.
            place: whoever has the lowest goes first where several wait for a turn.
            fresh: makes the body anew for each attempt.
            stream: leave the content of an answer of success unread; the caller closes it.
            request: as `httpx.AsyncClient.build_request` takes it.

        Raises: `RemoteError`.
        """
        while True:
            await self._turns.take(place)
            body: dict[str, Any] = {} if fresh is None else {"content": fresh()}
            try:
                answer = await self._http.send(self._http.build_request(method, path, **request, **body), stream=stream)
                if not answer.is_success:
                    await answer.aread()
            except httpx.TransportError as exc:
                # A service that has answered before may be starting anew; one that never has is not there.
                if not self._turns.ever_answered:
                    self._turns.dropped()
                    raise self._unreachable(exc) from exc
                if not self._turns.refused(None):
                    raise self._unreachable(exc) from exc
                self._say_that_it_waits(str(self._unreachable(exc)))
                continue
            except BaseException:
                self._turns.dropped()
                raise
            if answer.is_success or not _is_busy(answer):
                self._turns.answered()
                if not answer.is_success:
                    raise _refusal(answer)
                return answer
            if not self._turns.refused(retry_after_s(answer.headers)):
                raise self._given_up(answer)
            self._say_that_it_waits(str(_refusal(answer)))

    async def json(self, method: str, path: str, members: Sequence[str], **request: Any) -> dict[str, Any]:  # noqa: ANN401 - as `send`
        """As `send`, and the JSON object of the answer, which has these `members` at least."""
        found = document(await self.send(method, path, **request))
        if not isinstance(found, dict) or any(name not in found for name in members):
            raise RemoteError("The server's answer is not what was asked for; it does not look like this service.")
        return found

    @asynccontextmanager
    async def download(self, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The content at `path`, a piece at a time. Raises `RemoteError`, also where it breaks off."""
        answer = await self.send("GET", path, stream=True)
        try:
            yield answer.aiter_bytes()
        except httpx.TransportError as exc:
            raise self._unreachable(exc) from exc
        finally:
            await answer.aclose()

    def _say_that_it_waits(self, why: str) -> None:
        """Once, and not for a pause that nobody notices."""
        if not self._told and self._turns.stalled_s >= _NOTICED_S:
            self._told = True
            self._tell(f"{why} Asking again for {self._retry_for_s:g} s at most (--retry-for).")

    def _unreachable(self, error: httpx.TransportError) -> RemoteError:
        match error:
            case httpx.ConnectTimeout() | httpx.ConnectError():
                return RemoteError(
                    f"No service answers at {self.url}: {str(error) or 'it does not take the connection'}"
                )
            case httpx.TimeoutException():
                return RemoteError(f"The service at {self.url} did not answer in time.")
            case _:
                return RemoteError(f"The connection to {self.url} broke: {str(error) or type(error).__name__}")

    def _given_up(self, answer: httpx.Response) -> RemoteError:
        refusal = _refusal(answer)
        asked = retry_after_s(answer.headers)
        if asked is not None and asked > self._retry_for_s:
            how = f"it asks to come back in {asked:.0f} s; --retry-for allows {self._retry_for_s:g} s"
        else:
            how = f"given up after {self._retry_for_s:g} s without any other answer (--retry-for)"
        return RemoteError(f"{refusal} ({how})", status=answer.status_code)


def document(answer: httpx.Response) -> Any:  # noqa: ANN401 - any JSON
    """The JSON of an answer. Raises `RemoteError` where it is none."""
    try:
        return answer.json()
    except ValueError as exc:
        raise RemoteError("The server's answer is not JSON; it does not look like this service.") from exc


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by the header `Retry-After`: a number, or the time of day (RFC 9110, section 10.2.3)."""
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
    """The detail and the kind of a problem in the service's own form or in OpenAI's; None where it is neither."""
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
    """What the problem says, or the status of an answer that is none of ours."""
    detail, kind = _problem(answer)
    code = answer.status_code
    if detail is None:
        status = f"{code} {answer.reason_phrase}".strip()
        if code in _BUSY:
            return RemoteError(f"The server answered {status}.", status=code)
        return RemoteError(f"The server answered {status}; it does not look like this service.", status=code)
    if code == _UNAUTHORIZED:
        detail += " For this command: --api-key, or the variable ANYCLASS_API_KEY."
    elif kind == _UNKNOWN_SET:
        # What the service says names its own route.
        detail = "There is no label set of that name; anyclass label-sets list shows those there are."
    about_image = kind in _ABOUT_THE_IMAGE or kind in _OF_ITS_OWN
    wrong = answer.is_client_error and not about_image and code not in _NOT_THE_REQUEST
    return RemoteError(detail, image_at_fault=about_image, exit_code=2 if wrong else 1, status=code)
