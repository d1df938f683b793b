"""Hugging Face's JavaScript client, run by node; ``scripts/clients.sh`` installs it."""

import base64
import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from tests.support.places import ROOT

CLIENTS = ROOT / "build" / "clients"


def installed() -> bool:
    """Return whether node and the client are installed."""
    return shutil.which("node") is not None and (CLIENTS / "installed.json").exists()


def zero_shot(url: str, image: bytes, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Classify `image` with the client at the endpoint `url`.

    Returns:
        `result` or `error`, and the number of `requests`; None if the client is not installed.
    """
    if not installed():
        return None
    request = {
        "clients": str(CLIENTS),
        "url": url,
        "image": base64.b64encode(image).decode(),
        "parameters": dict(parameters),
    }
    done = subprocess.run(
        ["node", ROOT / "tests/clients/zero_shot.mjs"],
        input=json.dumps(request).encode(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome
