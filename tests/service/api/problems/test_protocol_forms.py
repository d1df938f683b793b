"""Overload, an unfinished start and failures of the service, as each protocol's own client reports them."""

import base64
import io
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.http as triton
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from starlette.responses import Response
from tritonclient.utils import InferenceServerException

from service.api.problems.protocol_forms import render_error
from service.api.problems.schemas import OpenAIError, PlainError, Problem
from service.api.problems.table import KINDS, MEDIA_TYPE, headers_of, problem, problem_of
from service.errors import AnyclassError, DeadlineExceeded, NotReady, Overloaded
from service.inference.registry import ModelRegistry
from service.inference.served_model import Model
from service.monitoring import logs
from tests.support.classifying import picture
from tests.support.javascript import zero_shot
from tests.support.service_thread import Served, service_thread
from tests.support.waiting import wait_until

RED = picture("red")
RED_64 = base64.b64encode(RED).decode()
LABELS = ["red", "green"]
PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def _logs_as_served(restored_logging: None) -> None:
    """Failures are logged as `anyclass serve` does it."""
    logs.configure("info", "json", io.StringIO())


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A service with room for one image that waits."""
    with service_thread(tmp_path, max_batch=1, max_waiting=1) as served:
        yield served


def ask_openai(url: str) -> None:
    """Ask for the vector of an image, once."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        client.embeddings.create(model="tiny", input=[{"image": RED_64}])  # type: ignore[arg-type]


def ask_hugging_face(url: str) -> None:
    """Ask for a classification."""
    InferenceClient(url).zero_shot_image_classification(RED, LABELS)


def ask_triton(url: str) -> None:
    """Ask for the vector of an image."""
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    try:
        image = triton.InferInput("image", [1], "BYTES").set_data_from_numpy(np.array([RED], np.object_))
        client.infer("tiny", [image])
    finally:
        client.close()


def test_overload(served: Served) -> None:
    """Each client has its error for it; the JavaScript client, which would send again at once on 503, does not."""
    served.engine.gate.clear()
    with ThreadPoolExecutor(10) as senders:
        try:
            accepted = until_refused(served, senders)
            with pytest.raises(openai.RateLimitError) as limited:
                ask_openai(served.url)
            assert ("rate_limit_exceeded", "rate_limit_error") == (limited.value.code, limited.value.type)
            assert int(limited.value.response.headers["retry-after"]) >= 1
            with pytest.raises(HfHubHTTPError) as refused:
                ask_hugging_face(served.url)
            assert 429 == refused.value.response.status_code
            with pytest.raises(InferenceServerException) as busy:
                ask_triton(served.url)
            assert "429" == busy.value.status()
            outcome = zero_shot(served.url, RED, {"candidate_labels": LABELS})
            if outcome is not None:
                assert (429, 1) == (outcome["error"]["status"], outcome["requests"])
        finally:
            served.engine.gate.set()
        assert [200] * len(accepted) == [answer.result(PATIENCE_S).status_code for answer in accepted]


def decoded(served: Served) -> int:
    """Return the number of decoded images, each of which is admitted."""
    lines = httpx.get(f"{served.url}/metrics", timeout=PATIENCE_S).text.splitlines()
    begin = 'anyclass_stage_seconds_count{model="tiny",stage="decode"} '
    return sum(int(float(line.removeprefix(begin))) for line in lines if line.startswith(begin))


def until_refused(served: Served, senders: ThreadPoolExecutor) -> list[Future[httpx.Response]]:
    """Send requests, of which none is answered, until one is refused; returns the others."""
    accepted: list[Future[httpx.Response]] = []
    while len(accepted) < 9:
        request: dict[str, Any] = {"json": {"input": {"image": RED_64}}, "timeout": PATIENCE_S}
        sent: Future[httpx.Response] = senders.submit(httpx.post, f"{served.url}/v1/embeddings", **request)
        wait_until(lambda sent=sent: sent.done() or decoded(served) == len(accepted) + 1)  # type: ignore[misc]
        if sent.done():
            assert 429 == sent.result().status_code
            return accepted
        accepted.append(sent)
    raise AssertionError("the service takes any number of requests")


