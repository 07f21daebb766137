"""The bodies and events of POST /generate; over a port they are tested in tests/server/test_generate.py."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from answers import answer, events

from pocketlm.config import ServerConfig
from pocketlm.errors import InvalidRequest
from pocketlm.server.protocol import GenerateRequest


def make(**fields: Any) -> GenerateRequest:
    return GenerateRequest.from_json({"prompt": "Kubernetes is a", "seed": 1, **fields}, ServerConfig())


def test_the_body() -> None:
    body = answer(make(max_length=20))
    assert body.pop("generated_text").startswith("Kubernetes is a")
    assert body == {
        "model": "bundled",
        "prompt": "Kubernetes is a",
        "inference_time_seconds": 0.6,
        "parameters": {
            "max_length": 20,
            "temperature": 0.7,
            "top_k": 50,
            "top_p": 1.0,
            "num_return_sequences": 1,
            "seed": 1,
        },
        "finish_reason": "length",
        "cached": False,
        "usage": {"prompt_tokens": 3, "completion_tokens": 17},
    }


@pytest.mark.parametrize(
    "fields", [{}, {"num_return_sequences": 2, "include_timing": True, "logit_bias": {"5": 1}}]
)
def test_the_body_is_as_its_schema_says(fields: dict[str, Any]) -> None:
    body = answer(make(**fields))
    jsonschema_rs.validate(GenerateRequest.RESPONSE, json.loads(json.dumps(body)))
    assert ("timing" in body) == bool(fields)


def test_timing() -> None:
    assert answer(make(include_timing=True))["timing"] == {
        "queue_seconds": 0.1,
        "prefill_seconds": 0.2,
        "decode_seconds": 0.3,
        "total_seconds": 0.6,
        "cpu_seconds": None,
        "cached_tokens": 2,
    }


def test_the_events_join_to_the_body_which_comes_last() -> None:
    *pieces, last = events(make(num_return_sequences=2, max_tokens=20))
    assert last == answer(make(num_return_sequences=2, max_tokens=20))
    for i, text in enumerate(last["generated_texts"]):
        mine = [event for event in pieces if event["index"] == i]
        assert "Kubernetes is a" + "".join(event["text"] for event in mine) == text
        assert [event.get("finish_reason") for event in mine] == [None] * (len(mine) - 1) + ["length"]
        assert all(event["text"] for event in mine[:-1])


@pytest.mark.parametrize(
    ("fields", "max_length", "max_tokens"),
    [
        ({}, 50, None),
        ({"max_length": 70}, 70, None),
        ({"max_tokens": 60}, 200, 60),
        ({"max_length": 30, "max_tokens": 60}, 30, 60),
    ],
)
def test_how_long_an_answer_may_be(fields: dict[str, int], max_length: int, max_tokens: int | None) -> None:
    params = make(**fields).params
    assert (params.max_length, params.max_tokens) == (max_length, max_tokens)


def test_the_limit_is_the_servers() -> None:
    config = ServerConfig(max_length_limit=20)
    assert GenerateRequest.from_json({"prompt": "a"}, config).params.max_length == 20
    with pytest.raises(InvalidRequest, match="max_length cannot exceed 20"):
        GenerateRequest.from_json({"prompt": "a", "max_length": 21}, config)


def test_the_command_line_has_no_limits() -> None:
    assert GenerateRequest.from_json({"prompt": "a", "max_length": 5000}).params.max_length == 5000
    assert GenerateRequest.from_json({"prompt": "a", "max_tokens": 5000}).params.max_length is None
    assert GenerateRequest.from_json({"prompt": "a", "num_return_sequences": 100}).params.n == 100
