import asyncio
import ipaddress
import json
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from service.api.request.image_field import URLS_OFF, image_from_bytes, image_from_text
from service.app import create_app
from service.classification.types import load_image
from service.errors import AnyclassError, ImageNotFetched, InvalidImage, PayloadTooLarge
from service.images.fetching import MAX_URL_CHARS, ImageFetcher, IpAddress, is_public
from service.monitoring.metrics import Metrics
from service.settings import Settings
from tests.support.classifying import picture, until
from tests.support.http_server import http_server
from tests.support.tiny_bundle import write_tiny_bundle

UNREACHABLE = "The image could not be fetched: its address cannot be reached from here."
LOOPBACK = ipaddress.ip_network("127.0.0.0/8")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Site:
    """A real HTTP server on a loopback port, whose answers are by path.

    Attributes:
        requests: path and headers of each request.
    """

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, bytes | Handler] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            path = first.split()[1]
            self.requests.append((path, dict(line.lower().split(": ", 1) for line in lines)))
            answer = self.answers.get(path, status(404))
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def status(code: int, body: bytes = b"", **headers: str) -> bytes:
    """An HTTP answer."""
    lines = [f"HTTP/1.1 {code} X", *(f"{name}: {value}" for name, value in headers.items())]
    if "content_length" not in headers:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).replace("content_length", "content-length").encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def site(tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    """A running one."""
    made = Site()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def loopback_too(address: IpAddress) -> bool:
    """The policy of these tests, which no setting can bring about."""
    return address in LOOPBACK or is_public(address)


def names(**hosts: str | Sequence[str]) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    """A resolver that knows these names, and what is an address already."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        found = hosts.get(host.replace(".", "_"))
        if found is None:
            ipaddress.ip_address(host)
            return [host]
        return [found] if isinstance(found, str) else found

    return resolve


@asynccontextmanager
async def fetching(*ports: int, **options: Any) -> AsyncIterator[ImageFetcher]:
    """A fetcher, closed in the end."""
    options = {"permit": loopback_too, "max_bytes": 10_000, "resolve": names(pictures_test="127.0.0.1"), **options}
    fetcher = await asyncio.to_thread(lambda: ImageFetcher(Metrics(), ports=(80, 443, *ports), **options))
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def refusal(fetcher: ImageFetcher, url: str) -> str:
    """Why a URL is not fetched."""
    with pytest.raises(ImageNotFetched) as caught:
        await fetcher.fetch(url)
    return caught.value.detail


async def test_an_image_is_fetched() -> None:
    """By name, with the name as the Host, and with nothing of our own environment."""
    async with site() as there, fetching(there.port) as fetcher:
        there.answers["/a.png?size=1"] = status(200, b"picture", **{"content-type": "text/html"})
        assert b"picture" == await fetcher.fetch(f"HTTP://pictures.test:{there.port}/a.png?size=1#part")
        ((_, headers),) = there.requests
        assert f"pictures.test:{there.port}" == headers["host"]
        assert {"host", "connection", "accept", "accept-encoding", "user-agent"} == set(headers)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "192.88.99.1", "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "168.63.129.16", "192.0.2.1", "203.0.113.1",
        "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1",
        "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "fc00::1",
        "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "2a00::1%1", "fec0::1", "ff02::1", "100::1", "3fff::1", "5f00::1",
        "4000::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    """Private, local, shared, reserved, multicast; mapped, translated and tunnelled ones with them."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"])
def test_addresses_that_are_public(address: str) -> None:
    """Those next to the refused ones among them."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "0", "017700000001"],
)
async def test_this_machine_is_never_reached_by_default(host: str) -> None:
    """Whatever the spelling, with the system's own resolver: no connection is made."""
    async with site() as there:
        fetcher = await asyncio.to_thread(lambda: ImageFetcher(Metrics(), max_bytes=100, ports=[there.port]))
        assert UNREACHABLE == await refusal(fetcher, f"http://{host}:{there.port}/secret")
        await fetcher.close()
        assert [] == there.requests


