"""Every bad request under /v1 is answered in OpenAI's form: message, type, param and code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from served import RunningServer, bundled_model, is_idle, running_server

JSON = {"Content-Type": "application/json"}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "A pod is", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "What is a pod?"}], "max_tokens": 2},
}

pytestmark = pytest.mark.parametrize("path", GOOD)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(bundled_model()) as server:
        yield server


@pytest.fixture(autouse=True)
def still_answers(server: RunningServer, path: str) -> Iterator[None]:
    yield
    assert server.client.post(path, json=GOOD[path]).status_code == 200
    assert is_idle(server.model)


def checked_error(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and len(error["message"]) < 700
    return error


def refused(
    server: RunningServer, path: str, content: bytes, status: int = 400, headers: dict[str, str] = JSON
) -> dict[str, Any]:
    return checked_error(server.client.post(path, content=content, headers=headers), status)


def field_refused(server: RunningServer, path: str, **fields: Any) -> dict[str, Any]:
    return refused(server, path, json.dumps({**GOOD[path], **fields}).encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"model": "\xff"}', "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"a":' * 100_000, "nested"),
    ],
)
def test_a_body_that_is_no_json_object(
    server: RunningServer, path: str, content: bytes, message: str
) -> None:
    error = refused(server, path, content)
    assert message in error["message"]
    assert (error["param"], error["code"]) == (None, "invalid_value")


def test_an_empty_object(server: RunningServer, path: str) -> None:
    name = "prompt" if path == "/v1/completions" else "messages"
    error = refused(server, path, b"{}")
    assert error["param"] == name and error["message"].startswith(name)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_wrong_content_type(server: RunningServer, path: str, media_type: str) -> None:
    error = refused(server, path, b"{}", 415, {"Content-Type": media_type})
    assert error["message"] == f"Content-Type must be application/json, got '{media_type}'"
    assert (error["param"], error["code"]) == (None, "unsupported_media_type")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_long(server: RunningServer, path: str, chunked: bool) -> None:
    megabyte = b" " * 1_000_000
    content: Any = (megabyte for _ in range(5)) if chunked else megabyte * 5
    error = refused(server, path, content, 413)
    assert "must not exceed 1048576 bytes" in error["message"]
    assert (error["param"], error["code"]) == (None, "payload_too_large")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_new_tokens", 5, "unknown field 'max_new_tokens'"),
        ("\ud800", 1, "unknown field"),
        ("max_tokens", "5", "at least 0, got '5'"),
        ("max_tokens", 1.5, "at least 0, got 1.5"),
        ("temperature", "hot", "between 0.0 and 2.0, got 'hot'"),
        ("n", 17, "between 1 and 16, got 17"),
        ("seed", -1, "between 0 and"),
        ("stop", 5, "stop must be a list"),
        ("stop", ["a", ""], "1 to 256 characters"),
        ("logit_bias", {"x": 1}, "token ids"),
        ("model", 5, "a string"),
        ("user", "x" * 513, "at most 512 characters"),
        ("timeout", 0, "above 0"),
        ("cache", "no", "true or false"),
        ("stream_options", {"include_usage": 1}, "stream"),
    ],
)
def test_a_wrong_field_is_named(
    server: RunningServer, path: str, name: str, value: Any, words: str, stream: bool
) -> None:
    error = field_refused(server, path, **{name: value, "stream": stream})
    named = repr(name) if name == "\ud800" else name
    assert error["param"].startswith(named) and words in error["message"]
    assert error["code"] == "invalid_value"


def test_a_prompt_without_room(server: RunningServer, path: str) -> None:
    text = "word " * 600
    fields = (
        {"prompt": text} if path == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
    )
    error = field_refused(server, path, **fields)
    assert "context window is 512" in error["message"]
    assert (error["param"], error["code"]) == (next(iter(fields)), "context_length_exceeded")


def test_a_model_that_is_not_there(server: RunningServer, path: str) -> None:
    response = server.client.post(path, json={**GOOD[path], "model": "gpt-4"})
    error = checked_error(response, 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


def test_other_paths_and_methods(server: RunningServer, path: str) -> None:
    error = checked_error(server.client.post(f"{path}s", json=GOOD[path]), 404)
    assert (error["message"], error["code"]) == (f"Not Found: POST {path}s", "not_found")
    response = server.client.get(path)
    error = checked_error(response, 405)
    assert (error["message"], error["code"]) == (f"Method Not Allowed: GET {path}", "method_not_allowed")
    assert response.headers["allow"] == "POST"
