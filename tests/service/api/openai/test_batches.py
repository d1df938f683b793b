"""/v1/files and /v1/batches, with the real `openai` client against a running server."""

import base64
import io
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import (
    APIStatusError,
    AsyncOpenAI,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)
from openai.types import Batch
from PIL import Image

from tests.support.commands import anyclass
from tests.support.http_server import HttpServer, http_server
from tests.support.places import ROOT
from tests.support.redis_server import running_redis
from tests.support.tiny_bundle import write_tiny_bundle
from tests.support.waiting import wait_until

PATIENCE_S = 60.0
CLASSIFY: Any = "/v1/classify"
PAGE = ROOT / "docs/batch-jobs.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """A server with a state directory of its own and small limits."""
    folder = tmp_path_factory.mktemp("server")
    env = {
        "ANYCLASS_STATE_URL": str(folder / "state"),
        "ANYCLASS_MAX_FILE_BYTES": "200000",
        "ANYCLASS_MAX_JOB_LINES": "200",
    }
    with http_server(write_tiny_bundle(folder / "bundle"), folder, env=env) as server:
        yield server


@pytest.fixture
def client(server: HttpServer) -> Iterator[OpenAI]:
    """Create a client without retries."""
    with client_of(server) as client:
        yield client


@contextmanager
def client_of(server: HttpServer) -> Iterator[OpenAI]:
    """The client of a server."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def picture(shade: int = 255) -> str:
    """Make a small image in base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def line(number: int, **changes: Any) -> dict[str, Any]:
    """Make a line that asks for a classification."""
    body = {"image": picture(number % 256), "labels": ["red", "green"]}
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/classify", "body": body, **changes}


def jsonl(*lines: object) -> tuple[str, bytes]:
    """Make a file as the client expects it."""
    return "in.jsonl", b"\n".join(json.dumps(each).encode() for each in lines)


def begin(client: OpenAI, *lines: object, endpoint: Any = CLASSIFY) -> Batch:
    """Run a batch of lines."""
    file = client.files.create(file=jsonl(*lines), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def ended(client: OpenAI, batch: Batch) -> Batch:
    """Wait for the end of a batch."""
    end = time.monotonic() + PATIENCE_S
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert time.monotonic() < end
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    return batch


def lines_of(client: OpenAI, file_id: str | None) -> list[Any]:
    """Read the lines of a file of results."""
    assert file_id is not None
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]


def code_of(error: APIStatusError) -> Any:
    """Check that an error has OpenAI's form; return its code."""
    assert isinstance(error.body, dict)
    assert {"message", "type", "param", "code"} == set(error.body)
    return error.body["code"]


def test_files_are_kept_as_they_were_sent(client: OpenAI) -> None:
    """Created, retrieved, listed, read and deleted."""
    name, content = jsonl(line(1), line(2))
    began = int(time.time())
    file = client.files.create(file=(name, content), purpose="batch")
    assert ("file", name, "batch", len(content)) == (file.object, file.filename, file.purpose, file.bytes)
    assert began <= file.created_at
    assert 30 * 24 * 3600 == (file.expires_at or 0) - file.created_at
    assert file == client.files.retrieve(file.id)
    assert content == client.files.content(file.id).read()
    assert str(len(content)) == httpx.head(f"{client.base_url}files/{file.id}/content").headers["content-length"]
    assert file.id in [each.id for each in client.files.list(purpose="batch")]
    deleted = client.files.delete(file.id)
    assert (file.id, True) == (deleted.id, deleted.deleted)
    with pytest.raises(NotFoundError) as caught:
        client.files.retrieve(file.id)
    assert "unknown_object" == code_of(caught.value)