async def test_a_refused_address_looks_like_one_that_is_not_there() -> None:
    """No client can map the network behind the service: refused, unknown, closed and silent look alike."""
    async with site() as there, site() as closed:
        hosts = names(inside_test="10.0.0.1", half_test=["10.0.0.1", "127.0.0.1"])
        closed_port = closed.port
        async with fetching(there.port, closed_port, resolve=hosts, timeout_s=0.3) as fetcher:
            there.answers["/"] = b"\x00\x01 this is no HTTP \r\n\r\n"
            there.answers["/ok"] = status(200, b"picture")

            async def silent(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
                await asyncio.sleep(2)

            there.answers["/silent"] = silent
            for url in (
                "http://inside.test/",
                "http://unknown.test/",
                f"http://127.0.0.1:{there.port}/",
                f"http://127.0.0.1:{there.port}/silent",
                f"https://127.0.0.1:{there.port}/",
            ):
                assert UNREACHABLE == await refusal(fetcher, url), url
        # Of several addresses only those that may be dialled are.
        async with fetching(there.port, resolve=hosts) as fetcher:
            assert b"picture" == await fetcher.fetch(f"http://half.test:{there.port}/ok")


async def test_the_address_that_was_checked_is_the_one_that_is_dialled() -> None:
    """A name whose answer changes (DNS rebinding) is resolved once for each connection, and never after the check."""
    answers = [["127.0.0.1"], ["127.0.0.2"], ["10.0.0.1"]]
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    only_first = ipaddress.ip_address("127.0.0.1")
    async with site() as there:
        async with fetching(there.port, resolve=rebinding, permit=lambda address: address == only_first) as fetcher:
            there.answers["/"] = status(200, b"picture")
            url = f"http://rebind.test:{there.port}/"
            assert b"picture" == await fetcher.fetch(url)
            assert 1 == len(asked)
            # No connection is kept: the next fetch is checked again.
            assert UNREACHABLE == await refusal(fetcher, url)
            assert 2 == len(asked)
        assert 1 == len(there.requests)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://pictures.test/a.png", "must begin with"),
        ("file:///etc/passwd", "must begin with"),
        ("http:///a.png", "must begin with"),
        ("http://user:secret@pictures.test/", "user name"),
        ("http://user@pictures.test/", "user name"),
        ("http://pictures.test:22/", "80 and 443"),
        ("http://pictures.test:6379/", "80 and 443"),
        ("https://pictures.test:8443/", "80 and 443"),
        ("http://[::1/", "not a valid URL"),
        ("http://xn--loop-test/", "not a valid URL"),
        ("http://xn--/", "not a valid URL"),
        ("http://\u2603.test/", "not a valid URL"),
        ("http://\ud800.test/", "not a valid URL"),
        ("http://pictures.test/\ud800", "not a valid URL"),
        ("http://pictures.test:0/", "80 and 443"),
        ("http://pictures.test:99999/", "80 and 443"),
        ("http://pictures.test/" + "a" * MAX_URL_CHARS, "characters"),
    ],
)
async def test_urls_that_are_refused_unfetched(url: str, reason: str) -> None:
    """By what they say themselves."""
    async with fetching() as fetcher:
        assert reason in await refusal(fetcher, url)


@given(st.lists(st.sampled_from(["xn--", "a", "-", ".", "\u2603", "\u3002", "%", "0", ":", "[", "]", "@", "/", "\\"])))
async def test_any_host_is_fetched_or_refused(parts: list[str]) -> None:
    """No host makes another error than the one for image URLs, whatever the URL's parser thinks of it."""
    async with fetching(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) as fetcher:
        for scheme in ("http", "https"):
            with suppress(ImageNotFetched):
                await fetcher.fetch(f"{scheme}://{''.join(parts)}/")


