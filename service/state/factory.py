"""Chooses the store that `state_url` names."""

from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import platformdirs

from service.errors import ConfigurationError
from service.settings import Settings
from service.state.directory import DirectoryStateStore
from service.state.protocol import StateStore
from service.state.redis_store import RedisStateStore

_REDIS_SCHEMES: Final = ("redis", "rediss", "unix")


def open_state(settings: Settings) -> StateStore:
    """Make the store that `state_url` names, or a directory in the user's data folder where it names none.

    Nothing is opened yet; `StateStore.check` says whether the store can be used.

    Raises:
        ConfigurationError: a `file:` URL that names another host or no path.
    """
    if settings.state_url is None:
        root = Path(platformdirs.user_data_dir("anyclass", appauthor=False))
        return DirectoryStateStore(root, asked_for=False)
    url = settings.state_url.get_secret_value()
    parts = urlsplit(url)
    if parts.scheme in _REDIS_SCHEMES:
        password = settings.state_password
        return RedisStateStore(
            url,
            password=None if password is None else password.get_secret_value(),
            timeout_s=settings.state_timeout_s,
        )
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ConfigurationError("ANYCLASS_STATE_URL names a file: URL without a path, or on another host.")
        url = unquote(parts.path)
    return DirectoryStateStore(Path(url), asked_for=True)
