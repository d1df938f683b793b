"""Archives and streams of images, sent over real connections to a real process."""

import gzip
import io
import json
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.api.native.schemas import BatchAnswer, BatchResult
from tests.service.images.test_archives import tar, zipped
from tests.support.classifying import picture
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle
from tests.support.waiting import wait_until

MAX_BODY, MAX_ARCHIVE, MAX_IMAGES, MAX_ARCHIVE_IMAGES = 30_000, 2_000_000, 4, 300
LINES = {"accept": "application/x-ndjson"}
QUERY = {"labels": ["red", "green", "blue"], "top_k": "1"}
RED, GREEN, BLUE = (picture(colour) for colour in ("red", "green", "blue"))
FILES = (("a/red.png", RED), ("notes.txt", b"text"), ("b/green.png", GREEN))
EXPECTED = [(0, "a/red.png", "red"), (1, "notes.txt", None), (2, "b/green.png", "green")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """One process with small limits."""
    folder = tmp_path_factory.mktemp("batch")
    bundle = write_tiny_bundle(folder / "bundle")
    env = {
        "ANYCLASS_MAX_BODY_BYTES": str(MAX_BODY),
        "ANYCLASS_MAX_ARCHIVE_BYTES": str(MAX_ARCHIVE),
        "ANYCLASS_MAX_BATCH_IMAGES": str(MAX_IMAGES),
        "ANYCLASS_MAX_ARCHIVE_IMAGES": str(MAX_ARCHIVE_IMAGES),
        "ANYCLASS_MAX_BATCH_REQUESTS": "2",
        "ANYCLASS_MAX_ANSWER_BYTES": "50000",
        "ANYCLASS_REQUEST_TIMEOUT_S": "20",
    }
    with http_server(bundle, folder, env=env) as running:
        yield running


@pytest.fixture
def client(server: HttpServer) -> Iterator[httpx.Client]:
    """Connect a client to that process."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def post(client: httpx.Client, content: Any, kind: str = "application/x-tar", **options: Any) -> httpx.Response:
    """Send an archive as the body."""
    headers = {"content-type": kind, **options.pop("headers", {})}
    return client.post("/v1/classify/batch", content=content, params=QUERY, headers=headers, **options)


def slug(answer: httpx.Response) -> str:
    """Return the slug of a problem."""
    assert "application/problem+json" == answer.headers["content-type"]
    return str(answer.json()["type"]).rpartition(":")[2]


def rows(results: list[BatchResult]) -> list[tuple[int, str | None, str | None]]:
    """Return index, name and best label of each result."""
    return [(each.index, each.name, each.predictions[0].label if each.predictions else None) for each in results]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (tar, "application/x-tar"),
        (lambda files: tar(files, mode="w:gz"), "application/gzip"),
        (lambda files: tar(files, mode="w:gz"), "application/x-tar"),
        (tar, "application/tar"),
        (tar, "application/octet-stream"),
        (zipped, "application/zip"),
        (zipped, "application/x-zip-compressed; charset=binary"),
    ],
)
def test_an_archive_is_answered_in_order_with_names(
    client: httpx.Client, make: Callable[[Any], bytes], kind: str
) -> None:
    """One document, lines, and a form have the same results; a file that is no image fails no other."""
    data = make(FILES)
    document = post(client, data, kind)
    assert 200 == document.status_code
    assert EXPECTED == rows(BatchAnswer.model_validate(document.json()).results)
    assert [*list(document.json()), "warnings"] == list(BatchAnswer.model_fields)
    assert ["index", "name", "error"] == list(document.json()["results"][1])
    lines = post(client, data, kind, headers=LINES)
    assert "application/x-ndjson" == lines.headers["content-type"]
    assert EXPECTED == rows([BatchResult.model_validate_json(line) for line in lines.text.splitlines()])
    form = client.post("/v1/classify/batch", files={"archive": ("x", data)}, data={"labels": QUERY["labels"]})
    assert EXPECTED == rows(BatchAnswer.model_validate(form.json()).results)


def test_an_archive_may_be_larger_than_a_body(client: httpx.Client) -> None:
    """It is not held in memory; the limit of a body applies to each of its images."""
    files = [(f"{number}.png", RED + bytes(20_000)) for number in range(80)] + [("big", bytes(MAX_BODY + 1))]
    data = tar(files)
    assert len(data) > 50 * MAX_BODY
    results = [json.loads(line) for line in post(client, data, headers=LINES).text.splitlines()]
    assert list(range(81)) == [result["index"] for result in results]
    assert {"red"} == {result["predictions"][0]["label"] for result in results[:80]}
    assert "payload-too-large" == results[80]["error"]["type"].rpartition(":")[2]


def test_results_come_while_the_archive_is_sent(server: HttpServer) -> None:
    """The first line arrives before the second half of the upload is sent."""
    data = tar([(f"{number}.png", RED) for number in range(100)], kind=tarfile.USTAR_FORMAT)
    half = len(data) // 2
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/classify/batch?labels=red&labels=blue HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Accept: application/x-ndjson\r\nContent-Type: application/x-tar\r\n"
            b"Content-Length: %d\r\n\r\n" % len(data)
        )
        connection.sendall(data[:half])
        received = b""
        while b'"index":0' not in received:
            piece = connection.recv(65_536)
            assert piece, received
            received += piece
        connection.sendall(data[half:])
        while piece := connection.recv(65_536):
            received += piece
    assert b'"index":99' in received


def test_a_client_that_reads_nothing_until_it_has_sent_everything(client: httpx.Client) -> None:
    """Most clients do so; long answers must not stop their upload."""
    labels = [f"l{number}" for number in range(1_500)]
    data = tar([(f"{number}.png", RED + bytes(2_000)) for number in range(200)])
    answer = client.post(
        "/v1/classify/batch",
        content=(data[start : start + 10_000] for start in range(0, len(data), 10_000)),
        params={"labels": json.dumps(labels), "templates": "none"},
        headers={"content-type": "application/x-tar", **LINES},
    )
    results = [json.loads(line) for line in answer.text.splitlines()]
    assert [1_500] * 200 == [len(result["predictions"]) for result in results]


def test_limits_on_the_number_of_images(client: httpx.Client) -> None:
    """Lines allow more images than a document, which is held in memory."""
    some = zipped([(str(number), RED) for number in range(MAX_IMAGES + 1)])
    assert "payload-too-large" == slug(post(client, some, "application/zip"))
    assert MAX_IMAGES + 1 == len(post(client, some, "application/zip", headers=LINES).text.splitlines())
    many = tar([(str(number), RED) for number in range(MAX_ARCHIVE_IMAGES + 1)])
    *results, last = map(json.loads, post(client, many, headers=LINES).text.splitlines())
    assert MAX_ARCHIVE_IMAGES == len(results)
    assert ["error"] == list(last)
    assert 413 == last["error"]["status"]


@pytest.mark.parametrize("kind", ["application/x-tar", "application/gzip", "application/zip"])
@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
@pytest.mark.parametrize("content", [b"", b"nonsense" * 100, b"PK\x03\x04nonsense", b"\x1f\x8bnonsense", RED])
def test_what_is_not_an_archive(client: httpx.Client, kind: str, accept: str, content: bytes) -> None:
    """It is answered with a problem and its status, for lines too."""
    answer = post(client, content, kind, headers={"accept": accept})
    assert (400, "malformed-request") == (answer.status_code, slug(answer))


def test_too_many_bytes(client: httpx.Client) -> None:
    """Counted by declared length, by bytes received, and by bytes unpacked."""

    def endless() -> Iterator[bytes]:
        member = tarfile.TarInfo("a")
        member.size = 10**12
        yield member.tobuf(tarfile.GNU_FORMAT)
        for _ in range(400):
            yield bytes(10_000)

    assert "payload-too-large" == slug(post(client, bytes(MAX_ARCHIVE + 1)))
    assert "payload-too-large" == slug(post(client, endless()))
    bomb = tar([("a", bytes(2 * MAX_ARCHIVE))], mode="w:gz")
    assert "payload-too-large" == slug(post(client, bomb, "application/gzip"))
    bomb = zipped([(str(number), bytes(MAX_BODY)) for number in range(100)])
    last = json.loads(post(client, bomb, "application/zip", headers=LINES).text.splitlines()[-1])
    assert 413 == last["error"]["status"]


@pytest.mark.parametrize("rest", [452, 0, 512], ids=["in-a-file", "between-files", "one-block-of-zeros"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_an_archive_that_breaks_off(client: httpx.Client, rest: int, pack: Callable[[bytes], bytes]) -> None:
    """Earlier images are answered and the last line has the error. A document is refused, in a form too."""
    whole = tar([("a.png", RED), ("b.png", GREEN), ("c.png", BLUE)], kind=tarfile.USTAR_FORMAT)
    data = pack(whole[:2_048] + (bytes(512) if rest == 512 else whole[2_048 : 2_048 + rest]))
    *results, last = map(json.loads, post(client, data, headers=LINES).text.splitlines())
    assert [(0, "red"), (1, "green")] == [(each["index"], each["predictions"][0]["label"]) for each in results]
    assert ["error"] == list(last)
    assert 400 == last["error"]["status"]
    for answer in (
        post(client, data),
        client.post("/v1/classify/batch", files={"archive": ("x", data)}, data={"labels": QUERY["labels"]}),
    ):
        assert (400, "malformed-request") == (answer.status_code, slug(answer))


@pytest.mark.parametrize(
    ("files", "field"),
    [
        ([("archive", b"x"), ("image", RED)], "archive"),
        ([("archive", b"x"), ("archive", b"x")], "archive"),
        ([("picture", RED)], "picture"),
        ([], "image"),
    ],
)
def test_forms_that_make_no_sense(client: httpx.Client, files: list[tuple[str, bytes]], field: str) -> None:
    """One archive, or images; not both."""
    parts: list[tuple[str, tuple[str | None, bytes]]] = [(name, ("x", content)) for name, content in files]
    answer = client.post("/v1/classify/batch", files=[*parts, ("labels", (None, b"red"))])
    assert [field] == [each["field"] for each in answer.json()["errors"]]


def test_bad_fields_are_refused_before_the_archive_is_read(client: httpx.Client) -> None:
    """They are in the query."""
    answer = client.post("/v1/classify/batch", content=b"", headers={"content-type": "application/zip"})
    assert (422, "invalid-request") == (answer.status_code, slug(answer))
    assert "not-acceptable" == slug(post(client, b"", headers={"accept": "text/html"}))


def test_a_client_that_goes_has_its_work_dropped(server: HttpServer, client: httpx.Client) -> None:
    """Abandoned uploads do not block others (this server allows two at the same time)."""
    data = tar([(f"{number}.png", RED) for number in range(100)])
    parts = urlsplit(server.url)
    for accept in (b"application/json", b"application/x-ndjson") * 3:
        with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
            connection.sendall(
                b"POST /v1/classify/batch?labels=red HTTP/1.1\r\nHost: x\r\nAccept: " + accept + b"\r\n"
                b"Content-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n4000\r\n" + data[:0x4000]
            )
    answers: list[httpx.Response] = []

    def answered() -> bool:
        answers.append(post(client, tar(FILES)))
        return answers[-1].status_code == HTTPStatus.OK

    wait_until(answered)
    answer = answers[-1]
    assert EXPECTED == rows(BatchAnswer.model_validate(answer.json()).results)


def test_openapi_has_the_archives(client: httpx.Client) -> None:
    """Each content type is documented, and the query's fields with them."""
    operation = client.get("/openapi.json").json()["paths"]["/v1/classify/batch"]["post"]
    assert {
        "application/json",
        "multipart/form-data",
        "application/x-tar",
        "application/gzip",
        "application/zip",
    } == set(operation["requestBody"]["content"])
    assert "labels" in {parameter["name"] for parameter in operation["parameters"]}


def test_names_are_never_paths(client: httpx.Client) -> None:
    """They are returned unchanged."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../../tmp/anyclass-evil.png", RED)
    answer = post(client, stream.getvalue(), "application/zip")
    assert ["../../../tmp/anyclass-evil.png"] == [each["name"] for each in answer.json()["results"]]


def test_a_line_of_results_is_one_line_for_every_client(client: httpx.Client) -> None:
    """No character of a label or name breaks it; httpx and many others end a line at U+2028 too."""
    files = [("a\u2028b\x85c.png", RED), ("d.png", GREEN)]
    params = {"labels": ["red\u2028or so", "green"]}
    answer = client.post(
        "/v1/classify/batch", content=tar(files), params=params, headers={"content-type": "application/x-tar", **LINES}
    )
    results = [json.loads(each) for each in answer.text.splitlines()]
    assert [name for name, _ in files] == [each["name"] for each in results]
    assert {"red\u2028or so", "green"} == {each["label"] for each in results[0]["predictions"]}


def test_an_answer_has_a_limit_unless_it_comes_in_lines(client: httpx.Client) -> None:
    """Too many predictions for one document are refused, with advice."""
    params = {"labels": [f"label {number}" for number in range(400)]}
    headers = {"content-type": "application/x-tar"}
    content = tar([(str(number), RED) for number in range(MAX_IMAGES)])
    refused = client.post("/v1/classify/batch", content=content, params=params, headers=headers)
    assert (422, "invalid-request") == (refused.status_code, slug(refused))
    assert "top_k" in refused.json()["detail"]
    assert 200 == client.post("/v1/classify/batch", content=content, params=QUERY, headers=headers).status_code
    lines = client.post("/v1/classify/batch", content=content, params=params, headers=headers | LINES)
    assert [400] * MAX_IMAGES == [len(json.loads(each)["predictions"]) for each in lines.text.splitlines()]
