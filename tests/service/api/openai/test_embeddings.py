"""OpenAI's own client against a real server."""

import base64
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest

from service.api.openai.embeddings import EXAMPLES
from service.api.openai.schemas import EmbeddingOut, EmbeddingsAnswer
from service.api.problems.schemas import OpenAIError
from tests.support.classifying import picture
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import DIM, write_tiny_bundle

RED_64 = base64.b64encode(picture("red")).decode()
RED_URI = f"data:image/png;base64,{RED_64}"
ROUTE = "/v1/embeddings"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """One process for all tests of this module."""
    folder = tmp_path_factory.mktemp("openai")
    bundle = write_tiny_bundle(folder / "bundle", aliases=("acme/tiny",))
    limits = {"ANYCLASS_MAX_BODY_BYTES": "200000", "ANYCLASS_MAX_BATCH_IMAGES": "40", "ANYCLASS_MAX_EMBED_TEXTS": "50"}
    with http_server(bundle, folder, env=limits) as running:
        yield running


@pytest.fixture
def client(server: HttpServer) -> Iterator[openai.OpenAI]:
    """Create the client as its users do."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def plain(server: HttpServer) -> Iterator[httpx.Client]:
    """Connect a plain client, for requests that OpenAI's client never sends."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def test_texts(client: openai.OpenAI) -> None:
    """One vector of unit length for each text, in order; the same text has the same vector however it is asked for."""
    answer = client.embeddings.create(model="tiny", input=["red", "green", "red"])
    assert "tiny" == answer.model
    assert [0, 1, 2] == [each.index for each in answer.data]
    vectors = np.array([each.embedding for each in answer.data])
    assert (3, DIM) == vectors.shape
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    (alone,) = client.embeddings.create(model="acme/tiny", input="red").data
    np.testing.assert_allclose(vectors[0], alone.embedding, atol=1e-6)


def test_numbers_and_base64_are_the_same_vector(client: openai.OpenAI) -> None:
    """The client requests base64 by default; numbers give exactly the same float32."""
    unset = client.embeddings.create(model="tiny", input="a red rose").data[0].embedding
    numbers = client.embeddings.create(model="tiny", input="a red rose", encoding_format="float").data[0].embedding
    np.testing.assert_array_equal(np.array(unset, np.float32), np.array(numbers, np.float32))
    assert len(set(numbers)) > 3


def test_base64_is_little_endian_float32(plain: httpx.Client) -> None:
    """The answer has the schema, and decodes to a vector of unit length."""
    request = {"model": "tiny", "input": "red", "encoding_format": "base64"}
    answer = plain.post(ROUTE, json=request).json()
    (encoded,) = EmbeddingsAnswer.model_validate(answer).data
    assert list(EmbeddingsAnswer.model_fields) == list(answer)
    assert list(EmbeddingOut.model_fields) == list(answer["data"][0])
    assert isinstance(encoded.embedding, str)
    decoded = np.frombuffer(base64.b64decode(encoded.embedding), "<f4")
    assert (DIM,) == decoded.shape
    assert 1 == pytest.approx(np.linalg.norm(decoded), abs=1e-5)


def test_images_and_texts_are_in_one_space(client: openai.OpenAI) -> None:
    """An image may be a data URI or an object, among texts, and is nearest to the text that names it."""
    inputs: list[object] = ["green", RED_URI, "red", {"image": RED_64}, {"image": RED_URI}]
    answer = client.embeddings.create(model="tiny", input=inputs)  # type: ignore[arg-type]
    green, uri, red, *others = (np.array(each.embedding) for each in answer.data)
    for other in others:
        np.testing.assert_array_equal(uri, other)
    assert uri @ red > 0.5
    assert uri @ green < 0


def test_many_images(client: openai.OpenAI) -> None:
    """More images than one batch of the device: each has its own vector, in order."""
    colours = ["red", "green", "blue", "white"] * 10
    images = [{"image": base64.b64encode(picture(colour)).decode()} for colour in colours]
    answer = client.embeddings.create(model="tiny", input=images)  # type: ignore[arg-type]
    vectors = np.array([each.embedding for each in answer.data])
    np.testing.assert_array_equal(vectors, np.tile(vectors[:4], (10, 1)))
    assert 4 == len(np.unique(vectors, axis=0))


def test_null_counts_as_not_given(plain: httpx.Client) -> None:
    """LiteLLM and dify send every field; the default is numbers, as without the field."""
    nulls = dict.fromkeys(["model", "encoding_format", "dimensions", "user"])
    answer = plain.post(ROUTE, json={"input": "red", **nulls})
    assert 200 == answer.status_code
    assert isinstance(answer.json()["data"][0]["embedding"], list)


@pytest.mark.parametrize(
    "head", ["data:;base64,", "data:application/octet-stream;base64,", "DATA:text/plain;charset=utf-8;BASE64,"]
)
def test_an_image_of_any_media_type(plain: httpx.Client, head: str) -> None:
    """The bytes decide, as in every other route: a browser knows no type of a file without a known ending."""
    given, red = (
        plain.post(ROUTE, json={"input": uri}).json()["data"][0]["embedding"] for uri in (head + RED_64, RED_URI)
    )
    assert red == given


def test_a_text_that_begins_like_a_data_uri(plain: httpx.Client) -> None:
    """It is a text."""
    assert 3 < plain.post(ROUTE, json={"input": "data: a red rose;base64, red"}).json()["usage"]["prompt_tokens"]


def test_a_url_is_embedded_as_text_with_a_warning(plain: httpx.Client) -> None:
    """Nothing is fetched, and the answer says so."""
    answer = plain.post(ROUTE, json={"input": ["https://example.com/a.jpg", "red"]})
    assert 200 == answer.status_code
    assert "url_as_text" in answer.headers["x-anyclass-warnings"]
    assert "x-anyclass-warnings" not in plain.post(ROUTE, json={"input": "a url"}).headers


def test_tokens_are_counted(client: openai.OpenAI) -> None:
    """Every text counts, one that is sent twice counts twice, an image not at all."""
    usage = [client.embeddings.create(model="tiny", input=each).usage for each in ("red", ["red", "red"], RED_URI)]
    # The tiny model has one token for the word, and one each for start and end.
    assert [(3, 3), (6, 6), (0, 0)] == [(each.prompt_tokens, each.total_tokens) for each in usage]


def test_what_openai_has_and_this_has_not(client: openai.OpenAI) -> None:
    """The model's own number of dimensions is accepted, so is a user; any other number is refused."""
    answer = client.embeddings.create(model="tiny", input="red", dimensions=DIM, user="somebody")
    assert DIM == len(answer.data[0].embedding)
    with pytest.raises(openai.BadRequestError, match="dimensions: must be 16 or left out") as caught:
        client.embeddings.create(model="tiny", input="red", dimensions=8)
    assert "dimensions" == caught.value.param


async def test_the_asynchronous_client(server: HttpServer) -> None:
    """It gets the same answers and errors."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.embeddings.create(model="tiny", input="red")
        assert DIM == len(answer.data[0].embedding)
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="nobody", input="red")


def test_models(client: openai.OpenAI) -> None:
    """The list is readable, and a model is found by its name or an alias with a slash."""
    assert ["tiny"] == [model.id for model in client.models.list()]
    assert ["tiny", "tiny"] == [client.models.retrieve(name).id for name in ("tiny", "acme/tiny")]
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert "model_not_found" == caught.value.code


def test_an_unknown_model(client: openai.OpenAI) -> None:
    """The client raises its own exception, with a code and the request id of the log."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="nobody", input="red", extra_headers={"x-request-id": "find-me"})
    error = caught.value
    assert ("model_not_found", "invalid_request_error") == (error.code, error.type)
    assert "find-me" == error.request_id


