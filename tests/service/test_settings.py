import re
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from service.settings import Settings, problems, variable

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def documented() -> dict[str, str]:
    """Variable → default, as the document's tables have them."""
    rows = re.findall(r"^\| `(ANYCLASS_\w+)` \| (?:`([^`]*)`|none) \| .", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    return dict(rows)


def test_every_setting_is_documented() -> None:
    """No setting without a row, and no row without a setting."""
    assert {variable(name) for name in Settings.model_fields} == set(documented())


def test_the_documented_defaults_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document's defaults, set as variables, change nothing."""
    for name, default in documented().items():
        monkeypatch.setenv(name, default)
    assert Settings() == Settings.model_construct()


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are text, settings have types."""
    monkeypatch.setenv("ANYCLASS_PORT", "9000")
    monkeypatch.setenv("ANYCLASS_MODEL", "/models/b32")
    monkeypatch.setenv("ANYCLASS_REDIS_URL", "")
    settings = Settings(max_batch=7)
    assert (settings.port, settings.model, settings.redis_url) == (9000, Path("/models/b32"), None)
    assert settings.max_batch == 7
    assert Settings(port=1).port == 1


def test_settings_do_not_change() -> None:
    """They are one value for the life of the process."""
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "url",
    [
        "http://:s3cret@cache:6379",
        "cache:s3cret",
        "redis://:s3cret/with-slash@cache:6379/0",
        "redis://:pass@cache:s3cret",
    ],
)
def test_a_refused_value_is_named_and_never_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """It may hold a password."""
    monkeypatch.setenv("ANYCLASS_REDIS_URL", url)
    monkeypatch.setenv("ANYCLASS_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(ValidationError) as caught:
        Settings()
    lines = problems(caught.value)
    assert [line.split(":")[0] for line in lines] == ["ANYCLASS_PORT", "ANYCLASS_REDIS_URL"]
    assert "s3cret" not in "".join(lines) + str(caught.value)
    assert "10.0.0.1" not in "".join(lines) + str(caught.value)


def test_passwords_are_not_shown() -> None:
    """Neither by `repr` nor by `str`."""
    settings = Settings(redis_url=SecretStr("redis://:s3cret@cache/0"), redis_password=SecretStr("s3cret"))
    assert "s3cret" not in repr(settings) + str(settings) + settings.model_dump_json()