@pytest.mark.parametrize("host", [".", ".pictures.test"])
async def test_a_host_that_tls_cannot_name_is_unreachable(host: str) -> None:
    """Some resolvers find a name that no certificate can have."""

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async with site() as there, fetching(there.port, resolve=resolve) as fetcher:
        assert UNREACHABLE == await refusal(fetcher, f"https://{host}:{there.port}/")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://10.0.0.1/", UNREACHABLE),
        ("http://169.254.169.254/latest/meta-data/", UNREACHABLE),
        ("//169.254.169.254/", UNREACHABLE),
        ("file:///etc/passwd", "must begin with"),
        ("gopher://pictures.test/", "must begin with"),
        ("http://user:x@pictures.test/", "user name"),
        ("http://pictures.test:6379/", "80 and 443"),
        ("http://[::1/", "an invalid URL"),
        ("http://xn--loop-test/", "an invalid URL"),
    ],
)
async def test_every_hop_is_checked(target: str, reason: str) -> None:
    """A redirect opens no door that the first URL could not."""
    async with site() as there, fetching(there.port) as fetcher:
        there.answers["/"] = status(302, location=target)
        assert reason in await refusal(fetcher, f"http://pictures.test:{there.port}/")


@pytest.mark.parametrize(("hops", "found"), [(1, True), (3, True), (4, False)])
async def test_redirects_are_followed_three_times(hops: int, found: bool) -> None:
    """Absolute or relative."""
    async with site() as there, fetching(there.port) as fetcher:
        for hop in range(hops):
            there.answers[f"/{hop}"] = status(301 + hop % 2, location=f"{hop + 1}")
        there.answers[f"/{hops}"] = status(200, b"picture")
        url = f"http://pictures.test:{there.port}/0"
        if found:
            assert b"picture" == await fetcher.fetch(url)
        else:
            assert "more than 3 times" in await refusal(fetcher, url)
        assert min(hops, 3) + 1 == len(there.requests)


async def test_other_answers_are_no_images() -> None:
    """Only 200 is; the message names the status, because the server is public."""
    async with site() as there, fetching(there.port) as fetcher:
        there.answers["/partial"] = status(206, b"x")
        for path, code in (("/nothing", 404), ("/partial", 206)):
            assert str(code) in await refusal(fetcher, f"http://pictures.test:{there.port}{path}")


async def test_bytes_are_counted_as_they_come() -> None:
    """An announced length is refused unread, a missing or false one at the limit, and none of it is decompressed."""

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 5_000)
            await writer.drain()

    async with site() as there, fetching(there.port) as fetcher:
        there.answers["/announced"] = status(200, b"x", content_length=str(10**12))
        there.answers["/endless"] = endless
        there.answers["/most"] = status(200, b"x" * 10_000)
        there.answers["/gzip"] = status(200, b"\x1f\x8b", **{"content-encoding": "gzip"})
        url = f"http://pictures.test:{there.port}"
        for path in ("/announced", "/endless"):
            with pytest.raises(PayloadTooLarge):
                await fetcher.fetch(url + path)
        assert 10_000 == len(await fetcher.fetch(f"{url}/most"))
        assert b"\x1f\x8b" == await fetcher.fetch(f"{url}/gzip")


async def test_a_trickle_does_not_outlast_the_limit() -> None:
    """The time is for the whole, not for each byte."""

    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with site() as there, fetching(there.port, timeout_s=0.3) as fetcher:
        there.answers["/"] = trickle
        assert UNREACHABLE == await refusal(fetcher, f"http://pictures.test:{there.port}/")


async def test_one_host_is_not_asked_by_everybody_at_once() -> None:
    """The service cannot be made to flood a host; another host does not wait for it."""
    gate = asyncio.Event()
    here, most = 0, 0

    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal here, most
        here += 1
        most = max(most, here)
        await gate.wait()
        here -= 1
        writer.write(status(200, b"picture"))

    hosts = names(pictures_test="127.0.0.1", others_test="127.0.0.1")
    async with site() as there, fetching(there.port, per_host=2, resolve=hosts, timeout_s=60) as fetcher:
        there.answers["/"] = slow
        there.answers["/fast"] = status(200, b"fast")
        waiting = [asyncio.create_task(fetcher.fetch(f"http://pictures.test:{there.port}/")) for _ in range(40)]
        await until(lambda: here == 2)
        assert b"fast" == await fetcher.fetch(f"http://others.test:{there.port}/fast")
        gate.set()
        assert [b"picture"] * 40 == await asyncio.gather(*waiting)
        assert (2, {}) == (most, fetcher._hosts)


