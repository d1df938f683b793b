import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.datastructures import Headers

from service.api.access.api_keys import ApiKeys, parse_keys
from service.api.middleware.access_control import client_address, presented_key
from service.app import create_app
from service.errors import ConfigurationError
from service.settings import Settings
from tests.support.classifying import picture, until
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle
from tests.support.waiting import wait_until

KEY = "a-key-of-twenty-chars"
OTHER = "another:key_of/length="
UNKNOWN = "a-key-that-nobody-has"
SERIES = 'anyclass_access_refused_total{reason="key"} '


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """A server that has keys from the environment and from a file."""
    folder = tmp_path_factory.mktemp("auth")
    bundle = write_tiny_bundle(folder / "bundle", aliases=("acme/tiny",))
    file = folder / "keys"
    file.write_text(f"# the mobile app\nmobile:{OTHER}\n")
    env = {"ANYCLASS_API_KEYS": f"web:{KEY}", "ANYCLASS_API_KEYS_FILE": str(file)}
    with http_server(bundle, folder, env=env) as running:
        yield running


@pytest.fixture
def client(keyed: HttpServer) -> Iterator[httpx.Client]:
    """A client without a key."""
    with httpx.Client(base_url=keyed.url, timeout=30) as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
        {"x-api-key": KEY},
        {"authorization": f"Bearer {OTHER}"},
        {"authorization": "Basic dTpw", "x-api-key": OTHER},
    ],
)
def test_a_valid_key_is_taken(client: httpx.Client, headers: dict[str, str]) -> None:
    """As a bearer token or in its own header, from the environment or from the file."""
    assert 200 == client.get("/v1/models", headers=headers).status_code


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, 'Bearer realm="anyclass"'),
        ({"authorization": "Bearer"}, 'Bearer realm="anyclass"'),
        ({"authorization": f"Bearer {UNKNOWN}"}, 'Bearer realm="anyclass", error="invalid_token"'),
        ({"x-api-key": KEY + "x"}, 'Bearer realm="anyclass", error="invalid_token"'),
        ({"x-api-key": KEY[:-1]}, 'Bearer realm="anyclass", error="invalid_token"'),
        # The first one given counts, so that a client cannot try several at once.
        ({"authorization": f"Bearer {UNKNOWN}", "x-api-key": KEY}, 'Bearer realm="anyclass", error="invalid_token"'),
    ],
)
def test_without_a_valid_key_nothing_is_answered(client: httpx.Client, headers: dict[str, str], challenge: str) -> None:
    """401 with the challenge that HTTP asks for, as a problem."""
    answer = client.get("/v1/models", headers=headers)
    assert (401, challenge) == (answer.status_code, answer.headers["www-authenticate"])
    assert "urn:anyclass:problem:unauthorized" == answer.json()["type"]


@pytest.mark.parametrize(
    ("path", "member"), [("/v1/embeddings", "error"), ("/", "error"), ("/models/acme/tiny", "error"), ("/v2", "error")]
)
def test_each_protocol_has_its_own_form_of_401(client: httpx.Client, path: str, member: str) -> None:
    """A client library finds the message where it looks for it."""
    answer = client.post(path, json={})
    assert (401, [member]) == (answer.status_code, list(answer.json()))
    assert "www-authenticate" in answer.headers


def test_no_body_is_read_without_a_key(client: httpx.Client) -> None:
    """A body without an end is refused before it is sent, and the connection closed."""

    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b"x" * 10_000

    try:
        answer = client.post("/v1/classify", content=endless())
    except httpx.WriteError:
        return  # the connection was closed under the upload, before the answer was looked for
    assert (401, "close") == (answer.status_code, answer.headers["connection"])


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/v1/classify"), ("HEAD", "/v1/files")])
def test_a_refused_request_without_a_body_keeps_its_connection(client: httpx.Client, method: str, path: str) -> None:
    """Nothing of it is left to arrive."""
    answer = client.request(method, path)
    assert (401, None) == (answer.status_code, answer.headers.get("connection"))


def test_probes_and_documents_are_open_to_get_only(client: httpx.Client) -> None:
    """Load balancers and monitoring have no key; what shares a path with them needs one."""
    for path in ("/livez", "/readyz", "/metrics", "/", "/page/page.js", "/docs", "/openapi.json"):
        assert 200 == client.get(path).status_code, path
    assert 401 == client.post("/livez").status_code
    assert 401 == client.get("/livez/").status_code
    assert 401 == client.get("/v1/templates").status_code