def test_a_file_may_be_kept_for_less(client: OpenAI) -> None:
    """The client sets the time."""
    file = client.files.create(
        file=jsonl(line(1)), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert 3600 == (file.expires_at or 0) - file.created_at


def test_a_batch_of_pictures(client: OpenAI) -> None:
    """Answers have the input's order; an unreadable image is in the error file, with the route's error."""
    lines = [line(number) for number in range(80)]
    lines[40]["body"]["image"] = "AAAA"
    batch = begin(client, *lines)
    assert ("batch", "validating", CLASSIFY, "24h") == (
        batch.object,
        batch.status,
        batch.endpoint,
        batch.completion_window,
    )
    batch = ended(client, batch)
    assert "completed" == batch.status
    assert batch.request_counts is not None
    assert (80, 79, 1) == (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed)
    assert batch.in_progress_at is not None
    assert batch.finalizing_at is not None
    assert batch.completed_at is not None
    output = lines_of(client, batch.output_file_id)
    assert [each["custom_id"] for number, each in enumerate(lines) if number != 40] == [
        each["custom_id"] for each in output
    ]
    first = output[0]["response"]
    assert ({"red", "green"}, 200) == ({each["label"] for each in first["body"]["predictions"]}, first["status_code"])
    (error,) = lines_of(client, batch.error_file_id)
    assert ("line-40", 415, "urn:anyclass:problem:unsupported-image-format") == (
        error["custom_id"],
        error["response"]["status_code"],
        error["response"]["body"]["type"],
    )
    assert batch.output_file_id is not None
    assert "batch_output" == client.files.retrieve(batch.output_file_id).purpose


def test_an_answer_is_what_the_route_itself_answers(client: OpenAI, server: HttpServer) -> None:
    """A line and a request with the same body have the same predictions; so have lines of embeddings."""
    asked = line(7)
    (answered,) = lines_of(client, ended(client, begin(client, asked)).output_file_id)
    alone = httpx.post(f"{server.url}/v1/classify", json=asked["body"]).json()
    assert alone["predictions"] == answered["response"]["body"]["predictions"]
    body = {"model": "tiny", "input": ["a", {"image": picture()}], "encoding_format": "base64"}
    lines = [line(1, url="/v1/embeddings", body=body)]
    (answered,) = lines_of(client, ended(client, begin(client, *lines, endpoint="/v1/embeddings")).output_file_id)
    assert httpx.post(f"{server.url}/v1/embeddings", json=body).json() == answered["response"]["body"]


def test_a_line_may_have_nulls_and_a_byte_order_mark(client: OpenAI) -> None:
    """As the routes themselves take them."""
    body = {"input": "red", "model": None, "encoding_format": None, "dimensions": None, "user": None}
    name, content = jsonl(line(1, url="/v1/embeddings", body=body))
    file = client.files.create(file=(name, b"\xef\xbb\xbf" + content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    batch = ended(client, batch)
    assert "completed" == batch.status, batch.errors
    (answer,) = lines_of(client, batch.output_file_id)
    assert isinstance(answer["response"]["body"]["data"][0]["embedding"], list)


def test_a_line_of_results_is_one_line_for_every_client(client: OpenAI) -> None:
    """`splitlines` ends a line at more than line feeds; no label breaks a line."""
    asked = line(7, custom_id="a\u2028b")
    asked["body"]["labels"] = ["red\u2028or so", "green"]
    (answered,) = lines_of(client, ended(client, begin(client, asked)).output_file_id)
    assert "a\u2028b" == answered["custom_id"]
    assert {"red\u2028or so", "green"} == {each["label"] for each in answered["response"]["body"]["predictions"]}


def test_a_line_of_embeddings_fails_in_openais_words(client: OpenAI) -> None:
    """The body has the route's error."""
    lines = [line(1, url="/v1/embeddings", body={"model": "other", "input": "a"})]
    (error,) = lines_of(client, ended(client, begin(client, *lines, endpoint="/v1/embeddings")).error_file_id)
    assert (404, "model_not_found") == (
        error["response"]["status_code"],
        error["response"]["body"]["error"]["code"],
    )


def test_a_file_that_is_not_valid_fails_the_batch(client: OpenAI) -> None:
    """The errors name lines."""
    batch = ended(client, begin(client, line(1), line(2, method="GET"), line(3), line(1)))
    assert "failed" == batch.status
    assert batch.errors is not None
    assert [(2, "invalid_method", "method"), (4, "duplicate_custom_id", "custom_id")] == [
        (each.line, each.code, each.param) for each in batch.errors.data or []
    ]
    assert batch.output_file_id is None


def test_too_many_lines_fail_the_batch(client: OpenAI) -> None:
    """The limit is a setting."""
    batch = ended(client, begin(client, *(line(number) for number in range(201))))
    assert batch.errors is not None
    assert ["too_many_requests"] == [each.code for each in batch.errors.data or []]


def test_batches_are_listed_page_by_page(client: OpenAI) -> None:
    """Newest first; the client follows the pages."""
    made = [begin(client, line(1)).id for _ in range(5)]
    assert made[::-1] == [each.id for each in client.batches.list(limit=2)][:5]
    page = client.batches.list(limit=2, after=made[3])
    assert made[2:0:-1] == [each.id for each in page.data]
    assert page.has_more


def test_files_are_listed_page_by_page(client: OpenAI) -> None:
    """In either order."""
    made = [client.files.create(file=jsonl(line(1)), purpose="batch").id for _ in range(3)]
    assert made[::-1] == [each.id for each in client.files.list(limit=2, purpose="batch")][:3]
    assert made[1:] == [each.id for each in client.files.list(after=made[0], order="asc")]


def test_cancelling(client: OpenAI) -> None:
    """A batch ends early and keeps its results; one that has ended cannot be cancelled, and the client asks once."""
    batch = begin(client, *(line(number) for number in range(200)))
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(client, batch)
    assert "cancelled" == batch.status
    assert batch.cancelled_at is not None
    with client.with_options(max_retries=5) as patient, pytest.raises(ConflictError) as caught:
        patient.batches.cancel(batch.id)
    assert "conflict" == code_of(caught.value)
    assert "0" == caught.value.request.headers["x-stainless-retry-count"]


def test_metadata_is_given_back(client: OpenAI) -> None:
    """It is returned unchanged; too much of it is refused."""
    file = client.files.create(file=jsonl(line(1)), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint=CLASSIFY, completion_window="24h", metadata={"run": "ü"}
    )
    assert {"run": "ü"} == client.batches.retrieve(batch.id).metadata
    for wrong in ({str(number): "" for number in range(17)}, {"k" * 65: ""}, {"k": "v" * 513}, {"k": "\ud800"}):
        asked = {"input_file_id": file.id, "endpoint": "/v1/classify", "completion_window": "24h", "metadata": wrong}
        answer = httpx.post(  # the client cannot send a lone surrogate
            f"{client.base_url}batches", content=json.dumps(asked), headers={"content-type": "application/json"}
        )
        assert 400 == answer.status_code
        assert answer.json()["error"]["param"].startswith("metadata")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input_file_id": "file-" + "0" * 32}, "input_file_id"),
        ({"input_file_id": "../etc/passwd"}, "input_file_id"),
        ({"endpoint": "/v1/completions"}, "endpoint"),
        ({"completion_window": "7d"}, "completion_window"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(client: OpenAI, changes: dict[str, Any], param: str) -> None:
    """With the field at fault."""
    file = client.files.create(file=jsonl(line(1)), purpose="batch")
    with pytest.raises(BadRequestError) as caught:
        client.batches.create(
            **{"input_file_id": file.id, "endpoint": "/v1/classify", "completion_window": "24h", **changes}
        )
    assert param == caught.value.param


def test_a_file_of_results_is_no_input(client: OpenAI) -> None:
    """Only what was sent for a batch."""
    batch = ended(client, begin(client, line(1)))
    assert batch.output_file_id is not None
    with pytest.raises(BadRequestError):
        client.batches.create(input_file_id=batch.output_file_id, endpoint=CLASSIFY, completion_window="24h")


def test_what_is_not_there_is_not_found(client: OpenAI) -> None:
    """Unknown ids, and strings that are no ids."""
    for call in (
        lambda: client.batches.retrieve("batch_" + "0" * 32),
        lambda: client.batches.cancel("nonsense"),
        lambda: client.files.content("file-" + "0" * 32),
        lambda: client.files.delete("nonsense"),
    ):
        with pytest.raises(NotFoundError) as caught:
            call()
        assert "unknown_object" == code_of(caught.value)


def test_uploads_that_are_refused(client: OpenAI, server: HttpServer) -> None:
    """Too large, for another purpose, without a file, or no form: nothing is kept."""
    kept = len(client.files.list().data)
    with pytest.raises(APIStatusError) as too_large:
        client.files.create(file=("big.jsonl", b"x" * 200_001), purpose="batch")
    assert 413 == too_large.value.status_code
    with pytest.raises(APIStatusError) as far_too_large:
        client.files.create(file=("big.jsonl", b"x" * 2_000_000), purpose="batch")
    assert 413 == far_too_large.value.status_code
    with pytest.raises(BadRequestError) as caught:
        client.files.create(file=jsonl(line(1)), purpose="fine-tune")
    assert "purpose" == caught.value.param
    url = f"{server.url}/v1/files"
    assert 400 == httpx.post(url, data={"purpose": "batch"}, files={"other": ("a", b"a")}).status_code
    assert 400 == httpx.post(url, data={"purpose": "batch", "x": "y"}, files={"file": ("a", b"a")}).status_code
    assert 400 == httpx.post(url, files={"file": ("a", b"a")}).status_code
    twice = httpx.post(url, data={"purpose": "batch", "purposes[]": ["y", "z"]}, files={"file": ("a", b"a")})
    assert "purposes[]: is not a field of this request (did you mean purpose?)" in twice.json()["error"]["message"]
    assert 415 == httpx.post(url, content=b"{}", headers={"content-type": "application/json"}).status_code
    cut = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert 400 == httpx.post(url, content=cut, headers=headers).status_code
    assert kept == len(client.files.list().data)


def test_all_files_together_have_a_limit(tmp_path: Path) -> None:
    """More is refused with 507 and advice, by its length or while it arrives; nothing is kept. Batches still finish."""
    state = tmp_path / "state"
    env = {"ANYCLASS_STATE_URL": str(state), "ANYCLASS_MAX_TOTAL_FILE_BYTES": "3000000"}

    def content() -> list[Path]:
        return [path for path in (state / "state-v1/blobs/files").rglob("*") if path.is_file()]

    with (
        http_server(write_tiny_bundle(tmp_path / "bundle"), tmp_path, env=env) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        file = client.files.create(file=jsonl(line(1)), purpose="batch")
        filling = client.files.create(file=("big.jsonl", b"x" * (3_000_000 - file.bytes)), purpose="batch")
        kept = content()
        for size in (4_000_000, 1_000):  # the first by its Content-Length, the second by what has come
            with pytest.raises(InternalServerError, match="Delete files that are no longer needed") as caught:
                client.files.create(file=("more.jsonl", b"x" * size), purpose="batch")
            assert (507, "state_full") == (caught.value.status_code, code_of(caught.value))
        assert kept == content()
        # The client did not retry, as it does after most server errors.
        server.settle_log()
        assert 4 == len([each for each in server.logs() if each["event"] == "request" and each["path"] == "/v1/files"])
        batch = client.batches.create(input_file_id=file.id, endpoint=CLASSIFY, completion_window="24h")
        batch = ended(client, batch)
        assert 1 == len(lines_of(client, batch.output_file_id))
        client.files.delete(filling.id)
        assert client.files.create(file=("more.jsonl", b"x" * 1_000), purpose="batch").id


def test_an_idempotency_key_makes_one_object(client: OpenAI) -> None:
    """The same request again gives the same file and the same batch; another request with the key is refused."""
    key = {"Idempotency-Key": f"key {time.time()}"}
    file = client.files.create(file=jsonl(line(1)), purpose="batch", extra_headers=key)
    assert file == client.files.create(file=jsonl(line(1)), purpose="batch", extra_headers=key)
    with pytest.raises(ConflictError):
        client.files.create(file=jsonl(line(2)), purpose="batch", extra_headers=key)
    asked: dict[str, Any] = {"input_file_id": file.id, "endpoint": CLASSIFY, "completion_window": "24h"}
    batch = client.batches.create(**asked, extra_headers=key)
    assert batch.id == client.batches.create(**asked, extra_headers=key).id
    with pytest.raises(ConflictError):
        client.batches.create(**asked, metadata={"a": "b"}, extra_headers=key)
    with pytest.raises(BadRequestError):
        client.batches.create(**asked, extra_headers={"Idempotency-Key": "k" * 256})


async def test_the_asynchronous_client(server: HttpServer) -> None:
    """It gets the same answers."""
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        file = await client.files.create(file=jsonl(line(1)), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint=CLASSIFY, completion_window="24h")
        assert batch.id == (await client.batches.retrieve(batch.id)).id
        assert batch.id in [each.id async for each in client.batches.list()]


def test_only_so_many_batches_wait(tmp_path: Path) -> None:
    """One more is refused until another has ended. Without workers none ends here."""
    env = {
        "ANYCLASS_STATE_URL": str(tmp_path / "state"),
        "ANYCLASS_MAX_ACTIVE_JOBS": "1",
        "ANYCLASS_JOB_WORKERS": "0",
    }
    with http_server(write_tiny_bundle(tmp_path / "bundle"), tmp_path, env=env) as server, client_of(server) as client:
        batch = begin(client, line(1))
        with pytest.raises(RateLimitError):
            begin(client, line(1))
        with pytest.raises(ConflictError):
            client.files.delete(batch.input_file_id)


def test_a_state_store_that_is_away(tmp_path: Path) -> None:
    """Files and batches answer 503 in OpenAI's form, classification goes on, and so does the batch later."""
    with running_redis(tmp_path) as redis:
        env = {"ANYCLASS_STATE_URL": redis.url, "ANYCLASS_STATE_TIMEOUT_S": "0.3", "ANYCLASS_JOB_LEASE_S": "3"}
        with (
            http_server(write_tiny_bundle(tmp_path / "bundle"), tmp_path, env=env) as server,
            client_of(server) as client,
        ):
            batch = begin(client, line(1))
            redis.freeze()
            with pytest.raises(InternalServerError) as asked:
                client.batches.retrieve(batch.id)
            with pytest.raises(InternalServerError) as sent:
                begin(client, line(1))
            for caught in (asked, sent):
                assert (503, "state_unavailable") == (caught.value.status_code, code_of(caught.value))
            assert 200 == httpx.post(f"{server.url}/v1/classify", json=line(1)["body"]).status_code
            assert 200 == httpx.get(f"{server.url}/readyz").status_code
            redis.thaw()
            wait_until(lambda: 200 == httpx.get(f"{server.url}/v1/batches/{batch.id}").status_code)
            assert "completed" == ended(client, client.batches.retrieve(batch.id)).status


def test_a_server_without_a_state_store(tmp_path: Path) -> None:
    """It reports this once at the start and in its metrics; routes that need the store fail at once, others work."""
    (tmp_path / "blocked").write_text("not a folder")
    env = {"XDG_DATA_HOME": str(tmp_path / "blocked")}
    with http_server(write_tiny_bundle(tmp_path / "bundle"), tmp_path, env=env) as server, client_of(server) as client:
        with pytest.raises(InternalServerError) as caught:
            begin(client.with_options(max_retries=5), line(1))
        set_path = f"{server.url}/v1/label-sets/colours"
        answers: list[Any] = [
            caught.value.response,
            httpx.put(set_path, json={"labels": ["red"]}),
            httpx.get(set_path),
            httpx.get(f"{server.url}/v1/label-sets"),
            httpx.get(f"{server.url}/v1/batches"),
        ]
        for answer in answers:
            assert 503 == answer.status_code
            assert "no usable state store; its operator can set ANYCLASS_STATE_URL" in answer.text
            assert ("false", None) == (answer.headers["x-should-retry"], answer.headers.get("retry-after"))
        put = anyclass("label-sets", "put", "colours", "--labels", "red", "--url", server.url)
        assert (1, "Error: This server has no usable state store; its operator can set ANYCLASS_STATE_URL.\n") == (
            put.returncode,
            put.stderr,
        )
        assert 200 == httpx.post(f"{server.url}/v1/classify", json=line(1)["body"]).status_code
        assert "\nanyclass_state_up -1.0\n" in httpx.get(f"{server.url}/metrics").text
        server.settle_log()
        uploads = [each for each in server.logs() if each.get("path") == "/v1/files"]
        warnings = [each["event"] for each in server.logs() if each["level"] == "warning"]
    assert 1 == len(uploads)
    assert [True] == ["ANYCLASS_STATE_URL" in warning for warning in warnings if "state" in warning]


def test_nothing_of_a_file_is_logged(client: OpenAI, server: HttpServer) -> None:
    """Neither ids of lines nor labels."""
    secret = line(1, custom_id="a-secret-id")
    secret["body"]["labels"] = ["a-secret-label", "b"]
    broken = line(2, custom_id="a-secret-id")
    assert "completed" == ended(client, begin(client, secret)).status
    assert "failed" == ended(client, begin(client, secret, broken)).status
    server.settle_log()
    assert "secret" not in server.raw_log()


def test_the_page_of_the_documentation_is_true(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines of Python run as they stand in a clone, one after the other."""
    monkeypatch.chdir(PAGE.parents[1])
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert blocks
    code = "\n".join(blocks).replace("http://localhost:8000", server.url)
    assert server.url in code
    scope: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), scope)  # noqa: S102 - our own page
    assert "completed" == scope["batch"].status
    assert {"photo-1", "photo-2"} == {each["custom_id"] for each in scope["answers"]}
    scope["client"].close()