async def test_no_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be dialled without a check, and it could reach what we cannot."""
    async with site() as proxy, site() as there:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with fetching(there.port) as fetcher:
            there.answers["/"] = status(200, b"picture")
            assert b"picture" == await fetcher.fetch(f"http://pictures.test:{there.port}/")
        assert [] == proxy.requests


@pytest.mark.parametrize(("colour", "name"), [("ok", "ok"), ("bad", "failed"), ("big", "too large")])
async def test_outcomes_are_counted(colour: str, name: str) -> None:
    """By a few words, not by host."""
    async with site() as there, fetching(there.port) as fetcher:
        there.answers |= {"/ok": status(200, b"x"), "/big": status(200, b"x" * 10_001)}
        with suppress(AnyclassError):
            await fetcher.fetch(f"http://pictures.test:{there.port}/{colour}")
        assert 1 == fetcher._metrics.registry.get_sample_value("anyclass_image_fetches_total", {"outcome": name})


async def test_text_is_an_image_or_a_url() -> None:
    """One function for every protocol; without a fetcher URLs are refused, and other schemes always."""
    async with site() as there, fetching(there.port) as fetcher:
        there.answers["/"] = status(200, b"picture")
        url = f"http://pictures.test:{there.port}/"
        assert b"picture" == await load_image(image_from_text(url, fetcher))
        assert b"red" == image_from_text("data:image/png;base64,cmVk", fetcher) == image_from_text("cmVk", None)
        assert b"picture" == await load_image(image_from_bytes(url.encode(), fetcher))
        assert b"\x89PNG" == image_from_bytes(b"\x89PNG", None)
        for text, given in ((url, None), ("ftp://pictures.test/", fetcher)):
            with pytest.raises(InvalidImage):
                image_from_text(text, given)
        for read in (image_from_text, lambda text, none: image_from_bytes(text.encode(), none)):
            with pytest.raises(InvalidImage, match="switched off"):
                read(url, None)


@pytest.fixture(params=[True, False], ids=["on", "off"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, str, bool]]:
    """A service, a site whose `/red` is a picture, and whether the service fetches anything."""
    bundle = await asyncio.to_thread(write_tiny_bundle, tmp_path / "bundle")
    settings = Settings(
        model=bundle,
        provider="cpu",
        decode_threads=1,
        allow_image_urls=request.param,
        state_url=SecretStr(str(tmp_path / "state")),
        job_lease_s=1,
    )
    app = await asyncio.to_thread(create_app, settings)
    services = app.state.services
    transport = httpx.ASGITransport(app)
    async with (
        site() as there,
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
        fetching(there.port) as fetcher,
    ):
        await until(lambda: services.lifecycle.ready)
        assert request.param == isinstance(services.image_fetcher, ImageFetcher)
        if request.param:
            services.image_fetcher = fetcher
        there.answers |= {"/red": status(200, picture("red")), "/text": status(200, b"text")}
        there.answers["/hop"] = status(302, location="http://169.254.169.254/latest/meta-data/")
        yield client, f"http://pictures.test:{there.port}", request.param


async def test_classifying_by_url(service: tuple[httpx.AsyncClient, str, bool]) -> None:
    """One image and a batch: what is fetched is decoded as if it had been sent; each bad URL has its own error."""
    client, url, is_on = service
    answer = await client.post("/v1/classify", json={"image": f"{url}/red", "labels": ["red", "blue"]})
    refused = await client.post("/v1/classify", json={"image": "http://10.0.0.1/", "labels": ["red"]})
    images = [f"{url}/red", "http://10.0.0.1/", f"{url}/text", f"{url}/red"]
    batch = await client.post("/v1/classify/batch", json={"images": images, "labels": ["red", "blue"]})
    kinds = [each.get("error", {}).get("type", "").rpartition(":")[2] for each in batch.json()["results"]]
    if is_on:
        assert "red" == answer.json()["predictions"][0]["label"]
        assert (422, "urn:anyclass:problem:image-not-fetched") == (refused.status_code, refused.json()["type"])
        assert ["", "image-not-fetched", "unsupported-image-format", ""] == kinds
    else:
        assert [(422, URLS_OFF)] * 2 == [(each.status_code, each.json()["detail"]) for each in (answer, refused)]
        assert ["invalid-image"] * 4 == kinds


async def embeddings(client: httpx.AsyncClient, url: str) -> httpx.Response:
    """Ask for the vector of an image, in OpenAI's words."""
    return await client.post("/v1/embeddings", json={"input": [{"image": url}]})


