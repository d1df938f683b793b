import re
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from service.settings import Settings, problems, unknown_variables, variable
from tests.support.http_server import http_server
from tests.support.places import ROOT
from tests.support.tiny_bundle import write_tiny_bundle
from tests.support.waiting import wait_until

DOCUMENT = ROOT / "docs" / "settings.md"


def documented() -> dict[str, str]:
    """Return variable → default from the document's tables."""
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
    """They are fixed for the life of the process."""
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


def test_a_misspelt_variable_is_found() -> None:
    """It is reported with the similar setting, if any; an empty variable is not set."""
    environ = {"ANYCLASS_REDIS_UR": "x", "ANYCLASS_FOO": "1", "anyclass_max_bach": "1", "ANYCLASS_BAR": "", "PATH": "x"}
    assert {
        "ANYCLASS_FOO": None,
        "ANYCLASS_MAX_BACH": "ANYCLASS_MAX_BATCH",
        "ANYCLASS_REDIS_UR": "ANYCLASS_REDIS_URL",
    } == unknown_variables(environ)


def test_settings_of_any_case_and_variables_of_others_are_not_unknown() -> None:
    """Variables of other commands and tests are known, as is all that Kubernetes and Docker inject."""
    injected = {
        f"ANYCLASS{service}_{name}"
        for service in ("", "_REDIS", "_STATE_REDIS")
        for name in (
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_HTTP",
            "PORT",
            "PORT_8000_TCP",
            "PORT_8000_TCP_PROTO",
            "PORT_8000_TCP_PORT",
            "PORT_8000_TCP_ADDR",
        )
    }
    others = {"ANYCLASS_URL", "ANYCLASS_EXPORT_INSTALLS", "ANYCLASS_FUZZ_KNOWN", "anyclass_workers"}
    known = {variable(name) for name in Settings.model_fields}
    assert {} == unknown_variables(dict.fromkeys(injected | others | known, "x"))
    assert {} == unknown_variables({"ANYCLASS_PORT_8000_TCP": "tcp://10.0.0.1:8000"})
    assert {"ANYCLASS_REDIS_PORT": None} == unknown_variables({"ANYCLASS_REDIS_PORT": "6379"})


def test_a_clients_key_is_not_taken_for_the_services() -> None:
    """It protects nothing; if the service has keys, the variable belongs to a client on the same machine."""
    client = {"ANYCLASS_API_KEY": "k"}
    assert {"ANYCLASS_API_KEY": "ANYCLASS_API_KEYS"} == unknown_variables(client)
    assert {} == unknown_variables({**client, "ANYCLASS_API_KEYS": "k"})
    assert {} == unknown_variables({**client, "ANYCLASS_API_KEYS_FILE": "/keys"})


def test_the_service_warns_of_a_misspelt_setting(tmp_path: Path) -> None:
    """It warns once, for any number of workers, and never shows the value."""
    env = {"ANYCLASS_REDIS_UR": "redis://:s3cret@cache", "ANYCLASS_WORKERS": "2"}
    with http_server(write_tiny_bundle(tmp_path / "bundle"), tmp_path, env=env) as server:
        wait_until(lambda: 2 == len([line for line in server.logs() if line["event"] == "worker ready"]))
        warnings = [line["event"] for line in server.logs() if line["level"] == "warning"]
        assert "s3cret" not in server.raw_log()
    assert [
        "ANYCLASS_REDIS_UR is not a setting of the service and has no effect; did you mean ANYCLASS_REDIS_URL?"
    ] == warnings
