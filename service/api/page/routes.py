"""GET / and GET /page/{name}: the page and the files that it loads, all from this server."""

from typing import Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.page.files import INDEX, PageFile, page_files
from service.api.request.etags import etag, read_condition

PATH: Final = "/"
FILES_PATH: Final = "/page/{name}"

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""CSP level 3. Pictures of the user are blobs of the page itself. No script may turn text into markup."""

_HEADERS: Final = {
    # Asked again at each visit, mostly for a 304: scripts of two versions never meet in one page.
    "cache-control": "no-cache",
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}
_NOT_MODIFIED: Final = 304


def add_page(app: FastAPI) -> None:
    """Serve the page at `/`, and its files below `/page`."""
    files = page_files()

    async def page(request: Request) -> Response:
        return _answer(request, files[INDEX])

    async def file(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return _answer(request, found)

    app.router.routes.append(Route(PATH, page, include_in_schema=False))
    app.router.routes.append(Route(FILES_PATH, file, include_in_schema=False))


def _answer(request: Request, file: PageFile) -> Response:
    headers = {**_HEADERS, "etag": etag(file.version)}
    known = read_condition(request).if_none_match
    if known is not None and known & {"*", file.version}:
        return Response(status_code=_NOT_MODIFIED, headers=headers)
    return Response(file.content, headers={**headers, "content-type": file.media_type})
