"""The page at /docs: Swagger UI with its assets served locally, so that it works without an internet connection.

The assets are files of the package ``fastapi-offline``; its code is not used. The page's content security policy allows
nothing from elsewhere, and no page may frame it: its forms hold API keys.
"""

import base64
import hashlib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from service.api.documentation.document import PATH as OPENAPI_PATH

PATH: Final = "/docs"
ASSETS_PATH: Final = "/docs/assets"

_INLINE_SCRIPT: Final = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def assets() -> Path:
    """Return the folder of Swagger UI's files, found without importing the package around it."""
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("/docs needs the package fastapi-offline, which is not installed; install it")
    return Path(spec.origin).parent / "static"


def add_docs(app: FastAPI, *, at_root: bool) -> None:
    """Serve the documentation page and its assets; `at_root` also redirects `/` to it."""
    page = get_swagger_ui_html(
        openapi_url=OPENAPI_PATH,
        title=f"{app.title}: HTTP interface",
        swagger_js_url=f"{ASSETS_PATH}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS_PATH}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS_PATH}/favicon.png",
        # The validator is a service on the internet.
        swagger_ui_parameters={"validatorUrl": None, "defaultModelsExpandDepth": 0, "tryItOutEnabled": True},
    )

    page.headers["content-security-policy"] = content_security_policy(bytes(page.body).decode())

    async def docs(_: Request) -> HTMLResponse:
        return page

    async def root(_: Request) -> RedirectResponse:
        return RedirectResponse(PATH)

    app.router.routes.append(Route(PATH, docs, include_in_schema=False))
    if at_root:
        app.router.routes.append(Route("/", root, include_in_schema=False))
    app.mount(ASSETS_PATH, StaticFiles(directory=assets()), name="docs-assets")


def content_security_policy(page: str) -> str:
    """Return the policy (CSP level 3) for the text of the page: own files, its inline scripts by digest, own requests.

    Swagger UI sets inline styles, and its style sheet has icons as data URIs.
    """
    digests = [hashlib.sha256(script.encode()).digest() for script in _INLINE_SCRIPT.findall(page)]
    scripts = " ".join(["'self'", *(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)])
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
