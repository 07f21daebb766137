"""The bodies of POST /tokenize and POST /detokenize."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from answers import llm

from pocketlm.config import ServerConfig
from pocketlm.errors import InvalidRequest
from pocketlm.server.protocol import DetokenizeRequest, TokenizeRequest


def tokenize(**body: Any) -> dict[str, Any]:
    answer = TokenizeRequest(body, ServerConfig()).answer(llm().model)
    jsonschema_rs.validate(TokenizeRequest.RESPONSE, answer)
    return answer


def detokenize(**body: Any) -> dict[str, Any]:
    answer = DetokenizeRequest(body, ServerConfig()).answer(llm().model)
    jsonschema_rs.validate(DetokenizeRequest.RESPONSE, answer)
    return answer


@pytest.mark.parametrize("text", ["", "Kubernetes is a", "naïve 🙂\n"])
def test_there_and_back(text: str) -> None:
    answer = tokenize(prompt=text)
    assert answer["tokens"] == llm().model.tokenizer.encode(text)
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strings"])
    assert answer["max_model_len"] == 512
    assert detokenize(tokens=answer["tokens"]) == {"prompt": text}


def test_token_strings() -> None:
    assert tokenize(prompt="Kubernetes is a")["token_strings"] == ["Kubernetes", " is", " a"]


def test_messages_are_tokenized_as_a_chat_would() -> None:
    answer = tokenize(messages=[{"role": "user", "content": "Hi"}], model="bundled")
    assert detokenize(tokens=answer["tokens"])["prompt"] == "User: Hi\nAssistant:"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a\ud800"}, "prompt"),
        ({"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ({"messages": [], "add_special_tokens": False}, "add_special_tokens"),
        ({"messages": []}, "messages"),
        ({"prompt": "a", "model": 5}, "model"),
        ({"prompt": "a", "stream": True}, "stream"),
    ],
)
def test_a_wrong_request_to_tokenize(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tokenize(**body)
    assert caught.value.param == param


@pytest.mark.parametrize("tokens", [None, 5, "5", [-1], [8192], [10**30], [True], ["5"], [[5]], [5.0]])
def test_a_wrong_request_to_detokenize(tokens: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        detokenize(tokens=tokens)
    assert caught.value.param == "tokens"
