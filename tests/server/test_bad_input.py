"""Every bad request is a 4xx that names the field and the bound, and the server answers the next one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from served import RunningServer, bundled_model, is_idle, running_server

JSON = {"Content-Type": "application/json"}
PROMPT = '"prompt": "Kubernetes is a"'


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(bundled_model()) as server:
        yield server


@pytest.fixture(autouse=True)
def still_answers(server: RunningServer) -> Iterator[None]:
    yield
    response = server.client.post("/generate", json={"prompt": "Kubernetes is a", "max_length": 5})
    assert response.status_code == 200
    assert is_idle(server.model)


def refused(server: RunningServer, content: Any, status: int = 400, headers: dict[str, str] = JSON) -> str:
    """The message with which a body is refused."""
    response = server.client.post("/generate", content=content, headers=headers)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    message: str = response.json()["error"]
    return message


def field(name: str, value: str) -> str:
    """A body with one field more than the prompt, written as raw JSON."""
    return f'{{{PROMPT}, "{name}": {value}}}'


@pytest.mark.parametrize("body", ["{}", '{"prompt": ""}', '{"prompt": null}', '{"max_length": 5}'])
def test_a_prompt_is_required(server: RunningServer, body: str) -> None:
    assert refused(server, body) == "Prompt is required"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"prompt": 5}', "prompt must be a string, got 5"),
        ('{"prompt": ["a"]}', "prompt must be a string, got ['a']"),
        ('{"prompt": false}', "prompt must be a string, got False"),
        ('{"prompt": "ab\\u0000c"}', "prompt must not contain a NUL character (U+0000, at position 2)"),
        (
            '{"prompt": "abc\\ud800"}',
            "prompt must not contain half of a surrogate pair (U+D800, at position 3)",
        ),
    ],
)
def test_a_prompt_is_text(server: RunningServer, body: str, message: str) -> None:
    assert refused(server, body) == message


def test_a_prompt_must_fit(server: RunningServer) -> None:
    assert "max_length is 50" in refused(server, json.dumps({"prompt": "word " * 60}))
    assert "context window is 512" in refused(server, json.dumps({"prompt": "word " * 600}))
    assert "context window is 512" in refused(server, json.dumps({"prompt": "a" * 900_000}))
    # As many tokens as max_length leave no room for one more.
    assert "max_length is 3," in refused(server, f'{{{PROMPT}, "max_length": 3}}')


@pytest.mark.parametrize("value", ["201", "1000000000", "1" + "0" * 50])
def test_max_length_over_the_limit(server: RunningServer, value: str) -> None:
    assert refused(server, field("max_length", value)) == "max_length cannot exceed 200"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0", "0"),
        ("-1", "-1"),
        ('"50"', "'50'"),
        ("true", "True"),
        ("50.5", "50.5"),
        ("50.0", "50.0"),
        ("1e9", "1000000000.0"),
        ("1e999", "inf"),
        ("NaN", "nan"),
        ("-Infinity", "-inf"),
        ("[]", "[]"),
        ("{}", "{}"),
        ('"\\ud800"', r"'\ud800'"),
        ("9" * 100_000, "inf"),
        ("-" + "9" * 100_000, "-inf"),
    ],
)
def test_a_wrong_max_length(server: RunningServer, value: str, shown: str) -> None:
    message = refused(server, field("max_length", value))
    assert message == f"max_length must be an integer between 1 and 200, got {shown}"


@pytest.mark.parametrize("value", ["-1", "-0.1", "2.1", "NaN", "Infinity", '"hot"', "true", "[1]", "1" * 99])
def test_a_wrong_temperature(server: RunningServer, value: str) -> None:
    message = refused(server, field("temperature", value))
    assert message.startswith("temperature must be a number between 0.0 and 2.0, got ")


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("num_return_sequences", "0", "between 1 and 16, got 0"),
        ("num_return_sequences", "17", "between 1 and 16, got 17"),
        ("num_return_sequences", "true", "between 1 and 16, got True"),
        ("num_return_sequences", "1.0", "between 1 and 16, got 1.0"),
        ("max_tokens", "-1", "at least 0"),
        ("min_tokens", "-1", "at least 0"),
        ("top_k", "-1", "at least 0"),
        ("top_k", "1.5", "an integer"),
        ("top_p", "0", "above 0.0 and at most 1.0"),
        ("min_p", "1.5", "between 0.0 and 1.0"),
        ("repetition_penalty", "0", "above 0.0 and at most 10.0"),
        ("presence_penalty", "3", "between -2.0 and 2.0"),
        ("frequency_penalty", "-3", "between -2.0 and 2.0"),
        ("seed", "-1", "between 0 and 18446744073709551615"),
        ("seed", "18446744073709551616", "between 0 and 18446744073709551615"),
        ("seed", '"7"', "between 0 and 18446744073709551615"),
        ("stop", json.dumps(["x"] * 10_000), "at most 16 entries, got 10000"),
        ("stop", '[""]', "1 to 256 characters"),
        ("stop", '["ok", 5]', "1 to 256 characters"),
        ("stop", '"\\ud800"', "surrogate"),
        ("stop", "7", "must be a list"),
        ("stop_token_ids", "[8192]", "0 to 8191"),
        ("stop_token_ids", '["5"]', "at least 0"),
        ("logit_bias", '{"8192": 1}', "0 to 8191"),
        ("logit_bias", '{"x": 1}', "token ids, like \"42\", got 'x'"),
        ("logit_bias", '{"-1": 1}', "token ids, like \"42\", got '-1'"),
        ("logit_bias", '{"5": 101}', "between -100.0 and 100.0"),
        ("logit_bias", "[5]", "must map token ids to numbers"),
        ("ignore_eos", "1", "true or false"),
    ],
)
def test_a_wrong_field_is_named_with_its_bound(
    server: RunningServer, name: str, value: str, bound: str
) -> None:
    message = refused(server, field(name, value))
    assert name in message and bound in message
    assert len(message) < 300


@pytest.mark.parametrize("name", ["n", "logprobs", "suffix", "max_new_tokens", "Prompt", "\\ud800"])
def test_an_unknown_field_is_named_with_those_allowed(server: RunningServer, name: str) -> None:
    message = refused(server, field(name, "1"))
    assert message.startswith(f"unknown field '{name}'; allowed are prompt, max_length, ")


def test_a_field_with_a_huge_name_does_not_make_a_huge_answer(server: RunningServer) -> None:
    assert len(refused(server, field("x" * 500_000, "1"))) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"prompt": "a",}', "not valid JSON"),
        (b"prompt=a", "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 100_000, "nested"),
    ],
)
def test_a_body_that_is_no_json_object(server: RunningServer, content: bytes, message: str) -> None:
    assert message in refused(server, content)


@pytest.mark.parametrize("depth", [20, 300, 600, *range(900, 1000, 4)])
def test_deep_nesting_at_every_depth(server: RunningServer, depth: int) -> None:
    message = refused(server, field("max_length", "[" * depth + "]" * depth))
    assert "nested deeper than 16 levels" in message


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/xml"]
)
def test_a_wrong_content_type(server: RunningServer, media_type: str) -> None:
    message = refused(server, f"{{{PROMPT}}}", 415, {"Content-Type": media_type})
    assert message == f"Content-Type must be application/json, got '{media_type}'"


def test_a_content_type_may_name_its_charset(server: RunningServer) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert server.client.post("/generate", content=f"{{{PROMPT}}}", headers=headers).status_code == 200


@pytest.mark.parametrize(("headers", "status"), [(JSON, 413), ({"Content-Type": "text/plain"}, 415)])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_mb(server: RunningServer, headers: dict[str, str], status: int, chunked: bool) -> None:
    """The client hears the answer even though it listens only once all is sent."""
    megabyte = b" " * 1_000_000
    content = (megabyte for _ in range(100)) if chunked else megabyte * 100
    message = refused(server, content, status, headers)
    assert ("1048576 bytes" in message) == (status == 413)


def test_a_body_just_within_the_limit_is_read(server: RunningServer) -> None:
    body = f"{{{PROMPT}}}".encode()
    padded = body + b" " * ((1 << 20) - len(body))
    assert server.client.post("/generate", content=padded, headers=JSON).status_code == 200
    assert "must not exceed 1048576 bytes" in refused(server, padded + b" ", 413)


def test_other_paths_and_methods(server: RunningServer) -> None:
    response = server.client.get("/nothing")
    assert (response.status_code, response.json()) == (404, {"error": "Not Found: GET /nothing"})
    response = server.client.get("/generate")
    assert (response.status_code, response.json()) == (405, {"error": "Method Not Allowed: GET /generate"})
    assert response.headers["allow"] == "POST"
