"""Every setting of the service: one frozen object, read from ``ANYCLASS_*`` variables once, here and nowhere else.

Each setting is documented in ``docs/settings.md``; a test holds the two together.
"""

import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ENV_PREFIX = "ANYCLASS_"

_REDIS_SCHEMES = ("redis", "rediss", "unix")

Provider = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]


class Settings(BaseSettings):
    """The service's configuration. Arguments win over the environment; an empty variable counts as not set.

    Raises `pydantic.ValidationError` for a value that cannot be used; `problems` words it without showing values.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        # A refused value may be a URL with a password in it.
        hide_input_in_errors=True,
    )

    # Where to listen
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000

    # What to run, and on what
    model: Path | None = None
    more_models: Annotated[tuple[Path, ...], NoDecode] = ()
    provider: Provider = "auto"
    threads: PositiveInt | None = None
    decode_threads: PositiveInt | None = None

    # Text cache
    redis_url: SecretStr | None = None
    redis_password: SecretStr | None = None
    redis_timeout_ms: PositiveFloat = 20.0
    redis_retry_s: Annotated[float, Field(gt=0, le=4)] = 1.0
    redis_max_connections: PositiveInt = 16
    cache_prefix: Annotated[str, Field(min_length=1, max_length=100)] = "anyclass:v1:"
    cache_ttl_s: PositiveInt = 30 * 24 * 3600
    cache_max_entries: PositiveInt = 50_000
    cache_matrices_mib: Annotated[int, Field(ge=0)] = 256

    # Limits on what a client may send
    max_body_bytes: PositiveInt = 20 * 2**20
    max_pixels: PositiveInt = 50_000_000
    max_labels: PositiveInt = 10_000
    max_label_chars: PositiveInt = 1_000
    max_templates: PositiveInt = 100
    max_batch_images: PositiveInt = 256

    # Queues and batches
    max_batch: PositiveInt = 32
    max_waiting: PositiveInt = 256
    max_waiting_texts: PositiveInt = 20_000
    max_batch_requests: PositiveInt = 16
    background_every: Annotated[int, Field(ge=2)] = 4

    # Time
    request_timeout_s: PositiveFloat = 30.0
    drain_timeout_s: PositiveFloat = 25.0

    # Logs
    log_level: LogLevel = "info"
    log_format: LogFormat = "json"

    @field_validator("more_models", mode="before")
    @classmethod
    def _paths(cls, value: object) -> object:
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _usable_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value.get_secret_value())
            parts.port  # noqa: B018 - raises where it is not a number
        except ValueError:
            # The message would quote what stands in the port's place: often a password with a slash in it.
            raise ValueError("is not a URL; percent-encode the password, or set it apart") from None
        if parts.scheme not in _REDIS_SCHEMES:
            raise ValueError(f"must start with one of {', '.join(f'{scheme}://' for scheme in _REDIS_SCHEMES)}")
        return value


def variable(setting: str) -> str:
    """Name of the environment variable of `setting` (``max_batch`` -> ``ANYCLASS_MAX_BATCH``)."""
    return ENV_PREFIX + setting.upper()


def problems(error: ValidationError) -> list[str]:
    """One line for each refused setting, naming its variable and never showing its value."""
    return [
        f"{variable('.'.join(str(part) for part in entry['loc']))}: {entry['msg']}"
        for entry in error.errors(include_url=False, include_input=False, include_context=False)
    ]
