"""Fetches an image from a client's URL without giving the client access to this machine's network.

Every hop is checked: scheme, port, and the address that is dialled. A name is resolved once, its addresses are checked,
and one of them is dialled, so an answer that changes in between (DNS rebinding) has no effect. Redirects are followed
by hand. The environment is ignored: no proxy, no credentials. All failures to reach an address have the same message,
so that clients cannot map the network behind this machine.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import httpcore
import httpx

from service.errors import ImageNotFetched, PayloadTooLarge
from service.monitoring.metrics import Fetch, Metrics

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
Permit: TypeAlias = Callable[[IpAddress], bool]

MAX_REDIRECTS: Final = 3
MAX_URL_CHARS: Final = 2_048

_PORTS: Final = {"http": 80, "https": 443}
_AT_ONCE: Final = 32
"""Concurrent fetches in total; each may hold an image of the largest size."""
_HEADERS: Final = (
    (b"accept", b"image/*, application/octet-stream;q=0.5"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"anyclass"),
)
_OK: Final = 200
_REDIRECTS: Final = (301, 302, 303, 307, 308)

_UNREACHABLE: Final = "The image could not be fetched: its address cannot be reached from here."
_INVALID_REDIRECT: Final = "The image's URL redirects to an invalid URL."
_NOT_HTTP: Final = "An image URL must begin with http:// or https:// and name a host."

_REFUSED_V4: Final = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, and the clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "168.63.129.16/32",  # Azure's own services, reachable from its machines only
    )
)
_GLOBAL_V6: Final = ipaddress.IPv6Network("2000::/3")
"""The only IPv6 block of public addresses; mapped (::ffff:0:0/96), translated (64:ff9b::/96) and local ones are not."""
_REFUSED_V6: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo and ORCHID among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which holds an IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)


def is_public(address: IpAddress) -> bool:
    """Return whether an address is on the public internet, outside every IANA special-purpose block."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    return address.scope_id is None and address in _GLOBAL_V6 and not any(address in network for network in _REFUSED_V6)


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of `host` from the system's resolver. Raises `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Dials only addresses that `permit` accepted, without resolving the name again."""

    def __init__(self, permit: Permit, resolve: Resolve) -> None:
        self._permit = permit
        self._resolve = resolve
        self._dialler = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first permitted address that answers. Raises `httpcore.ConnectError`."""
        try:
            addresses = [ipaddress.ip_address(each) for each in await self._resolve(host, port)]
        except (OSError, ValueError) as exc:
            raise httpcore.ConnectError from exc
        for address in filter(self._permit, addresses):
            try:
                stream = await self._dialler.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
            return _Stream(stream)
        raise httpcore.ConnectError


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that closes when its TLS handshake is cancelled; httpcore's own stays open."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self.read = stream.read  # type: ignore[method-assign]
        self.write = stream.write  # type: ignore[method-assign]
        self.aclose = stream.aclose  # type: ignore[method-assign]
        self.get_extra_info = stream.get_extra_info  # type: ignore[method-assign]

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> httpcore.AsyncNetworkStream:
        """See httpcore."""
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except asyncio.CancelledError:
            await self._stream.aclose()
            raise


class ImageFetcher:
    """Fetches images for clients. Belongs to one event loop."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        max_bytes: int,
        timeout_s: float = 10.0,
        per_host: int = 8,
        permit: Permit = is_public,
        ports: Iterable[int] = (80, 443),
        resolve: Resolve = resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Read the certificate authorities from disk: call it off the event loop.

        Args:
            max_bytes: of one image.
            timeout_s: for one image, redirects and waiting included.
            per_host: concurrent fetches from one host.
            permit: returns whether an address may be dialled; deliberately not a setting.
            tls: replaces the public certificate authorities.
        """
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._per_host = per_host
        self._ports = frozenset(ports)
        self._all = asyncio.Semaphore(_AT_ONCE)
        self._hosts: dict[bytes, asyncio.Semaphore] = {}
        self._users: Counter[bytes] = Counter()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or httpx.create_ssl_context(trust_env=False),
            max_connections=_AT_ONCE,
            max_keepalive_connections=0,  # a connection is checked when it is opened, and used once
            network_backend=GuardedBackend(permit, resolve),
        )

    async def fetch(self, url: str) -> bytes:
        """Return the bytes at `url`, of any content type: the image decoder checks them.

        Raises:
            ImageNotFetched: the URL is not allowed, or the fetch failed.
            PayloadTooLarge: more bytes than the limit on an image.
        """
        outcome: Fetch = "cancelled"
        try:
            async with asyncio.timeout(self._timeout_s):
                data = await self._follow(url)
            outcome = "ok"
        except TimeoutError as exc:
            outcome = "failed"
            raise ImageNotFetched(_UNREACHABLE) from exc
        except ImageNotFetched:
            outcome = "failed"
            raise
        except PayloadTooLarge:
            outcome = "too large"
            raise
        else:
            return data
        finally:
            self._metrics.image_fetches.labels(outcome).inc()

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def _follow(self, text: str) -> bytes:
        url = self._checked(text)
        for _ in range(MAX_REDIRECTS + 1):
            async with self._room(url.raw_host):
                answer = await self._get(url)
            if isinstance(answer, bytes):
                return answer
            try:
                target = str(url.join(answer))
            except (httpx.InvalidURL, ValueError) as exc:
                raise ImageNotFetched(_INVALID_REDIRECT) from exc
            url = self._checked(target, _INVALID_REDIRECT)
        raise ImageNotFetched(f"The image's URL redirects more than {MAX_REDIRECTS} times.")

    def _checked(self, text: str, invalid: str = "The image's URL is not a valid URL.") -> httpx.URL:
        """Parse and check a URL. Raises ImageNotFetched, with the message `invalid` for one that cannot be parsed."""
        if len(text) > MAX_URL_CHARS:
            raise ImageNotFetched(f"An image URL may have at most {MAX_URL_CHARS} characters.")
        try:
            url = httpx.URL(text)
            host = url.host  # decodes an international name (xn--…)
        except (httpx.InvalidURL, ValueError) as exc:  # ValueError: UnicodeError and IDNAError
            raise ImageNotFetched(invalid) from exc
        if url.scheme not in _PORTS or not host:
            raise ImageNotFetched(_NOT_HTTP)
        if url.userinfo:
            raise ImageNotFetched("An image URL must not have a user name or a password in it.")
        if (_PORTS[url.scheme] if url.port is None else url.port) not in self._ports:
            raise ImageNotFetched("An image URL may name the ports 80 and 443 only.")
        return url.copy_with(fragment=None)

    @asynccontextmanager
    async def _room(self, host: bytes) -> AsyncIterator[None]:
        """Wait for a turn, first among fetches from the host, so that a slow host does not delay others."""
        self._users[host] += 1
        turn = self._hosts.setdefault(host, asyncio.Semaphore(self._per_host))
        try:
            async with turn, self._all:
                yield
        finally:
            self._users[host] -= 1
            if not self._users[host]:
                del self._users[host], self._hosts[host]

    async def _get(self, url: httpx.URL) -> bytes | str:
        """Send one request; return the bytes, or the location of a redirect."""
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        headers = [(b"host", url.netloc), (b"connection", b"close"), *_HEADERS]
        # The pool limits each step; the caller limits the whole fetch.
        extensions = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), self._timeout_s)}
        try:
            async with self._pool.stream("GET", target, headers=headers, extensions=extensions) as response:
                if response.status in _REDIRECTS:
                    return _header(response, b"location")
                if response.status != _OK:
                    raise ImageNotFetched(f"The image could not be fetched: its server answers {response.status}.")
                return await self._read(response)
        except (
            httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.UnsupportedProtocol,
            OSError, ValueError,  # errors of TLS, and a host that TLS cannot name
        ) as exc:  # fmt: skip
            raise ImageNotFetched(_UNREACHABLE) from exc

    async def _read(self, response: httpcore.Response) -> bytes:
        too_large = PayloadTooLarge(f"The image at the URL has more than {self._max_bytes} bytes.")
        declared = _header(response, b"content-length")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._max_bytes:
            raise too_large
        data = bytearray()
        async for chunk in response.aiter_stream():
            data += chunk
            if len(data) > self._max_bytes:
                raise too_large
        return bytes(data)


def _header(response: httpcore.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), "")