async def hugging_face(client: httpx.AsyncClient, url: str) -> httpx.Response:
    """Have an image classified, in Hugging Face's words."""
    return await client.post("/", json={"inputs": url, "parameters": {"candidate_labels": ["red", "blue"]}})


async def open_inference(client: httpx.AsyncClient, url: str) -> httpx.Response:
    """Ask for the vector of an image, in the words of the Open Inference Protocol."""
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [url]}
    return await client.post("/v2/models/tiny/infer", json={"inputs": [image]})


async def open_inference_binary(client: httpx.AsyncClient, url: str) -> httpx.Response:
    """The same with the binary extension."""
    data = struct.pack("<I", len(url)) + url.encode()
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [image]}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    return await client.post("/v2/models/tiny/infer", content=head + data, headers=headers)


async def job_line(client: httpx.AsyncClient, url: str, endpoint: str, body: dict[str, Any]) -> httpx.Response:
    """Have a batch job answer one line; what the line was answered, as if it were a response."""
    line = {"custom_id": "1", "method": "POST", "url": endpoint, "body": body}
    file = {"file": ("in.jsonl", json.dumps(line).encode())}
    sent = await client.post("/v1/files", files=file, data={"purpose": "batch"})
    asked = {"input_file_id": sent.json()["id"], "endpoint": endpoint, "completion_window": "24h"}
    batch = (await client.post("/v1/batches", json=asked)).json()

    async def ended() -> bool:
        batch.update((await client.get(f"/v1/batches/{batch['id']}")).json())
        return batch["status"] in ("completed", "failed")

    await until(ended)
    if batch["status"] == "failed":
        return httpx.Response(400, json={"detail": batch["errors"]["data"][0]["message"]})
    content = await client.get(f"/v1/files/{batch['output_file_id'] or batch['error_file_id']}/content")
    response = content.json()["response"]
    return httpx.Response(response["status_code"], json=response["body"])


async def classify_line(client: httpx.AsyncClient, url: str) -> httpx.Response:
    """A line of a batch job for `/v1/classify`."""
    return await job_line(client, url, "/v1/classify", {"image": url, "labels": ["red", "blue"]})


async def embeddings_line(client: httpx.AsyncClient, url: str) -> httpx.Response:
    """A line of a batch job for `/v1/embeddings`."""
    return await job_line(client, url, "/v1/embeddings", {"input": {"image": url}})


@pytest.mark.parametrize(
    "ask", [embeddings, hugging_face, open_inference, open_inference_binary, classify_line, embeddings_line]
)
async def test_every_protocol_takes_urls_under_the_same_guard(
    ask: Callable[[httpx.AsyncClient, str], Awaitable[httpx.Response]], service: tuple[httpx.AsyncClient, str, bool]
) -> None:
    """On: fetched, and each hop is checked. Off: refused, with that reason and not as an invalid picture."""
    client, url, is_on = service
    found, private = await ask(client, f"{url}/red"), await ask(client, "http://10.0.0.1/red")
    hop = await ask(client, f"{url}/hop")
    if is_on:
        assert 200 == found.status_code, found.text
        for refused in (private, hop):
            assert refused.status_code in (400, 422)
            assert UNREACHABLE in refused.text
    else:
        for refused in (found, private, hop):
            assert refused.status_code in (400, 422)
            assert URLS_OFF in refused.text


def test_the_setting_opens_the_way_to_public_addresses_only(tmp_path: Path) -> None:
    """A real server refuses its own machine, and logs no URL."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    with http_server(bundle, tmp_path, env={"ANYCLASS_ALLOW_IMAGE_URLS": "true"}) as server:
        request = {"image": "http://127.0.0.1/x.png", "labels": ["red"]}
        answer = httpx.post(f"{server.url}/v1/classify", json=request, timeout=30)
        assert "urn:anyclass:problem:image-not-fetched" == answer.json()["type"]
        server.settle_log()
        assert "127.0.0.1/x.png" not in server.raw_log()
