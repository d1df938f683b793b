"""HEAD for every route that answers GET (RFC 9110, section 9.1): load balancers and monitors probe with it."""

from fastapi import APIRouter
from fastapi.routing import APIRoute


def head_routes(router: APIRouter) -> APIRouter:
    """Return a router with a HEAD route for each GET route of `router`, with the same endpoint; not documented.

    The endpoint answers as for GET, and the server drops the body. FastAPI, unlike Starlette, adds no HEAD by itself;
    a second method on the route would appear in the OpenAPI document as an operation with the same id.
    """
    heads = APIRouter()
    for route in router.routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            heads.add_api_route(
                route.path, route.endpoint, methods=["HEAD"], response_model=None, include_in_schema=False
            )
    return heads
