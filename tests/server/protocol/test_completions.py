"""The bodies and events of POST /v1/completions."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from answers import answer, events, llm

from pocketlm.config import ServerConfig
from pocketlm.errors import InvalidRequest
from pocketlm.generation import Piece
from pocketlm.outputs import FinishReason, Timing
from pocketlm.sampling import SamplingParams
from pocketlm.server.protocol import CompletionRequest, Head, Result

PROMPT = "Kubernetes is a"


def make(**fields: Any) -> CompletionRequest:
    return CompletionRequest.from_json({"prompt": PROMPT, "seed": 1, **fields}, ServerConfig())


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        make(**fields)
    return caught.value


def joined(request: CompletionRequest) -> dict[int, dict[str, Any]]:
    """The choices of a stream, put together from its events; checks that each ends once, at its end."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events(request):
        for chunk in event["choices"]:
            choice = choices.setdefault(chunk["index"], {"text": "", "finish_reason": None, "logprobs": None})
            assert choice["finish_reason"] is None
            choice["text"] += chunk["text"]
            choice["finish_reason"] = chunk["finish_reason"]
            if chunk["logprobs"] is not None:
                parts = choice["logprobs"] or {name: [] for name in chunk["logprobs"]}
                choice["logprobs"] = {name: parts[name] + chunk["logprobs"][name] for name in parts}
    return choices


def test_the_body() -> None:
    body = answer(make())
    [choice] = body.pop("choices")
    text = choice.pop("text")
    params = SamplingParams(seed=1)  # OpenAI's defaults are those of SamplingParams
    assert text == llm().generate(PROMPT, params)[0].outputs[0].text
    assert choice == {"index": 0, "logprobs": None, "finish_reason": "length", "seed": 1}
    assert body == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1_800_000_000,
        "model": "bundled",
        "system_fingerprint": "fp_1",
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 16,
            "total_tokens": 19,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
        "cached": False,
        "parameters": {"max_tokens": 16, "temperature": 1.0, "top_p": 1.0, "n": 1, "seed": 1},
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": ["a", "b"], "n": 2, "logprobs": 2, "echo": True, "include_timing": True},
        {"max_tokens": 0, "echo": True, "logprobs": 0},
        {"best_of": 2},
    ],
)
def test_the_body_is_as_its_schema_says(fields: dict[str, Any]) -> None:
    jsonschema_rs.validate(CompletionRequest.RESPONSE, json.loads(json.dumps(answer(make(**fields)))))


@pytest.mark.parametrize(
    "prompt",
    [
        "one",
        ["one", "two"],
        [5, 6, 7],
        [[5, 6], [7]],
    ],
)
def test_every_form_of_a_prompt(prompt: Any) -> None:
    is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
    prompts = [prompt] if is_one else prompt
    assert make(prompt=prompt).prepare(llm().model)[0] == prompts
    body = answer(make(prompt=prompt, n=2, temperature=0.5))
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(prompts)))
    params = SamplingParams(seed=1, n=2, temperature=0.5)
    texts = [c.text for output in llm().generate(prompts, params) for c in output.outputs]
    assert [choice["text"] for choice in body["choices"]] == texts
    assert [choice["seed"] for choice in body["choices"]] == [1, 2] * len(prompts)


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        "",
        [],
        [""],
        [[]],
        ["a", ""],
        ["a", [5]],
        [[5], "a"],
        [5, "a"],
        [5.0],
        [True],
        [[5.5]],
        5,
        {},
        [None],
    ],
)
def test_a_prompt_in_no_form(prompt: Any) -> None:
    error = refused(prompt=prompt)
    assert error.param == "prompt" and len(str(error)) < 300


def test_the_number_of_prompts_is_bounded() -> None:
    assert len(make(prompt=["a"] * 128).prompts) == 128
    assert "at most 128 prompts, got 129" in str(refused(prompt=["a"] * 129))
    assert "NUL" in str(refused(prompt=["a", "\0"]))


@pytest.mark.parametrize("fields", [{}, {"prompt": ["a", "b"], "n": 2}, {"logprobs": 2, "stop": "e"}])
@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_joins_to_the_body(fields: dict[str, Any], echo: bool) -> None:
    choices = answer(make(echo=echo, **fields))["choices"]
    for index, choice in joined(make(echo=echo, stream=True, **fields)).items():
        whole = choices[index]
        assert choice == {name: whole[name] for name in choice}
    assert len(choices) == len(joined(make(echo=echo, **fields)))


def test_the_events_of_a_stream() -> None:
    *chunks, last = events(make(stream=True))
    for event in [*chunks, last]:
        assert event["object"] == "text_completion" and event["id"] == "cmpl-1"
        assert "usage" not in event
    assert last["parameters"] == answer(make())["parameters"]
    assert last["choices"][0]["finish_reason"] == "length" and last["choices"][0]["seed"] == 1
    assert all("parameters" not in event for event in chunks)


