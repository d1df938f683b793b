"""Settings of the service: one frozen object, read once from ``ANYCLASS_*`` variables.

``docs/settings.md`` documents each setting; a test keeps the two in step.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.model.choices import ColourProfiles, ComputeChoice, Preprocessing
from service.model.engine.provider_table import ProviderName
from service.validation_messages import faults

ENV_PREFIX = "ANYCLASS_"

_CLIENT_KEY: Final = f"{ENV_PREFIX}API_KEY"
_OTHER_COMMANDS: Final = re.compile(rf"{ENV_PREFIX}(URL|API_KEY|EXPORT_\w+|FUZZ_\w+)")
"""Variables of the client commands, of `anyclass-export`, and of the tests."""
_LINK: Final = re.compile(rf"{ENV_PREFIX}(\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_SERVICE_HOST: Final = "_SERVICE_HOST"
_MIN_SIMILARITY: Final = 0.8
_INVALID: Final = object()

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*]+")
_DEFAULT_PORT: Final = re.compile(r"(?<=^http://)(.+):80$|(?<=^https://)(.+):443$")

REDIS_SCHEMES: Final = ("redis", "rediss", "unix")

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]
AccessLog = Literal["standard", "full"]
ImageCache = Literal["off", "memory", "redis"]


class Settings(BaseSettings):
    """Configuration of the service. Arguments take precedence over the environment; an empty variable is not set.

    Raises `pydantic.ValidationError` for an invalid value; `problems` describes it without showing the value.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        # An invalid value may be a URL with a password.
        hide_input_in_errors=True,
    )

    # Where to listen
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    page: bool = True

    # What to run, and on what
    model: Path | None = None
    more_models: Annotated[tuple[Path, ...], NoDecode] = ()
    provider: ProviderName = "auto"
    compute: ComputeChoice = "auto"
    tune: bool = True
    gpu_memory_mib: PositiveInt | None = None
    engine_cache: Path | None = None
    threads: PositiveInt | None = None
    decode_threads: PositiveInt | None = None
    preprocessing: Preprocessing = "exact"
    colour_profiles: ColourProfiles = "ignore"

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

    # Image cache
    image_cache: ImageCache = "off"
    image_cache_max_entries: PositiveInt = 10_000

    # Durable state
    state_url: SecretStr | None = None
    state_password: SecretStr | None = None
    state_timeout_s: PositiveFloat = 2.0
    label_sets_mib: Annotated[int, Field(ge=0)] = 512
    label_set_inline_prompts: Annotated[int, Field(ge=0)] = 2_000

    # Batch jobs
    job_workers: Annotated[int, Field(ge=0)] = 2
    job_lease_s: Annotated[float, Field(ge=1)] = 30.0
    keep_files_s: Annotated[int, Field(ge=3_600)] = 30 * 24 * 3600
    max_active_jobs: PositiveInt = 1_000
    max_file_bytes: PositiveInt = 200 * 2**20
    max_total_file_bytes: PositiveInt = 10 * 2**30
    max_job_lines: PositiveInt = 50_000
    upload_timeout_s: PositiveFloat = 600.0

    # Limits on requests
    max_body_bytes: PositiveInt = 20 * 2**20
    max_total_body_bytes: PositiveInt = 256 * 2**20
    max_pixels: PositiveInt = 50_000_000
    max_labels: PositiveInt = 10_000
    max_label_sets: PositiveInt = 1_000
    max_label_set_labels: PositiveInt = 100_000
    max_label_set_prompts: PositiveInt = 10_000_000
    max_descriptions: PositiveInt = 100
    max_label_chars: PositiveInt = 1_000
    max_templates: PositiveInt = 100
    max_batch_images: PositiveInt = 256
    max_answer_bytes: PositiveInt = 2**28
    max_embed_texts: PositiveInt = 2_048

    # Who may ask, and how often
    api_keys: SecretStr | None = None
    api_keys_file: Path | None = None
    open_paths: Annotated[tuple[str, ...], NoDecode] = (
        "/livez",
        "/readyz",
        "/metrics",
        "/v2/health/live",
        "/v2/health/ready",
        "/",
        "/page/*",
        "/docs",
        "/docs/*",
        "/openapi.json",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    rate_limit_per_s: PositiveFloat | None = None
    rate_limit_burst: PositiveInt | None = None

    # Image URLs
    allow_image_urls: bool = False
    image_url_timeout_s: PositiveFloat = 10.0
    image_url_per_host: PositiveInt = 8

    # Archives of images
    max_archive_images: PositiveInt = 10_000
    max_archive_bytes: PositiveInt = 2**30

    # Queues and batches
    max_batch: PositiveInt = 32
    max_batch_texts: PositiveInt = 64
    max_waiting: PositiveInt = 256
    max_waiting_texts: PositiveInt = 20_000
    max_batch_requests: PositiveInt = 16
    background_every: Annotated[int, Field(ge=2)] = 4

    # Time
    request_timeout_s: PositiveFloat = 30.0
    drain_timeout_s: PositiveFloat = 25.0
    keep_alive_s: PositiveFloat = 75.0

    # Logs
    log_level: LogLevel = "info"
    log_format: LogFormat = "json"
    access_log: AccessLog = "standard"

    @field_validator("more_models", mode="before")
    @classmethod
    def _paths(cls, value: object) -> object:
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("open_paths", mode="before")
    @classmethod
    def _url_paths(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        paths = tuple(filter(None, (path.strip() for path in value.split(","))))
        if any(not path.startswith("/") for path in paths):
            raise ValueError("must be paths that begin with /, separated by commas")
        return paths

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        # As browsers write them: in lower case, without the scheme's own port.
        origins = tuple(
            _DEFAULT_PORT.sub(r"\1\2", origin.strip().lower()) for origin in value.split(",") if origin.strip()
        )
        if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("must be origins such as https://app.example.com, without a path, or *; commas between")
        return origins

    @field_validator("redis_url")
    @classmethod
    def _usable_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value.get_secret_value())
            parts.port  # noqa: B018 - raises if it is not a number
        except ValueError:
            # The message would quote the text in place of the port: often a password with a slash.
            raise ValueError("must be a URL; percent-encode the password, or give it in its own variable") from None
        if parts.scheme not in REDIS_SCHEMES:
            raise ValueError(f"must start with one of {', '.join(f'{scheme}://' for scheme in REDIS_SCHEMES)}")
        return value

    @field_validator("image_cache")
    @classmethod
    def _has_redis(cls, value: ImageCache, info: ValidationInfo) -> ImageCache:
        # A Redis URL that is invalid itself is not among the data, and named alone.
        if value == "redis" and info.data.get("redis_url", _INVALID) is None:
            raise ValueError(f"redis needs {ENV_PREFIX}REDIS_URL; set it, or memory")
        return value

    @field_validator("state_url")
    @classmethod
    def _usable_state_url(cls, value: SecretStr | None) -> SecretStr | None:
        scheme, separator, _ = ("" if value is None else value.get_secret_value()).partition("://")
        if value is None or not separator or scheme == "file":
            return value
        if scheme not in REDIS_SCHEMES:
            raise ValueError("must be a path, or start with one of file://, redis://, rediss://, unix://")
        return cls._usable_url(value)


def variable(setting: str) -> str:
    """Return the environment variable of `setting` (``max_batch`` -> ``ANYCLASS_MAX_BATCH``)."""
    return ENV_PREFIX + setting.upper()


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return the ``ANYCLASS_*`` variables that are not settings, each with the most similar setting, if any.

    Variables of the project's other commands are left out, as are the addresses that Kubernetes and Docker inject for
    services named `anyclass` or `anyclass-…`. A client's key is included if the service has no keys: it may have been
    meant for the service.
    """
    known = {name.upper(): variable(name) for name in Settings.model_fields}
    # pydantic-settings ignores case and empty variables.
    names = {name.upper() for name, value in environ.items() if value and name.upper().startswith(ENV_PREFIX)}
    services = tuple(name.removesuffix(_SERVICE_HOST) for name in names if name.endswith(_SERVICE_HOST))
    injected = {f"{service}_PORT" for service in services}
    prefixes = tuple(f"{service}_{what}_" for service in services for what in ("SERVICE", "PORT"))
    keyed = not names.isdisjoint({variable("api_keys"), variable("api_keys_file")})
    unknown: dict[str, str | None] = {}
    for name in sorted(names - set(known.values()) - injected):
        if name.startswith(prefixes) or _LINK.fullmatch(name):
            continue
        if _OTHER_COMMANDS.fullmatch(name) and (keyed or name != _CLIENT_KEY):
            continue
        similar = difflib.get_close_matches(name.removeprefix(ENV_PREFIX), known, n=1, cutoff=_MIN_SIMILARITY)
        unknown[name] = known[similar[0]] if similar else None
    return unknown


def problems(error: ValidationError) -> list[str]:
    """Return a line for each invalid setting, with its variable and without its value."""
    errors = error.errors(include_url=False, include_input=False)
    return [f"{variable(name)}: {fault}" for name, fault in faults(errors)]
