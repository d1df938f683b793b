"""CORS: headers and preflights as browsers ask for them."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
import structlog
from pydantic import ValidationError

from service.app import create_app
from service.settings import Settings, problems
from tests.support.application import FAILING, application

KEY = "a-key-of-twenty-chars"
PAGE = "https://app.example.com"
STRANGER = "https://elsewhere.example"


def preflight(origin: str, method: str = "POST", headers: str = "authorization,content-type") -> dict[str, str]:
    """Return what a browser asks before a request."""
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": headers,
    }


def of_cors(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of an answer that belong to CORS."""
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


async def failed(client: httpx.AsyncClient, headers: dict[str, str]) -> httpx.Response:
    """Return the answer to a request that fails; the log, whose traceback would read files, is captured."""
    with structlog.testing.capture_logs() as lines:
        answer = await client.post(FAILING, headers=headers)
    assert ["unexpected error", "request"] == [line["event"] for line in lines]
    return answer


async def test_a_page_of_an_allowed_origin_calls_the_service(tmp_path: Path) -> None:
    """With a key, whose preflight has none; it can read every answer, also refusals and failures."""
    async with application(tmp_path, cors_origins=PAGE, api_keys=f"web:{KEY}") as (client, _):
        asked = await client.options("/v1/classify", headers=preflight(PAGE, headers="authorization,x-stainless-os"))
        assert 200 == asked.status_code
        assert PAGE == asked.headers["access-control-allow-origin"]
        assert "POST" in asked.headers["access-control-allow-methods"].split(", ")
        assert "authorization,x-stainless-os" == asked.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in asked.headers
        assert asked.headers["x-request-id"]
        key = {"origin": PAGE, "x-api-key": KEY}
        for status, answer in (
            (200, await client.get("/v1/models", headers=key)),
            (401, await client.get("/v1/models", headers={"origin": PAGE})),
            (422, await client.post("/v1/classify", headers=key, json={})),
            (404, await client.get("/nothing", headers=key)),
            (500, await failed(client, key)),
        ):
            assert (status, PAGE) == (answer.status_code, answer.headers["access-control-allow-origin"])
            assert "Origin" in answer.headers["vary"]
            assert {"X-Request-ID", "Retry-After", "ETag"} <= set(
                answer.headers["access-control-expose-headers"].split(", ")
            )


async def test_a_page_of_another_origin_does_not(tmp_path: Path) -> None:
    """Its preflight is refused, and no answer names its origin; requests without an origin are as ever."""
    async with application(tmp_path, cors_origins=PAGE) as (client, _):
        assert 400 == (await client.options("/v1/classify", headers=preflight(STRANGER))).status_code
        assert 400 == (await client.options("/v1/classify", headers=preflight(PAGE, "PATCH"))).status_code
        answer = await client.get("/v1/models", headers={"origin": STRANGER})
        assert (200, False) == (answer.status_code, "access-control-allow-origin" in answer.headers)
        assert {} == of_cors((await client.get("/v1/models")).headers)


async def test_any_origin(tmp_path: Path) -> None:
    """With a star."""
    async with application(tmp_path, cors_origins="*") as (client, _):
        for origin in (PAGE, "null"):
            asked = await client.options("/v1/classify", headers=preflight(origin))
            assert (200, "*") == (asked.status_code, asked.headers["access-control-allow-origin"])
            answer = await client.get("/v1/models", headers={"origin": origin})
            assert "*" == answer.headers["access-control-allow-origin"]


async def test_without_the_setting_nothing_is_allowed_and_nothing_added(tmp_path: Path) -> None:
    """OPTIONS is not answered, no header is there, and no middleware runs."""
    async with application(tmp_path) as (client, _):
        assert 405 == (await client.options("/v1/classify", headers=preflight(PAGE))).status_code
        assert {} == of_cors((await client.get("/v1/models", headers={"origin": PAGE})).headers)
    app = await asyncio.to_thread(create_app, Settings())
    names = [getattr(each.cls, "__name__", "") for each in app.user_middleware]
    assert ["RequestContext", "AccessControl", "ParsingLimits"] == names


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("*", ("*",)),
        (" https://A.example , http://localhost:3000,", ("https://a.example", "http://localhost:3000")),
        ("https://a.example:443,http://b:80,http://c:443", ("https://a.example", "http://b", "http://c:443")),
        ("http://[::1]:8080,chrome-extension://abc", ("http://[::1]:8080", "chrome-extension://abc")),
    ],
)
def test_origins_as_browsers_write_them(text: str, origins: tuple[str, ...]) -> None:
    """In lower case and without the scheme's own port, or no page would ever match."""
    assert origins == Settings(cors_origins=text).cors_origins  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["a.example", "https://a.example/", "https://a.example/app", "https://*.example"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    """A path, a missing scheme or a pattern would allow nothing, silently."""
    with pytest.raises(ValidationError) as caught:
        Settings(cors_origins=text)  # type: ignore[arg-type]
    (line,) = problems(caught.value)
    assert line.startswith("ANYCLASS_CORS_ORIGINS: must be origins such as https://app.example.com")