def test_the_log_has_the_keys_name_and_never_a_key(keyed: HttpServer, client: httpx.Client) -> None:
    """Neither a valid key nor one that was tried."""
    client.get("/v1/models", headers={"x-api-key": OTHER, "x-request-id": "whose"})
    client.get("/v1/models", headers={"x-api-key": UNKNOWN, "x-request-id": "whose"})

    keyed.settle_log()
    lines = [line for line in keyed.logs() if line.get("request_id") == "whose"]
    assert [(200, "mobile"), (401, None)] == [(line["status"], line.get("api_key")) for line in lines]
    assert not any(key in keyed.raw_log() for key in (KEY, OTHER, UNKNOWN))


def test_refusals_are_counted(client: httpx.Client) -> None:
    """One series, whatever was tried."""

    def refused() -> float:
        lines = client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(SERIES)).removeprefix(SERIES))

    before = refused()
    client.get("/v1/models", headers={"x-api-key": UNKNOWN})
    client.get("/v1/models", headers={"x-api-key": f"{UNKNOWN}-too"})
    assert before + 2 == refused()


@pytest.mark.parametrize(
    ("method", "path", "series"),
    [
        ("POST", "/v1/classify", 'method="POST",protocol="own",route="/v1/classify",status="4xx"'),
        ("GET", "/v1/classify", 'method="GET",protocol="own",route="/v1/classify",status="4xx"'),
        ("PUT", "/v1/label-sets/a", 'method="PUT",protocol="label-sets",route="/v1/label-sets/{name}",status="4xx"'),
        ("POST", "/", 'method="POST",protocol="huggingface",route="/",status="4xx"'),
        ("POST", "/docs/assets/a.js", 'method="POST",protocol="operations",route="/docs/assets",status="4xx"'),
        ("GET", "/v1/nothing", 'method="GET",protocol="other",route="unmatched",status="4xx"'),
    ],
)
def test_a_refused_request_counts_under_its_route(client: httpx.Client, method: str, path: str, series: str) -> None:
    """Unmatched are only the paths without a route."""

    def count() -> float:
        name = f"anyclass_http_requests_total{{{series}}} "
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = count()
    assert 401 == client.request(method, path).status_code
    wait_until(lambda: before + 1 == count())  # a request is counted after its answer


def test_a_page_counts_under_its_route(client: httpx.Client) -> None:
    """Pages that are not FastAPI's too."""
    for path in ("/", "/page/page.js", "/docs", "/openapi.json", "/docs/assets/favicon.png"):
        client.get(path)
    for route in ("/", "/page/{name}", "/docs", "/openapi.json", "/docs/assets"):
        series = f'anyclass_http_requests_total{{method="GET",protocol="operations",route="{route}",status="2xx"}}'
        # A request is counted after its answer.
        wait_until(lambda series=series: series in client.get("/metrics").text)  # type: ignore[misc]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """An application in this event loop, once it is ready; or has failed."""
    app = await asyncio.to_thread(create_app, settings)
    lifecycle = app.state.services.lifecycle
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        await until(lambda: lifecycle.phase.value != "starting")
        yield client, lifecycle


async def test_without_keys_the_service_is_open(tmp_path: Path) -> None:
    """And a key that a client sends out of habit does no harm."""
    bundle = await asyncio.to_thread(write_tiny_bundle, tmp_path / "bundle")
    async with running(Settings(model=bundle, provider="cpu", decode_threads=1)) as (client, lifecycle):
        assert "" == lifecycle.reason
        assert 200 == (await client.get("/v1/models", headers={"authorization": "Bearer hf_x"})).status_code


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("mobile:short\n", "line 1"),
        ("# none\n", "none is given"),
        ("a:sha256:12\n", "line 1"),
        ("ключ-из-двадцати-букв\n", "ASCII"),
    ],
)
async def test_keys_that_cannot_be_used_stop_the_start(tmp_path: Path, content: str, reason: str) -> None:
    """A mistake must not leave the service open, nor closed to all; and it is named, not shown."""
    bundle = await asyncio.to_thread(write_tiny_bundle, tmp_path / "bundle")
    file = tmp_path / "keys"
    await asyncio.to_thread(file.write_text, content, "utf-8")
    async with running(Settings(model=bundle, provider="cpu", api_keys_file=file)) as (client, lifecycle):
        assert "failed" == lifecycle.phase.value
        assert reason in lifecycle.reason
        assert "short" not in lifecycle.reason
        assert 503 == (await client.get("/v1/models", headers={"x-api-key": "short"})).status_code


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    """It is most likely a secret that was not mounted."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ApiKeys(file=tmp_path / "keys").load()


def test_entries_of_every_form() -> None:
    """Keys and digests, with a name or with one made of the digest."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    named = hashlib.sha256(OTHER.encode()).digest()
    assert {bytes.fromhex(digest): f"key-{digest[:8]}"} == parse_keys([KEY]) == parse_keys([f"sha256:{digest}"])
    assert {bytes.fromhex(digest): "web"} == parse_keys([f" web:sha256:{digest.upper()}\t"])
    assert {named: "mobile"} == parse_keys(["", "# note", f"mobile:{OTHER}"])


