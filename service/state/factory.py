"""Opens the state store of the settings."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import platformdirs

from service.errors import ConfigurationError
from service.settings import REDIS_SCHEMES, Settings
from service.state.directory import DirectoryStateStore
from service.state.protocol import StateStore
from service.state.redis_store import RedisStateStore


def open_state(settings: Settings) -> StateStore:
    """Return the store at `state_url`; without one, a directory in the user's data folder.

    Does not open the store; `StateStore.check` returns whether it is usable.

    Raises:
        ConfigurationError: a `file:` URL names another host or has no path.
    """
    if settings.state_url is None:
        root = Path(platformdirs.user_data_dir("anyclass", appauthor=False))
        return DirectoryStateStore(root, asked_for=False)
    url = settings.state_url.get_secret_value()
    parts = urlsplit(url)
    if parts.scheme in REDIS_SCHEMES:
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
