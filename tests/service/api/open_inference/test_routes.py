"""Triton's own client for the Open Inference Protocol, against a real server."""

import base64
import copy
import json
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from service.api.open_inference.docs import EXAMPLES
from service.api.open_inference.schemas import InferAnswer, ModelMetadata
from service.api.open_inference.tensors import TensorLimits, read_infer
from service.api.problems.schemas import PlainError
from service.errors import AnyclassError
from service.model.loading import load_bundle
from tests.support.classifying import picture
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import DIM, write_tiny_bundle

RED, GREEN = picture("red"), picture("green")
RED_64 = base64.b64encode(RED).decode()
SIZE = 8
INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """One process for all tests of this module."""
    folder = tmp_path_factory.mktemp("triton")
    bundle = write_tiny_bundle(folder / "bundle", aliases=("acme/tiny",), size=SIZE)
    limits = {"ANYCLASS_MAX_BODY_BYTES": "200000", "ANYCLASS_MAX_BATCH_IMAGES": "40", "ANYCLASS_MAX_EMBED_TEXTS": "50"}
    with http_server(bundle, folder, env=limits) as running:
        yield running


@pytest.fixture
def client(server: HttpServer) -> Iterator[triton.InferenceServerClient]:
    """Create the client as its users do."""
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


@pytest.fixture
def plain(server: HttpServer) -> Iterator[httpx.Client]:
    """Connect a plain client, for requests that Triton's client never sends."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def tensor(name: str, values: Any, datatype: str = "BYTES", *, binary: bool = True) -> triton.InferInput:
    """An input of the client."""
    array = np.asarray(values, np.object_ if datatype == "BYTES" else np.uint8)
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_server_and_model(client: triton.InferenceServerClient, server: HttpServer) -> None:
    """Live, ready, and metadata; a model by its name, by an alias with a slash, and by its version."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    for name in ("tiny", "acme/tiny"):
        assert client.is_model_ready(name)
    assert not client.is_model_ready("nobody")
    metadata = ModelMetadata.model_validate(client.get_model_metadata("acme/tiny"))
    assert ("tiny", "onnxruntime_cpu") == (metadata.name, metadata.platform)
    assert [("image", "BYTES", [-1]), ("text", "BYTES", [-1])] == [
        (each.name, each.datatype, each.shape) for each in metadata.inputs
    ]
    assert {"image_embeddings": [-1, DIM], "text_embeddings": [-1, DIM], "scores": [-1, -1]} == {
        each.name: each.shape for each in metadata.outputs
    }
    (version,) = metadata.versions
    assert client.is_model_ready("tiny", version)
    assert not client.is_model_ready("tiny", "1")
    assert metadata == ModelMetadata.model_validate(client.get_model_metadata("tiny", version))


def test_vectors_and_scores(client: triton.InferenceServerClient) -> None:
    """Images and texts give both kinds of vectors and the scores of each image, all binary."""
    inputs = [tensor("image", [RED, GREEN]), tensor("text", ["green", "red", "blue"])]
    result = client.infer("tiny", inputs, request_id="job 7")
    response = result.get_response()
    assert ("tiny", "job 7") == (response["model_name"], response["id"])
    images, texts, scores = (result.as_numpy(name) for name in ("image_embeddings", "text_embeddings", "scores"))
    assert [(2, DIM), (3, DIM), (2, 3)] == [images.shape, texts.shape, scores.shape]
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([images, texts]), axis=1), 1, atol=1e-5)
    assert [1, 0] == scores.argmax(axis=1).tolist()
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


def test_json_and_binary_are_the_same(client: triton.InferenceServerClient) -> None:
    """Binary and JSON tensors give the same numbers; in JSON an image is base64."""
    version = client.get_model_metadata("tiny")["versions"][0]
    results = [
        client.infer(
            "acme/tiny",
            [tensor("image", image, binary=binary), tensor("text", [["red"], ["green"]], binary=binary)],
            model_version=version,
            outputs=[triton.InferRequestedOutput(name, binary_data=binary) for name in ("scores", "image_embeddings")],
        )
        for binary, image in ((True, [[RED]]), (False, [[RED_64]]))
    ]
    for name in ("scores", "image_embeddings"):
        first, second = (result.as_numpy(name) for result in results)
        np.testing.assert_array_equal(first, second)
    assert results[0].as_numpy("text_embeddings") is None


