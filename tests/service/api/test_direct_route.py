import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from starlette.testclient import TestClient

from service.api.direct_route import DirectRoute


def router() -> APIRouter:
    """A router of such routes."""
    return APIRouter(route_class=DirectRoute)


def test_the_endpoint_gets_the_request_and_answers_by_itself() -> None:
    """It is in the OpenAPI document as any other route is."""
    direct = router()

    @direct.post("/echo", summary="Says it again")
    async def echo(request: Request) -> Response:
        return Response(await request.body(), headers={"x-query": request.url.query})

    app = FastAPI()
    app.include_router(direct)
    with TestClient(app) as client:
        answer = client.post("/echo?a=1&a=2", content=b"\0hello")
    assert (200, b"\0hello", "a=1&a=2") == (answer.status_code, answer.content, answer.headers["x-query"])
    assert "Says it again" == app.openapi()["paths"]["/echo"]["post"]["summary"]


def test_parameters_that_nobody_would_read_are_refused() -> None:
    """When the route is made, not when it is asked."""

    async def with_query(request: Request, top: int) -> Response:
        return Response()

    async def with_dependency(request: Request, user: object = Depends(lambda: None)) -> Response:
        return Response()

    for endpoint in (with_query, with_dependency):
        with pytest.raises(TypeError, match="/x asks FastAPI for parameters"):
            router().get("/x")(endpoint)