@pytest.mark.parametrize("line", ["short", "a b:a-key-of-twenty-chars", f"{KEY},", "sha256:" + "0" * 63, ":" + KEY])
def test_what_is_not_an_entry(line: str) -> None:
    """The line is named by its number and never shown."""
    with pytest.raises(ConfigurationError) as caught:
        parse_keys(["# one", line])
    assert "2" in caught.value.detail
    assert line not in caught.value.detail


async def test_a_changed_file_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A replaced file is read, as in Kubernetes. An unusable file changes nothing and is logged once."""
    caplog.set_level(logging.INFO)
    file = tmp_path / "keys"

    def put(text: str) -> None:
        new = tmp_path / "new"
        new.write_text(text)
        new.replace(file)

    await asyncio.to_thread(put, KEY)
    keys = ApiKeys(file=file)
    await asyncio.to_thread(keys.load)
    assert await keys.refresh() is None
    await asyncio.to_thread(put, f"mobile:{OTHER}")
    assert await keys.refresh() is None
    assert (None, "mobile") == (keys.name_of(KEY), keys.name_of(OTHER))
    await asyncio.to_thread(put, "broken")
    complained = await keys.refresh()
    assert complained == await keys.refresh(complained)
    await asyncio.to_thread(file.unlink)
    gone = await keys.refresh(complained)
    assert (gone, "mobile") == (await keys.refresh(gone), keys.name_of(OTHER))


def test_a_rotated_file_needs_no_new_start(tmp_path: Path) -> None:
    """The old key ends and the new one begins while the service runs."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    file = tmp_path / "keys"
    file.write_text(KEY)
    with (
        http_server(bundle, tmp_path, env={"ANYCLASS_API_KEYS_FILE": str(file)}) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        assert 200 == client.get("/v1/models", headers={"x-api-key": KEY}).status_code
        file.write_text(OTHER.replace(":", "-"))
        asyncio.run(until(lambda: client.get("/v1/models", headers={"x-api-key": KEY}).status_code == 401))
        assert 200 == client.get("/v1/models", headers={"x-api-key": OTHER.replace(":", "-")}).status_code
        server.settle_log()
        assert OTHER.replace(":", "-") not in server.raw_log()


def test_keys_are_not_shown_by_the_settings() -> None:
    """They are secrets."""
    settings = Settings(api_keys=SecretStr(KEY))
    assert KEY not in repr(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("::ffff:192.0.2.7", 1), "192.0.2.7"),
        (("/run/anyclass.sock", 0), "/run/anyclass.sock"),
        (None, "unknown"),
    ],
)
def test_addresses_are_limited_by_whoever_has_them(client: tuple[str, int] | None, expected: str) -> None:
    """An IPv6 subscriber has a whole /64."""
    assert expected == client_address({"type": "http", "client": client})


def test_other_schemes_are_no_keys() -> None:
    """A password for a proxy is not taken for a key."""
    assert presented_key(Headers({"authorization": f"Basic {KEY}"})) is None


def test_an_image_is_classified_with_a_key(client: httpx.Client) -> None:
    """The whole way, body included."""
    answer = client.post(
        "/v1/classify", files={"image": picture()}, data={"labels": ["red", "blue"]}, headers={"x-api-key": KEY}
    )
    assert "red" == answer.json()["predictions"][0]["label"]