@pytest.mark.parametrize("binary", [True, False])
def test_images_of_the_models_own_size(client: triton.InferenceServerClient, *, binary: bool) -> None:
    """Pixels reach the encoder unchanged."""
    pixels = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    pixels[0, ..., 0] = pixels[1, ..., 1] = 255
    given, encoded = (
        client.infer("tiny", [image]).as_numpy("image_embeddings")
        for image in (
            tensor("image", pixels, "UINT8", binary=binary),
            tensor("image", [picture("red"), picture("lime")]),
        )
    )
    np.testing.assert_allclose(given, encoded, atol=1e-6)


def test_scores_are_those_of_classify(client: triton.InferenceServerClient, plain: httpx.Client) -> None:
    """With the same templates, scoring and temperature."""
    labels = ["green", "red", "blue"]
    for templates, own in (("default", "default"), ('["a {} thing", "{}"]', ["a {} thing", "{}"])):
        for more in ({}, {"scoring": "cosine"}, {"temperature": 2.5}):
            parameters: dict[str, Any] = {"templates": templates, **more}
            result = client.infer("tiny", [tensor("image", [RED]), tensor("text", labels)], parameters=parameters)
            answer = plain.post(
                "/v1/classify", json={"image": RED_64, "labels": labels, "templates": own, **more}
            ).json()
            by_label = {each["label"]: each["score"] for each in answer["predictions"]}
            np.testing.assert_allclose(result.as_numpy("scores")[0], [by_label[label] for label in labels], atol=1e-6)


def test_errors_reach_the_caller(client: triton.InferenceServerClient) -> None:
    """With the message, and the status as a text."""
    wanted = triton.InferRequestedOutput
    cases: list[tuple[str, list[Any], dict[str, Any], str, str]] = [
        ("nobody", [tensor("text", ["red"])], {}, "404", "Model 'nobody' is not served here"),
        ("tiny", [tensor("text", ["red"])], {"model_version": "1"}, "404", "Model tiny is served in version"),
        ("tiny", [tensor("image", [b"%!PS"])], {}, "415", "Image 0: "),
        ("tiny", [tensor("image", [RED, RED[:45]])], {}, "400", "Image 1: "),
        ("tiny", [tensor("text", ["red", ""])], {}, "400", "Text 1 is empty"),
        ("tiny", [tensor("text", ["red"] * 51)], {}, "413", "50"),
        ("tiny", [tensor("image", [RED] * 41)], {}, "413", "40"),
        (
            "tiny",
            [tensor("text", ["red"])],
            {"outputs": [wanted("scores")]},
            "400",
            "cannot be computed",
        ),
        ("tiny", [tensor("text", ["red"])], {"outputs": [wanted("x")]}, "400", "outputs[0]"),
        ("tiny", [tensor("text", ["red"])], {"parameters": {"templates": "nothing"}}, "400", "no template set"),
        ("tiny", [tensor("text", ["red"])], {"parameters": {"templates": "[1]"}}, "400", "list of strings"),
        ("tiny", [tensor("text", ["red"])], {"parameters": {"scoring": "sigmoid"}}, "400", "no logit bias"),
        ("tiny", [tensor("text", ["red"])], {"parameters": {"colour": "x"}}, "400", "parameters"),
        ("tiny", [tensor("image", np.zeros((1, 4, 4, 3)), "UINT8")], {}, "400", "[n, 8, 8, 3]"),
    ]
    for model, inputs, more, status, message in cases:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, inputs, **more)
        assert (status, True) == (caught.value.status(), message in caught.value.message()), caught.value


def infer_with(plain: httpx.Client, header: dict[str, Any], tail: bytes, length: str | None) -> httpx.Response:
    """Send JSON and what follows it, with any length of the JSON."""
    written = json.dumps(header).encode()
    headers = {"inference-header-content-length": str(len(written)) if length is None else length}
    return plain.post(INFER, content=written + tail, headers=headers)


def one(size: Any, *, name: str = "text", shape: Any = (1,), datatype: str = "BYTES", **more: Any) -> dict[str, Any]:
    """A request with one binary input."""
    parameters = {"binary_data_size": size}
    return {"inputs": [{"name": name, "shape": shape, "datatype": datatype, "parameters": parameters, **more}]}


RED_TEXT = struct.pack("<I", 3) + b"red"


