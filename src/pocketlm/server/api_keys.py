"""ApiKeys: who may ask. Keys come from flags and from a file that may change while the server runs."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketlm.errors import ConfigError, Unauthorized

log = logging.getLogger(__name__)

MIN_KEY_LENGTH = 8
FILE_CHECK_S = 1.0  # the file is looked at no more often than this
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
KEY = re.compile(r"[!-~]+")  # what a header can carry everywhere: printable ASCII without spaces

FileVersion = tuple[int, int, int]  # changes when the file does


@dataclass(frozen=True, slots=True)
class _Key:
    name: str
    digest: bytes  # of the key itself, which is kept nowhere


class ApiKeys:
    """The keys of `--api-key` and of a file, each an entry KEY or NAME:KEY. No key is ever logged or shown.

    Two keys may have one name, so that a new one can be handed out before the old one is withdrawn.
    """

    def __init__(
        self, keys: Sequence[str], file: Path | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._file = file
        self._given = _parsed(((f"api_key number {i}", entry) for i, entry in enumerate(keys, 1)), 1)
        self._of_file: list[_Key] = []
        self._file_version: FileVersion | None = None
        self._next_check_at = clock() + FILE_CHECK_S
        if file is not None:
            self._file_version = _version(file)
            self._of_file = self._read(file)

    @property
    def enabled(self) -> bool:
        return bool(self._given or self._of_file)

    def check(self, headers: Mapping[str, str]) -> str:
        """The name of the key in a request's headers (their names in lower case), or Unauthorized."""
        self._reload_if_changed()
        presented = _presented(headers)
        if presented is None:
            raise Unauthorized(
                "this server asks for an API key; send it as Authorization: Bearer KEY or as X-API-Key: KEY"
            )
        digest = _digest(presented)
        # Every key is compared, and each in the same time, so that the time taken tells nothing of them.
        found = [key.name for key in self._given + self._of_file if hmac.compare_digest(digest, key.digest)]
        if not found:
            raise Unauthorized("the API key is not one of this server's; check it, or ask for a new one")
        return found[0]

    def _reload_if_changed(self) -> None:
        if self._file is None or self._clock() < self._next_check_at:
            return
        self._next_check_at = self._clock() + FILE_CHECK_S
        version = _version(self._file)
        if version == self._file_version:
            return
        self._file_version = version  # a file that is wrong is complained of once
        try:
            self._of_file = self._read(self._file)
        except ConfigError as error:
            log.error("%s; the keys read before remain valid", error)
        else:
            log.info("api_key_file was read again: it has %d keys", len(self._of_file))

    def _read(self, file: Path) -> list[_Key]:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"api_key_file: {file} cannot be read: {reason}") from None
        entries = (
            (f"api_key_file, line {number}", line.strip())
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")
        )
        keys = _parsed(entries, len(self._given) + 1)
        if not keys:  # to go on would open the server to everyone
            raise ConfigError(f"api_key_file: {file} holds no key; write one a line, as KEY or NAME:KEY")
        return keys


def _parsed(entries: Iterable[tuple[str, str]], first_number: int) -> list[_Key]:
    """The keys of (where it stands, entry) pairs; a key without a name is key-1, key-2 and so on."""
    keys = []
    for number, (where, entry) in enumerate(entries, first_number):
        before, colon, after = entry.partition(":")
        name, key = (before, after) if colon else (f"key-{number}", before)
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: the name before the colon must be 1 to 64 letters, digits, dots, hyphens or "
                "underscores"
            )
        if len(key) < MIN_KEY_LENGTH:
            raise ConfigError(
                f"{where}: a key must have at least {MIN_KEY_LENGTH} characters, got {len(key)}; "
                "make one with: openssl rand -hex 32"
            )
        if not KEY.fullmatch(key):
            raise ConfigError(f"{where}: a key must consist of ASCII characters, without spaces")
        keys.append(_Key(name, _digest(key)))
    return keys


def _presented(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _version(file: Path) -> FileVersion | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
