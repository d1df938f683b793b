"""API keys, kept and compared as SHA-256 digests only.

A key file has one key a line; empty lines and lines that begin with ``#`` are ignored:

    name:key
    key
    name:sha256:<the key's SHA-256 in hexadecimal>
    sha256:<the same>

A key has 16 to 512 characters of printable ASCII without spaces and commas. A key without a name is called ``key-``
plus the first eight digits of its digest.
"""

import asyncio
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Self

import structlog

from service.errors import AnyclassError, ConfigurationError
from service.settings import Settings

REREAD_S: Final = 2.0
"""Seconds between checks of the file for a change."""

_MAX_FILE_BYTES: Final = 4 * 2**20
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_HASHED: Final = re.compile(rf"(?:({_NAME}):)?sha256:([0-9A-Fa-f]{{64}})")
_NAMED: Final = re.compile(rf"({_NAME}):([\x21-\x2b\x2d-\x7e]{{16,512}})")
_BARE: Final = re.compile(r"([\x21-\x2b\x2d-\x39\x3b-\x7e]{16,512})")
_SHOWN_DIGITS: Final = 8

_log = structlog.stdlib.get_logger("service.api.access.api_keys")


class ApiKeys:
    """Holds the valid keys, from the environment and from a file that may change."""

    def __init__(self, keys: str | None = None, file: Path | None = None) -> None:
        """Read nothing yet. `keys` has the entries of a key file, separated by commas."""
        self._given = keys
        self._file = file
        self._names: Mapping[bytes, str] = {}
        self._seen: tuple[int, ...] | None = None
        self._loaded = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the keys that the settings name."""
        keys = settings.api_keys
        return cls(None if keys is None else keys.get_secret_value(), settings.api_keys_file)

    @property
    def required(self) -> bool:
        """Return whether requests need a key."""
        return self._given is not None or self._file is not None

    @property
    def loaded(self) -> bool:
        """Return whether `load` has succeeded."""
        return self._loaded

    def load(self) -> None:
        """Read all keys. Reads a file, so call it outside the event loop.

        Raises:
            ConfigurationError: a line is not a key (the message has its number, never its text), no key is given, or
                the file cannot be read.
        """
        names: dict[bytes, str] = {}
        seen = None
        if self._given is not None:
            names |= parse_keys(self._given.split(","), source="ANYCLASS_API_KEYS: entry")
        if self._file is not None:
            try:
                seen = _state_of(self._file)
                with self._file.open("rb") as stream:
                    text = stream.read(_MAX_FILE_BYTES + 1)
                if len(text) > _MAX_FILE_BYTES:
                    raise ConfigurationError(f"The API key file is larger than {_MAX_FILE_BYTES} bytes.")
                names |= parse_keys(text.decode("ascii").splitlines(), source="The API key file: line")
            except OSError as exc:
                raise ConfigurationError(f"The API key file cannot be read: {exc.strerror}.") from exc
            except UnicodeDecodeError as exc:
                raise ConfigurationError("The API key file must be plain ASCII text.") from exc
        if self.required and not names:
            # An empty file is more likely a mistake than the wish to admit everyone, or no one.
            raise ConfigurationError(
                "API keys are required, but none is given. Add one to ANYCLASS_API_KEYS or to ANYCLASS_API_KEYS_FILE."
            )
        self._names, self._seen, self._loaded = names, seen, True

    def name_of(self, key: str) -> str | None:
        """Return the name of a valid key, or None. The time taken does not depend on the key."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, name in self._names.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    async def follow(self) -> None:
        """Apply every change of the file, until cancelled. An unusable file leaves the keys unchanged."""
        if self._file is None:
            return
        complained: tuple[int, ...] | None = None
        while True:
            await asyncio.sleep(REREAD_S)
            complained = await self.refresh(complained)

    async def refresh(self, complained: tuple[int, ...] | None = None) -> tuple[int, ...] | None:
        """Read the file again if it has changed.

        Returns the state of a file that could not be used, to pass as `complained` next time: it is logged once.
        """
        assert self._file is not None  # noqa: S101 - only `follow` and its tests call this
        state: tuple[int, ...] = ()
        try:
            state = await asyncio.to_thread(_state_of, self._file)
            if state == self._seen:
                return None
            await asyncio.to_thread(self.load)
        except (AnyclassError, OSError) as exc:
            if complained != state:
                reason = exc.detail if isinstance(exc, AnyclassError) else exc.strerror
                _log.error("the API key file cannot be used; the keys stay unchanged", reason=reason)
            return state
        _log.info("API keys read again", keys=len(self._names))
        return None


def parse_keys(lines: Iterable[str], *, source: str = "line") -> dict[bytes, str]:
    """Return each key's digest and name. Raises `ConfigurationError` with `source` and the number of a faulty line."""
    names: dict[bytes, str] = {}
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if match := _HASHED.fullmatch(line):
            digest = bytes.fromhex(match[2])
            name = match[1]
        elif match := _NAMED.fullmatch(line):
            if match[1] == "sha256":
                raise ConfigurationError(f"{source} {number} has a digest that is not 64 hexadecimal digits.")
            name, digest = match[1], hashlib.sha256(match[2].encode()).digest()
        elif match := _BARE.fullmatch(line):
            name, digest = None, hashlib.sha256(match[1].encode()).digest()
        else:
            raise ConfigurationError(
                f"{source} {number} is not an API key: it must be `key`, `name:key` or `name:sha256:…`, "
                "the key 16 to 512 characters of printable ASCII without spaces and commas."
            )
        names[digest] = name or f"key-{digest.hex()[:_SHOWN_DIGITS]}"
    return names


def _state_of(file: Path) -> tuple[int, ...]:
    """Return values that change when the file is written or replaced."""
    stat = os.stat(file)  # noqa: PTH116 - follows the links that Kubernetes swaps
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
