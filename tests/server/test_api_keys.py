"""API keys: where they come from, which are accepted, and that none is shown."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from pocketlm.errors import ConfigError, Unauthorized
from pocketlm.server.api_keys import ApiKeys

ANN, BOB, NEW = "ann-secret-1", "bob-secret-2", "new-secret-3"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def bearer(key: str) -> Headers:
    return Headers({"Authorization": f"Bearer {key}"})


def is_accepted(keys: ApiKeys, key: str) -> bool:
    try:
        keys.check(bearer(key))
    except Unauthorized:
        return False
    return True


def write(file: Path, text: str, *, seconds: int) -> None:
    """Write a file as of some time, so that no test depends on how fine the file system's clock is."""
    file.write_text(text)
    os.utime(file, (seconds, seconds))


def test_keys_have_the_name_given_or_a_number() -> None:
    keys = ApiKeys([f"ann:{ANN}", BOB, f"team.a-1_x:{NEW}"], None)
    assert keys.enabled
    assert keys.check(bearer(ANN)) == "ann"
    assert keys.check(bearer(BOB)) == "key-2"
    assert keys.check(bearer(NEW)) == "team.a-1_x"


def test_a_key_may_hold_colons_after_its_name() -> None:
    assert ApiKeys(["ann:a:b:c:d:e"], None).check(bearer("a:b:c:d:e")) == "ann"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {ANN}"},
        {"authorization": f"bearer  {ANN}"},
        {"X-API-Key": ANN},
        {"Authorization": "Basic abcdefgh", "X-Api-Key": ANN},  # a proxy's own login beside our key
    ],
)
def test_where_a_key_may_stand(headers: dict[str, str]) -> None:
    assert ApiKeys([f"ann:{ANN}"], None).check(Headers(headers)) == "ann"


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": f"Basic {ANN}"}]
)
def test_a_request_without_a_key_is_told_how_to_send_one(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthorized, match="Authorization: Bearer KEY"):
        ApiKeys([ANN], None).check(Headers(headers))


@pytest.mark.parametrize(
    "key", ["", ANN[:-1], ANN + "x", ANN.upper(), f"key-1:{ANN}", "\xe9" * 12, "\ud800" * 12, "x" * 10_000]
)
def test_a_wrong_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(Unauthorized) as refused:
        ApiKeys([ANN], None).check({"x-api-key": key})
    assert refused.value.status == 401
    assert not key or key not in str(refused.value)
    assert ANN not in str(refused.value)


def test_without_keys_nothing_is_guarded() -> None:
    assert not ApiKeys([], None).enabled


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("", "at least 8 characters, got 0"),
        ("1234567", "at least 8 characters, got 7"),
        ("ann:1234567", "at least 8 characters, got 7"),
        (":12345678", "name before the colon"),
        ("an n:12345678", "name before the colon"),
        ("x" * 65 + ":12345678", "name before the colon"),
        ("1234 5678", "without spaces"),
        ("pässwört", "ASCII"),
    ],
)
def test_a_wrong_entry_stops_the_start_and_is_not_shown(entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        ApiKeys([ANN, entry], None)
    assert "api_key number 2" in str(refused.value)
    assert not entry or entry.split(":")[-1] not in str(refused.value)


def test_a_file_has_one_key_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\n\n  ann:{ANN}  \n{BOB}\n")
    keys = ApiKeys([NEW], file)
    assert keys.check(bearer(ANN)) == "ann"
    assert keys.check(bearer(BOB)) == "key-3"
    assert keys.check(bearer(NEW)) == "key-1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "holds no key"),
        (b"# none yet\n", "holds no key"),
        (b"\xff\xfe\n", "not UTF-8"),
        (b"# first\n\nshort\n", "line 3: .*at least 8"),
    ],
)
def test_a_wrong_file_stops_the_start(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        ApiKeys([], file)


def test_a_change_of_the_file_counts_within_a_second(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "keys"
    write(file, ANN, seconds=1000)
    keys = ApiKeys([BOB], file, clock=clock)
    write(file, NEW, seconds=2000)
    clock.now += 1.0
    assert is_accepted(keys, NEW) and is_accepted(keys, BOB)
    assert not is_accepted(keys, ANN)


def test_the_file_may_be_replaced_as_kubernetes_does_it(tmp_path: Path) -> None:
    """A mounted secret is a link to a link; the inner one is turned to another folder."""
    clock = Clock()
    for name, key in (("old", ANN), ("new", NEW)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "keys", f"ann:{key}", seconds=1000)
    (tmp_path / "data").symlink_to("old")
    (tmp_path / "keys").symlink_to("data/keys")
    keys = ApiKeys([], tmp_path / "keys", clock=clock)
    assert is_accepted(keys, ANN)
    (tmp_path / "next").symlink_to("new")
    os.replace(tmp_path / "next", tmp_path / "data")
    write(tmp_path / "new/keys", f"ann:{NEW}", seconds=1001)
    clock.now += 1.0
    assert is_accepted(keys, NEW) and not is_accepted(keys, ANN)


def test_a_file_that_goes_bad_changes_nothing_and_is_complained_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, file = Clock(), tmp_path / "keys"
    write(file, ANN, seconds=1000)
    keys = ApiKeys([], file, clock=clock)

    def errors_after(seconds: int) -> list[str]:
        caplog.clear()
        for _ in range(seconds):
            clock.now += 1.0
            assert is_accepted(keys, ANN)
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]

    write(file, "half-written:\n", seconds=2000)
    [message] = errors_after(3)
    assert "line 1" in message and "remain valid" in message
    write(file, "", seconds=3000)  # no key at all must not open the server
    assert len(errors_after(3)) == 1 and keys.enabled
    file.unlink()
    assert len(errors_after(3)) == 1
    write(file, f"{ANN}\n{NEW}", seconds=4000)
    assert errors_after(1) == [] and is_accepted(keys, NEW)


def test_no_key_is_in_the_log_or_in_a_representation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    clock, file = Clock(), tmp_path / "keys"
    write(file, ANN, seconds=1000)
    keys = ApiKeys([f"bob:{BOB}"], file, clock=clock)
    write(file, NEW, seconds=2000)
    clock.now += 1.0
    is_accepted(keys, "a wrong key")
    shown = caplog.text + repr(keys) + repr(vars(keys))
    assert "read again" in caplog.text
    assert not any(secret in shown for secret in (ANN, BOB, NEW, "a wrong key"))
