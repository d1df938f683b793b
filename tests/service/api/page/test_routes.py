"""The routes of the page: files, headers, and the setting that removes it."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from service.api.page.files import INDEX, page_files
from tests.support.application import application


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a ready application with keys."""
    async with application(tmp_path, api_keys="0123456789abcdef") as (client, _):
        yield client


async def test_the_page_and_its_files_need_no_key_and_come_from_here(client: httpx.AsyncClient) -> None:
    """Every name in the page and in the scripts is a file that is served, and every file is named."""
    page = await client.get("/")
    assert (200, "text/html; charset=utf-8") == (page.status_code, page.headers["content-type"])
    texts = {name: file.content.decode() for name, file in page_files().items() if not name.endswith(".jpg")}
    assert "://" not in "".join(texts.values()).replace("http://www.w3.org/2000/svg", "")
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', page.text))
    named |= {name for text in texts.values() for name in re.findall(r'from "\./([^"]+)"', text)}
    assert {*named, INDEX} == set(page_files())
    for name in named:
        answer = await client.get(f"/page/{name}")
        assert (200, page_files()[name].content) == (answer.status_code, answer.content)
        assert page.headers["content-security-policy"] == answer.headers["content-security-policy"]
    assert 404 == (await client.get("/page/nothing.js")).status_code
    assert 404 == (await client.get("/page/%2e%2e")).status_code


async def test_the_policy_has_no_exception(client: httpx.AsyncClient) -> None:
    """No inline script or style, no other server, no frame around the page; and the page has neither."""
    page = await client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert "'none'" == policy["default-src"] == policy["frame-ancestors"] == policy["form-action"]
    assert {"'self'"} == {policy[f"{kind}-src"] for kind in ("script", "style", "connect")}
    assert "unsafe" not in page.headers["content-security-policy"]
    assert not re.search(r"<style|\sstyle=|<[^>]+\son\w+=|<script(?![^>]*\ssrc=)", page.text)


async def test_a_known_page_is_not_sent_again(client: httpx.AsyncClient) -> None:
    """A browser asks at each visit, so an upgrade shows at once, and the answer is 304."""
    for path in ("/", "/page/page.js"):
        first = await client.get(path)
        assert "no-cache" == first.headers["cache-control"]
        again = await client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (304, b"", first.headers["etag"]) == (again.status_code, again.content, again.headers["etag"])
        head = await client.head(path)
        assert (200, first.headers["etag"]) == (head.status_code, head.headers["etag"])


async def test_without_the_page_the_root_leads_to_the_documentation(tmp_path: Path) -> None:
    """As before the page was made."""
    async with application(tmp_path, page=False) as (client, _):
        assert (307, "/docs") == ((root := await client.get("/")).status_code, root.headers["location"])
        assert 404 == (await client.get("/page/page.js")).status_code


def test_the_files_are_small() -> None:
    """A visit over a mobile network loads all of them."""
    assert sum(len(file.content) for file in page_files().values()) < 150_000
