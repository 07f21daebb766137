"""The bodies and events of POST /v1/chat/completions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest
from answers import HEAD, TIMING, answer, events, llm

from pocketlm.config import ServerConfig
from pocketlm.errors import ContextLengthExceeded, InvalidRequest
from pocketlm.sampling import SamplingParams
from pocketlm.server.protocol import ChatRequest, Result
from pocketlm.text.chat_template import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Answer shortly."},
    {"role": "user", "content": "What is a pod?"},
]
RENDERED = "Answer shortly.\n\nUser: What is a pod?\nAssistant:"


def make(**fields: Any) -> ChatRequest:
    return ChatRequest.from_json(
        {"messages": MESSAGES, "seed": 1, "max_tokens": 20, **fields}, ServerConfig()
    )


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        make(**fields)
    return caught.value


def prompt(messages: list[dict[str, Any]]) -> str:
    """The text that the model continues."""
    [token_ids], _ = make(messages=messages).prepare(llm().model)
    assert isinstance(token_ids, list)
    return llm().model.tokenizer.decode(token_ids)


def in_process(**params: Any) -> list[str]:
    [output] = llm().generate(
        RENDERED, SamplingParams(seed=1, stop="\nUser:", **{"max_tokens": 20, **params})
    )
    return [completion.text for completion in output.outputs]


def test_the_body() -> None:
    body = answer(make())
    [choice] = body.pop("choices")
    [text] = in_process()
    num_prompt_tokens = len(llm().model.tokenizer.encode(RENDERED))
    assert text.startswith(" ")
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": text.removeprefix(" "), "refusal": None},
        "logprobs": None,
        "finish_reason": "length",
        "seed": 1,
    }
    assert body["object"] == "chat.completion"
    assert body["usage"]["prompt_tokens"] == num_prompt_tokens
    assert body["parameters"] == {
        "max_tokens": 20,
        "temperature": 1.0,
        "top_p": 1.0,
        "stop": ("\nUser:",),
        "n": 1,
        "seed": 1,
    }


@pytest.mark.parametrize(
    "fields", [{}, {"n": 2, "logprobs": True, "top_logprobs": 2, "include_timing": True}]
)
def test_the_body_is_as_its_schema_says(fields: dict[str, Any]) -> None:
    jsonschema_rs.validate(ChatRequest.RESPONSE, json.loads(json.dumps(answer(make(**fields)))))


def test_the_text_of_messages() -> None:
    assert prompt(MESSAGES) == RENDERED
    developer = [{"role": "developer", "content": "Answer shortly."}, MESSAGES[1]]
    assert prompt(developer) == RENDERED
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "a pod?"}]
    assert prompt([{"role": "user", "content": parts}]) == "User: What is\na pod?\nAssistant:"


def test_an_answer_sent_back_continues_the_same_text() -> None:
    """So that the next turn finds the tokens of this one in the prefix cache."""
    content = answer(make())["choices"][0]["message"]["content"]
    turn = [{"role": "assistant", "content": content}, {"role": "user", "content": "And?"}]
    assert prompt(MESSAGES + turn) == f"{RENDERED}{in_process()[0]}\nUser: And?\nAssistant:"


def test_a_message_of_a_client_library_may_carry_empty_fields() -> None:
    message = {"role": "assistant", "content": "Yes.", "refusal": None, "tool_calls": None, "annotations": []}
    assert prompt([*MESSAGES, message]) == RENDERED + " Yes.\nAssistant:"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hello", "messages"),
        ([MESSAGES[1]] * 1025, "messages"),
        (["Hello"], "messages[0]"),
        ([{"content": "Hello"}], "messages[0].role"),
        ([MESSAGES[0], {"role": "tool", "content": "5"}], "messages[1].role"),
        ([{"role": ["user"], "content": "Hello"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": "a\0b"}], "messages[0].content"),
        ([{"role": "user", "content": "Hello", "name": "Ann"}], "messages[0].name"),
        ([{"role": "user", "content": ["Hello"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}], "messages[0].content[0].x"),
    ],
)
def test_messages_that_are_none(messages: Any, param: str) -> None:
    error = refused(messages=messages)
    assert error.param == param
    assert param in str(error) and len(str(error)) < 300


def test_a_lenient_server_drops_fields_of_messages() -> None:
    body = {"messages": [{"role": "user", "content": "a", "name": "Ann"}], "tools": [{}]}
    request = ChatRequest.from_json(body, ServerConfig(lenient=True))
    assert request.asked.ignored == ("tools", "messages[0].name")
    assert request.messages == [{"role": "user", "content": "a"}]


def test_the_room_that_is_left_is_the_default_length() -> None:
    request = make(max_tokens=None)
    [token_ids], params = request.prepare(llm().model)
    assert params.max_tokens == 512 - len(token_ids)
    assert answer(make(max_tokens=None, stop=["."]))["parameters"]["max_tokens"] == params.max_tokens


def test_two_names_for_the_length() -> None:
    for fields in (
        {"max_completion_tokens": 7, "max_tokens": None},
        {"max_completion_tokens": 7, "max_tokens": 7},
    ):
        assert make(**fields).params.max_tokens == 7
    assert refused(max_completion_tokens=7, max_tokens=8).param == "max_completion_tokens"
    assert "max_completion_tokens must be an integer at least 0" in str(refused(max_completion_tokens=-1))


def test_messages_longer_than_the_window() -> None:
    with pytest.raises(ContextLengthExceeded, match="context window is 512") as caught:
        make(messages=[{"role": "user", "content": "word " * 600}]).prepare(llm().model)
    assert caught.value.param == "messages"


def test_stop_strings_are_those_asked_for_and_the_templates() -> None:
    _, params = make(stop=["x"]).prepare(llm().model)
    assert params.stop == ("x", "\nUser:")
    assert len(make(stop=["x"] * 15).prepare(llm().model)[1].stop) == 16
    assert "stop takes at most 15 entries, got 16" in str(refused(stop=["x"] * 16))


def test_the_template_of_a_checkpoint() -> None:
    source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    template = ChatTemplate(source, {"bos_token": "<|endoftext|>"}, "here")
    model = replace(llm().model, chat_template=template)
    request = make(messages=[{"role": "developer", "content": "Be kind."}, MESSAGES[1]])
    [token_ids], params = request.prepare(model)
    assert token_ids == model.tokenizer.encode("<|endoftext|>[system]Be kind.[user]What is a pod?[assistant]")
    assert params.stop == ()
    outputs = llm().generate([token_ids], params)
    body = request.whole(Result(HEAD, outputs, cached=False, seconds=0.6, timing=TIMING))
    assert body["choices"][0]["message"]["content"] == outputs[0].outputs[0].text  # as it is


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"logprobs": True, "top_logprobs": 2}])
def test_a_stream_joins_to_the_body(fields: dict[str, Any]) -> None:
    whole = answer(make(**fields))
    texts: dict[int, str] = {}
    logprobs: dict[int, list[Any]] = {}
    ends: dict[int, str] = {}
    for event in events(make(stream=True, **fields)):
        assert event["object"] == "chat.completion.chunk"
        [choice] = event["choices"]
        index = choice["index"]
        if index not in texts:
            assert choice["delta"] == {"role": "assistant", "content": ""}
        assert index not in ends
        texts[index] = texts.get(index, "") + choice["delta"].get("content", "")
        logprobs.setdefault(index, []).extend((choice["logprobs"] or {"content": []})["content"])
        if choice["finish_reason"] is not None:
            ends[index] = choice["finish_reason"]
            assert event["parameters"] == whole["parameters"]
    assert texts == {choice["index"]: choice["message"]["content"] for choice in whole["choices"]}
    assert ends == {choice["index"]: choice["finish_reason"] for choice in whole["choices"]}
    for choice in whole["choices"]:
        assert logprobs[choice["index"]] == (choice["logprobs"] or {"content": []})["content"]


def test_usage_at_the_end_of_a_stream() -> None:
    *chunks, last = events(make(stream=True, stream_options={"include_usage": True}))
    assert all(event["usage"] is None for event in chunks)
    assert last["choices"] == [] and last["usage"] == answer(make())["usage"]


def test_logprobs() -> None:
    body = answer(make(logprobs=True, top_logprobs=3))
    [choice] = body["choices"]
    entries = choice["logprobs"]["content"]
    assert len(entries) == body["usage"]["completion_tokens"]
    text = b"".join(bytes(entry["bytes"]) for entry in entries).decode()
    assert text == " " + choice["message"]["content"]
    for entry in entries:
        ranked = [other["logprob"] for other in entry["top_logprobs"]]
        assert len(ranked) == 3 and ranked == sorted(ranked, reverse=True)
        assert entry["logprob"] <= ranked[0]
    plain = answer(make(logprobs=True))["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in plain] == [[]] * len(entries)
    assert answer(make(logprobs=False))["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {}}, "stream_options"),
        ({"prompt": "a"}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_what_does_not_go_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param