@pytest.mark.parametrize(
    ("given", "message", "param"),
    [
        ([], "must not be empty", "input"),
        ("", "Text 0 is empty", None),
        (["red", "  "], "Text 1 is empty", None),
        (["red", "a b " * 200], "Text 1 has more tokens than this model reads, 64", None),
        (["red", "red", "x" * 1001], "Text 2 has 1001 characters", None),
        (["a\x00b"], "Text 0 holds a control character", None),
        ([[1, 2, 3]], "lists of token ids are not supported", "input[0]"),
        ([1, 2, 3], "lists of token ids are not supported", "input[0]"),
        ([None], "must be a text", "input[0]"),
        ([{"image": RED_64, "detail": "low"}], "must be a text", "input[0]"),
        (["red", "data:image/png;base64,?"], "not valid data URI", "input[1]"),
        ([{"image": "http://127.0.0.1/x.png"}], "URL", "input[0]"),
        ([RED_URI, {"image": base64.b64encode(picture("red")[:45]).decode()}], "Image 1: ", None),
        ("data:text/plain,AAAA", None, None),
        (["red"] * 51, "51 texts; 50", None),
        ([RED_URI] * 41, "41 images; 40", None),
    ],
)
def test_inputs_that_cannot_be_embedded(
    client: openai.OpenAI, given: object, message: str | None, param: str | None
) -> None:
    """A client's mistake raises BadRequestError (or is a 413) and names the field; no other text is an image."""
    if message is None:
        assert 1 == len(client.embeddings.create(model="tiny", input=given).data)  # type: ignore[arg-type]
        return
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(model="tiny", input=given)  # type: ignore[arg-type]
    assert message in caught.value.message
    assert param == caught.value.param
    assert caught.value.status_code in (400, 413)
    assert (caught.value.status_code == 400) == isinstance(caught.value, openai.BadRequestError)


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "code"),
    [
        ("POST", ROUTE, b"{", {"content-type": "application/json"}, 400, "malformed_request"),
        ("POST", ROUTE, b"{}", {"content-type": "application/json"}, 400, "invalid_request"),
        ("POST", ROUTE, b'{"input":"a","x":1}', {"content-type": "application/json"}, 400, "invalid_request"),
        ("POST", f"{ROUTE}?model=tiny", b"{}", {"content-type": "application/json"}, 400, "invalid_request"),
        ("POST", ROUTE, b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        ("POST", ROUTE, b"{}", {"content-type": "application/json", "content-encoding": "br"}, 415,
         "unsupported_media_type"),
        ("POST", ROUTE, b" " * 200_001, {"content-type": "application/json"}, 413, "payload_too_large"),
        ("GET", ROUTE, b"", {}, 405, "method_not_allowed"),
        ("POST", f"{ROUTE}/x", b"", {}, 404, "not_found"),
    ],
)  # fmt: skip
def test_every_error_has_openais_form(
    plain: httpx.Client, *, method: str, path: str, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    """Errors of routing and of reading too, each with a request id."""
    answer = plain.request(method, path, content=content, headers=headers)
    error = OpenAIError.model_validate(answer.json()).error
    assert (status, code, "invalid_request_error") == (answer.status_code, error.code, error.type)
    assert "application/json" == answer.headers["content-type"]
    assert answer.headers["x-request-id"]


def test_what_is_not_here_is_told_in_openais_form(client: openai.OpenAI) -> None:
    """The most frequent call of these clients gets an error that names the missing path."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a cat?"}])
    assert ("not_found", "invalid_request_error") == (caught.value.code, caught.value.type)
    assert "No route matches /v1/chat/completions" in caught.value.message


def test_the_documented_examples_work(plain: httpx.Client) -> None:
    """The requests proposed in /docs are answered as documented."""
    for example in EXAMPLES.values():
        EmbeddingsAnswer.model_validate(plain.post(ROUTE, json=example["value"]).json())


def test_openapi_describes_it(plain: httpx.Client) -> None:
    """The documented fields are those that are read, and errors have OpenAI's form."""
    document = plain.get("/openapi.json").json()
    operation = document["paths"][ROUTE]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert {"$ref": "#/components/schemas/EmbeddingsRequest"} == schema
    fields = document["components"]["schemas"]["EmbeddingsRequest"]["properties"]
    assert {"model", "input", "encoding_format", "dimensions", "user"} == set(fields)
    assert {"200", "400", "401", "404", "408", "413", "415", "429", "500", "503"} == set(operation["responses"])
    assert (
        "#/components/schemas/OpenAIError"
        == (operation["responses"]["404"]["content"]["application/json"]["schema"]["$ref"])
    )