@pytest.mark.parametrize(
    ("header", "tail", "length"),
    [
        (one(7), RED_TEXT, "99999999999999999999999"),
        (one(7), RED_TEXT, "-1"),
        (one(7), RED_TEXT, "x"),
        (one(7), RED_TEXT, "0"),
        (one(7), RED_TEXT, "5"),
        (one(7), b"", None),
        (one(6), RED_TEXT, None),
        (one(8), RED_TEXT, None),
        (one(7), RED_TEXT + b"!", None),
        (one(-7), RED_TEXT, None),
        (one(2**62), RED_TEXT, None),
        (one(10**30), RED_TEXT, None),
        (one("7"), RED_TEXT, None),
        (one(7.0), RED_TEXT, None),
        (one(True), b"\0", None),
        (one(None), b"", None),
        (one(7, data=["red"]), RED_TEXT, None),
        (one(7, shape=[2]), RED_TEXT, None),
        (one(7, shape=[1, 2]), RED_TEXT, None),
        (one(7, shape=[0]), RED_TEXT, None),
        (one(7, shape=[-1]), RED_TEXT, None),
        (one(7, shape=[]), RED_TEXT, None),
        (one(7, shape=[1] * 5), RED_TEXT, None),
        (one(7, datatype="UINT8", shape=[7]), RED_TEXT, None),
        (one(7, datatype="FP32"), RED_TEXT, None),
        (one(7, name="other"), RED_TEXT, None),
        (one(7), struct.pack("<I", 2**32 - 1) + b"red", None),
        (one(7), struct.pack("<I", 2) + b"red", None),
        (one(7), struct.pack("<I", 3) + b"\xff\xff\xff", None),
        (one(3), b"red", None),
        (one(192, name="image", datatype="UINT8", shape=[1, 8, 8, 3]), b"\0" * 191, None),
        (one(191, name="image", datatype="UINT8", shape=[1, 8, 8, 3]), b"\0" * 191, None),
        (one(192, name="image", datatype="UINT8", shape=[1, 8, 8, 2**40]), b"\0" * 192, None),
        ({"inputs": [*one(7)["inputs"]] * 2}, RED_TEXT * 2, None),
        ({"inputs": []}, b"", None),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1]}]}, b"", None),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters":
            {"shared_memory_region": "x", "shared_memory_byte_size": 9}}]}, b"", None),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a"]}]}, b"", None),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": [["a"], ["b", "c"]]}]}, b"", None),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [1]}]}, b"", None),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["?"]}]}, b"", None),
        ({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [256] * 192}]}, b"", None),
        ({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [0.5] * 192}]}, b"", None),
    ],
)  # fmt: skip
def test_lengths_and_shapes_that_lie(
    plain: httpx.Client, header: dict[str, Any], tail: bytes, length: str | None
) -> None:
    """They are answered as the client's mistake, in the protocol's form, and nothing is allocated for them."""
    answer = infer_with(plain, header, tail, length)
    assert 400 == answer.status_code, answer.text
    assert PlainError.model_validate(answer.json()).error


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)
PIXELS = [1, 1, 2, 3]
VALID: list[tuple[dict[str, Any], bytes]] = [
    (one(7), RED_TEXT),
    ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": [["red"], ["green"]]}]}, b""),
    (
        {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [[[[0, 1, 2], [3, 4, 5]]]]}]},
        b"",
    ),
    (one(6, name="image", datatype="UINT8", shape=PIXELS), b"pixels"),
]


@given(
    valid=st.sampled_from(VALID),
    field=st.sampled_from([None, "name", "datatype", "shape", "data", "parameters", "binary_data_size"]),
    value=JSON_VALUES | st.lists(st.integers(0, 3) | st.integers(), max_size=4),
    cut=st.just(0) | st.integers(0, 8),
    offset=st.just(0) | st.integers(-3, 3),
)
def test_whatever_comes_is_read_or_refused(
    *, valid: tuple[dict[str, Any], bytes], field: str | None, value: object, cut: int, offset: int
) -> None:
    """A request with a mistake anywhere is an error of the client, never of the service; without it it is read."""
    header, tail = copy.deepcopy(valid)
    if field == "binary_data_size":
        header["inputs"][0]["parameters"] = {field: value}
    elif field is not None:
        header["inputs"][0][field] = value
    tail = tail[cut:]
    written = json.dumps(header).encode()
    size: Any = SimpleNamespace(height=1, width=2)
    try:
        read = read_infer(written + tail, str(len(written) + offset), TensorLimits(3, 3, size))
    except AnyclassError:
        assert field is not None or offset or cut
        return
    assert 1 <= len(read.images) + len(read.texts) <= 6