def test_usage_at_the_end_of_a_stream() -> None:
    *chunks, last = events(make(stream=True, stream_options={"include_usage": True}))
    assert all(event["usage"] is None and len(event["choices"]) == 1 for event in chunks)
    assert last["choices"] == []
    assert last["usage"] == answer(make())["usage"]
    assert "timing" not in last
    assert "timing" in events(make(stream=True, include_timing=True))[-1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": True}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 17}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"echo": True, "logprobs": 1, "n": 2, "stream": True}, "echo"),
        ({"max_length": 50}, "max_length"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
def test_what_does_not_go_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


def test_a_lenient_server_drops_stream_options_it_does_not_know() -> None:
    body = {"prompt": "a", "stream": True, "stream_options": {"other": 1, "include_usage": True}}
    asked = CompletionRequest.from_json(body, ServerConfig(lenient=True)).asked
    assert asked.ignored == ("stream_options.other",)
    assert asked.include_usage


def test_echo_with_logprobs_scores_the_prompt() -> None:
    """What lm-eval's local-completions sends for a log-likelihood, and how it reads the answer."""
    token_ids = llm().model.tokenizer.encode("Kubernetes is a container orchestrator")
    num_context = 3
    body = answer(make(prompt=[token_ids], max_tokens=1, temperature=0, logprobs=1, echo=True))
    [choice] = body["choices"]
    logprobs = choice["logprobs"]
    assert {len(entries) for entries in logprobs.values()} == {len(token_ids) + 1}
    assert choice["text"].startswith("Kubernetes is a container orchestrator")
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    for i, offset in enumerate(logprobs["text_offset"]):
        assert choice["text"][offset:].startswith(logprobs["tokens"][i])

    # The same sum, token by token, each prefix a request of its own.
    expected = []
    for i in range(num_context, len(token_ids)):
        params = SamplingParams(max_tokens=1, temperature=0, logprobs=20, logit_bias={token_ids[i]: 100})
        [output] = llm().generate([token_ids[:i]], params)
        [entry] = output.outputs[0].logprobs or []
        expected.append(entry[token_ids[i]].logprob)
        is_likeliest = logprobs["token_logprobs"][i] == max(logprobs["top_logprobs"][i].values())
        assert is_likeliest == (entry[token_ids[i]].rank == 1)
    assert logprobs["token_logprobs"][num_context:-1] == expected


def test_max_tokens_0_gives_the_prompt_alone() -> None:
    body = answer(make(max_tokens=0, echo=True, logprobs=0))
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert choice["logprobs"]["tokens"] == ["Kubernetes", " is", " a"]
    assert all(top is None or len(top) == 1 for top in choice["logprobs"]["top_logprobs"])
    assert body["usage"]["completion_tokens"] == 0


def test_without_echo_logprobs_are_of_the_answer() -> None:
    [choice] = answer(make(logprobs=3))["choices"]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"][0] == 0
    assert all(3 <= len(top) <= 4 for top in logprobs["top_logprobs"])
    for token, logprob, top in zip(*list(logprobs.values())[:3], strict=True):
        assert top[token] == logprob


def test_best_of_gives_the_likeliest_answers() -> None:
    body = answer(make(n=2, best_of=5, max_tokens=8))
    [output] = llm().generate(PROMPT, SamplingParams(n=5, seed=1, max_tokens=8, logprobs=0))
    means = []
    for c in output.outputs:
        assert c.logprobs is not None
        logprobs = [entry[i].logprob for i, entry in zip(c.token_ids, c.logprobs, strict=True)]
        means.append(sum(logprobs) / len(logprobs))
    best = sorted(range(5), key=means.__getitem__, reverse=True)[:2]
    assert [choice["text"] for choice in body["choices"]] == [output.outputs[i].text for i in best]
    assert [choice["seed"] for choice in body["choices"]] == [1 + i for i in best]
    assert [choice["logprobs"] for choice in body["choices"]] == [None, None]
    assert body["usage"]["completion_tokens"] == 40  # all that were drawn


def test_a_stored_answer_and_a_timeout_are_pieces_like_others() -> None:
    request = make(stream=True, logprobs=1)
    prompts, params = request.prepare(llm().model)
    [output] = llm().generate(prompts, params)
    [c] = output.outputs
    head = Head("x", 0, "m", "f")
    [event] = request.piece(head, 0, output, Piece(0, c.text, c.token_ids, c.logprobs, c.finish_reason))
    [choice] = answer(make(logprobs=1))["choices"]
    assert event["choices"] == [choice]
    c.finish_reason = FinishReason.TIMEOUT
    [event] = request.piece(head, 0, output, Piece(0, "", [], None, FinishReason.TIMEOUT))
    assert event["choices"][0]["finish_reason"] == "timeout" and event["choices"][0]["text"] == ""
    assert request.closing(Result(head, [output], True, 0.0, timing=Timing())) == []
