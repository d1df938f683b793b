"""The choice of a store from the settings."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from service.errors import ConfigurationError
from service.settings import Settings
from service.state.factory import open_state
from service.state.redis_store import RedisStateStore


async def test_which_store_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL is a path, a file: URL or a Redis; without one, the store is in the user's data folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for url, folder in (
        (None, "data/anyclass"),
        (str(tmp_path / "plain"), "plain"),
        ((tmp_path / "with space").as_uri(), "with space"),
    ):
        store = open_state(Settings(state_url=None if url is None else SecretStr(url)))
        await store.check()
        assert (url is not None) == (tmp_path / folder).exists()
        await store.put("a", b"1", expected=None)
        await store.close()
        assert (tmp_path / folder / "state-v1" / "values" / "a,v").is_file()
    redis = open_state(Settings(state_url=SecretStr("redis://127.0.0.1:1/0"), state_password=SecretStr("x")))
    assert isinstance(redis, RedisStateStore)
    await redis.close()
    for wrong in ("file://elsewhere/path", "file://"):
        with pytest.raises(ConfigurationError):
            open_state(Settings(state_url=SecretStr(wrong)))


@pytest.mark.parametrize("url", ["http://:s3cret@host/", "redis://:s3cret/slash@host"])
def test_a_state_url_that_cannot_be_used_is_not_shown(url: str) -> None:
    """The URL may contain a password."""
    with pytest.raises(ValueError, match="state_url") as caught:
        Settings(state_url=SecretStr(url))
    assert "s3cret" not in str(caught.value)