def test_the_model_fails(served: Served) -> None:
    """Every protocol reports a fault of the server, and no answer has internal details."""

    def fail(kind: str, batch: object) -> None:
        raise RuntimeError("secret")

    served.engine.before = fail
    with pytest.raises(openai.InternalServerError) as first:
        ask_openai(served.url)
    assert ("server_error", "inference_failed") == (first.value.type, first.value.code)
    with pytest.raises(HfHubHTTPError) as second:
        ask_hugging_face(served.url)
    assert 500 == second.value.response.status_code
    with pytest.raises(InferenceServerException) as third:
        ask_triton(served.url)
    assert "500" == third.value.status()
    assert all("secret" not in str(each.value) for each in (first, second, third))


class Broken(ModelRegistry):
    """A registry that raises an unexpected exception once `broken` is set."""

    broken = False

    def get(self, name: str | None = None) -> Model:
        """See `ModelRegistry`."""
        if self.broken:
            raise RuntimeError("secret")
        return super().get(name)


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/embeddings", OpenAIError),
        ("/", PlainError),
        ("/models/tiny", PlainError),
        ("/v2/models/tiny/infer", PlainError),
        ("/v1/classify", Problem),
    ],
)
def test_the_last_answer_has_the_paths_form(
    tmp_path: Path, path: str, form: type[OpenAIError | PlainError | Problem]
) -> None:
    """The outermost layer answers an unexpected exception, also in the form of the path."""
    with service_thread(tmp_path, registry=Broken) as served:
        assert isinstance(served.registry, Broken)
        served.registry.broken = True
        body = {"image": RED_64, "labels": ["red"]} if form is Problem else {"input": "red"}
        answer = httpx.post(f"{served.url}{path}", json=body, timeout=PATIENCE_S)
    assert 500 == answer.status_code
    form.model_validate(answer.json())
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]


def test_every_problem_can_be_written_in_every_form() -> None:
    """Every protocol can write every kind of error."""
    paths = ("/v1/embeddings", "/v1/files/7", "/v1/batches", "/v1/models/x", "/", "/models/a/b", "/v2", "/v2/x")
    for path, kind in itertools.product(paths, KINDS):
        check_form(path, kind)


def check_form(path: str, kind: type[AnyclassError]) -> None:
    """One kind at one path."""
    said = problem(KINDS[kind], "what is wrong", "r-1")
    answer = render_error(path, said, {"retry-after": "3"})
    form = OpenAIError if path.startswith("/v1") else PlainError
    assert "what is wrong" in form.model_validate(json.loads(bytes(answer.body))).model_dump_json()
    assert "3" == answer.headers["retry-after"]
    statuses = {422: 422 if path in ("/", "/models/a/b") else 400}
    if kind is not DeadlineExceeded:
        assert statuses.get(KINDS[kind].status, KINDS[kind].status) == answer.status_code


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/models", "/v1/embeddingsx", "/v2x", "/modelsx", "/x/v2"])
def test_other_paths_have_the_services_own_form(path: str) -> None:
    """A path that only starts with the same letters has the service's own form."""
    error = Overloaded("busy", 2.0)
    body = problem_of(error, "r-1")
    own = Response(json.dumps(body), body["status"], headers_of(error), MEDIA_TYPE)
    answer = render_error(path, body, {"retry-after": "2"})
    assert (own.status_code, own.body, own.headers) == (answer.status_code, answer.body, answer.headers)


def test_hugging_faces_client_is_told_to_wait_only_at_the_start() -> None:
    """Its JavaScript client sends a request again at once on 503: a request that took too long must not be one."""
    statuses = [
        render_error("/", problem_of(error, "r-1")).status_code
        for error in (NotReady("starting"), DeadlineExceeded("slow"))
    ]
    assert [503, 504] == statuses