@pytest.mark.parametrize(("shape", "datatype"), [([10**9], "BYTES"), ([10**18], "BYTES"), ([10**9, 8, 8, 3], "UINT8")])
def test_a_huge_shape_is_refused_by_the_limits(plain: httpx.Client, shape: list[int], datatype: str) -> None:
    """Before a byte of it is parsed."""
    answer = infer_with(plain, one(7, name="image", shape=shape, datatype=datatype), RED_TEXT, None)
    assert 413 == answer.status_code


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("POST", INFER, b"{", {}, 400),
        ("POST", INFER, b"[]", {}, 400),
        ("POST", INFER, b"{}", {"content-type": "text/plain"}, 415),
        ("POST", INFER, b"{}", {"content-encoding": "gzip"}, 415),
        ("POST", INFER, b" " * 200_001, {}, 413),
        ("POST", f"{INFER}?x=1", b"{}", {}, 400),
        ("POST", "/v2/models/tiny", b"{}", {}, 405),
        ("POST", "/v2", b"{}", {}, 405),
        ("GET", "/v2/models/nobody", b"", {}, 404),
        ("GET", "/v2/models/nobody/ready", b"", {}, 404),
        ("GET", "/v2/models/tiny/versions/1", b"", {}, 404),
        ("GET", "/v2/nothing", b"", {}, 404),
    ],
)
def test_every_error_has_the_protocols_form(
    plain: httpx.Client, *, method: str, path: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    """Errors of routing and of reading too."""
    answer = plain.request(method, path, content=content, headers=headers)
    assert status == answer.status_code
    assert PlainError.model_validate(answer.json()).error
    assert answer.headers["x-request-id"]


def test_a_mixed_answer(plain: httpx.Client) -> None:
    """Some outputs in the JSON, some after it, in the order they were asked for."""
    header = {
        **one(7),
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "text_embeddings", "parameters": {"binary_data": False}}],
    }
    body = InferAnswer.model_validate(infer_with(plain, header, RED_TEXT, None).json())
    assert [1, DIM] == body.outputs[0].shape
    header["inputs"] = [
        {"name": "image", "datatype": "BYTES", "shape": [1], "data": [RED_64]},
        *one(7)["inputs"],
    ]
    header["outputs"] = [*header["outputs"], {"name": "image_embeddings"}]
    answer = infer_with(plain, header, RED_TEXT, None)
    length = int(answer.headers["inference-header-content-length"])
    assert "application/octet-stream" == answer.headers["content-type"]
    first, second = InferAnswer.model_validate_json(answer.content[:length]).outputs
    assert (DIM, None) == (len(first.data or ()), second.data)
    assert {"binary_data_size": 4 * DIM} == second.parameters
    np.testing.assert_allclose(np.linalg.norm(np.frombuffer(answer.content[length:], "<f4")), 1, atol=1e-5)


def test_the_version_is_the_revision(plain: httpx.Client, tmp_path: Any) -> None:
    """A version names weights and preprocessing, whole or by its beginning."""
    revision = load_bundle(write_tiny_bundle(tmp_path / "same", aliases=("acme/tiny",), size=SIZE)).manifest.revision
    (version,) = plain.get("/v2/models/tiny").json()["versions"]
    assert revision.startswith(version)
    assert 200 == plain.get(f"/v2/models/tiny/versions/{revision}/ready").status_code


def test_the_documented_examples_work(plain: httpx.Client) -> None:
    """The requests proposed in /docs are answered as documented."""
    for example in EXAMPLES.values():
        InferAnswer.model_validate(plain.post(INFER, json=example["value"]).json())


def test_openapi_describes_it(plain: httpx.Client) -> None:
    """Both forms of a body are there, and every route with its errors."""
    paths = plain.get("/openapi.json").json()["paths"]
    assert {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/{model}", "/v2/models/{model}/ready"} <= set(
        paths
    )
    operation = paths["/v2/models/{model}/infer"]["post"]
    assert {"application/json", "application/octet-stream"} == set(operation["requestBody"]["content"])
    assert {"application/json", "application/octet-stream"} == set(operation["responses"]["200"]["content"])
    assert {"model", "Inference-Header-Content-Length"} == {each["name"] for each in operation["parameters"]}
