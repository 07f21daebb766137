"""The openai package as a client: it is understood, can read what it hears, and raises the right errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from fake_decoder import FakeDecoder
from gate import Gate
from openai import AsyncOpenAI, OpenAI
from served import RunningServer, bundled_model, fake_model, is_idle, running_server, wait_until

from pocketlm.config import EngineConfig
from pocketlm.errors import ModelLoadError
from pocketlm.loading import LoadedModel, estimate
from pocketlm.memory import MemoryEstimate
from pocketlm.registry import Registry

MODEL = "bundled"
PROMPT = "Kubernetes is a"
FRESH = {"cache": False}  # of our own fields: compute the answer, whatever was asked before
ASK: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 12, "seed": 3}
SYSTEM = {"role": "system", "content": "You answer questions about Kubernetes in one sentence."}
QUESTION = {"role": "user", "content": "What is a pod?"}
CHAT: dict[str, Any] = {"model": MODEL, "messages": [SYSTEM, QUESTION], "max_tokens": 12, "seed": 3}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(bundled_model()) as server:
        yield server
    assert is_idle(bundled_model())


@pytest.fixture
def client(server: RunningServer) -> Iterator[OpenAI]:
    with connect(server) as client:
        yield client


def connect(server: RunningServer, *, max_retries: int = 0, api_key: str = "none", **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=max_retries, **options)


def num_requests(server: RunningServer, status: int, path: str = "/v1/completions") -> float:
    return server.sample("http_requests_total", route=path, status=str(status))


# Completions


def test_a_completion(client: OpenAI) -> None:
    answer = client.completions.create(**ASK)
    [choice] = answer.choices
    assert choice.text and choice.index == 0 and choice.finish_reason == "length" and choice.logprobs is None
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    assert answer.system_fingerprint
    assert answer.usage is not None
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 12, 15)
    assert client.completions.create(**ASK, extra_body=FRESH).choices == answer.choices


def test_what_changes_a_completion(client: OpenAI) -> None:
    def text(**changes: Any) -> str:
        return client.completions.create(**{**ASK, **changes}).choices[0].text

    plain = text()
    assert text(user="ann") == plain
    assert text(seed=4) != plain
    assert text(temperature=0) != text(temperature=0, frequency_penalty=2.0)
    assert text(temperature=0) == text(temperature=0, seed=4)
    assert text(temperature=0, logit_bias={"306": 100}) == " is" * 12
    assert text(extra_body={"top_k": 1}) == text(temperature=0)
    assert text(echo=True) == PROMPT + plain
    stop = plain[5:9]
    stopped = client.completions.create(**ASK, stop=[stop]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (plain[: plain.index(stop)], "stop")


def test_several_answers_to_several_prompts(client: OpenAI, server: RunningServer) -> None:
    texts = [PROMPT, "A pod is"]
    token_ids = [server.model.tokenizer.encode(text) for text in texts]
    whole = client.completions.create(**{**ASK, "prompt": texts}, n=2)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert client.completions.create(**{**ASK, "prompt": token_ids}, n=2).choices == whole.choices
    one = client.completions.create(**{**ASK, "prompt": token_ids[1]}, n=2).choices
    assert [choice.text for choice in one] == [choice.text for choice in whole.choices[2:]]


def test_the_best_of_several(client: OpenAI) -> None:
    [best] = client.completions.create(**ASK, best_of=4, logprobs=0).choices
    drawn = client.completions.create(**ASK, n=4, logprobs=0).choices

    def mean(choice: Any) -> float:
        values = choice.logprobs.token_logprobs
        return sum(values) / len(values)

    assert best.text == max(drawn, key=mean).text


def test_log_probabilities_of_a_completion(client: OpenAI) -> None:
    [choice] = client.completions.create(**ASK, logprobs=3, echo=True).choices
    shown = choice.logprobs
    assert shown is not None and shown.tokens and shown.token_logprobs and shown.top_logprobs
    assert shown.text_offset is not None
    assert "".join(shown.tokens) == choice.text
    assert len(shown.tokens) == len(shown.token_logprobs) == len(shown.top_logprobs) == 3 + 12
    assert shown.token_logprobs[0] is None and shown.top_logprobs[0] is None
    for token, logprob, top in zip(
        shown.tokens[1:], shown.token_logprobs[1:], shown.top_logprobs[1:], strict=True
    ):
        assert top[token] == logprob <= 0
        assert len(top) in (3, 4)
    assert [choice.text[i:][:1] for i in shown.text_offset] == [token[0] for token in shown.tokens]


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": 2}, {"echo": True}, {"temperature": 0}])
def test_a_streamed_completion_joins_to_the_whole(client: OpenAI, fields: dict[str, Any]) -> None:
    whole = client.completions.create(**ASK, **fields, extra_body=FRESH)
    chunks = list(client.completions.create(**ASK, **fields, stream=True, extra_body=FRESH))
    assert len(chunks) > 5 and len({chunk.id for chunk in chunks}) == 1
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + [choice.finish_reason]
        if choice.logprobs is not None:
            tokens = [token for part in parts if part.logprobs for token in part.logprobs.tokens or []]
            assert tokens == choice.logprobs.tokens


def test_the_usage_of_a_stream(client: OpenAI) -> None:
    plain = list(client.completions.create(**ASK, stream=True))
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in plain)
    *chunks, last = client.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == [] and last.usage is not None and last.usage.total_tokens == 15


# Chat


def test_a_chat_completion(client: OpenAI) -> None:
    answer = client.chat.completions.create(**CHAT)
    [choice] = answer.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.message.tool_calls is None and choice.message.refusal is None
    assert choice.finish_reason in ("stop", "length")
    assert answer.object == "chat.completion" and answer.usage is not None
    assert answer.usage.prompt_tokens > 10
    newer = {key: value for key, value in CHAT.items() if key != "max_tokens"}
    again = client.chat.completions.create(**newer, max_completion_tokens=12, extra_body=FRESH)
    assert again.choices == answer.choices


def test_a_system_prompt_and_turns_are_part_of_the_prompt(client: OpenAI, server: RunningServer) -> None:
    """/tokenize says what the prompt is; as the prompt of a completion it has the same answer."""
    shots = [
        {"role": "user", "content": [{"type": "text", "text": "What is a node?"}]},
        {"role": "assistant", "content": "A node is a machine."},
    ]
    messages = [{"role": "developer", "content": SYSTEM["content"]}, *shots, QUESTION]
    tokens = server.client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    text = server.model.tokenizer.decode(tokens)
    assert text.startswith(SYSTEM["content"]) and text.endswith("User: What is a pod?\nAssistant:")
    assert "Assistant: A node is a machine.\n" in text
    [chat] = client.chat.completions.create(**{**CHAT, "messages": messages}, temperature=0).choices
    [completion] = client.completions.create(
        **{**ASK, "prompt": tokens}, temperature=0, stop="\nUser:"
    ).choices
    assert chat.message.content == completion.text.removeprefix(" ")
    without = client.chat.completions.create(**{**CHAT, "messages": [QUESTION]}, temperature=0)
    assert without.choices[0].message.content != chat.message.content


def test_an_answer_can_be_sent_back(client: OpenAI) -> None:
    """As clients do: the message object itself, with all its empty fields."""
    said = client.chat.completions.create(**CHAT).choices[0].message
    messages = [*CHAT["messages"], said, {"role": "user", "content": "And a node?"}]
    assert client.chat.completions.create(**{**CHAT, "messages": messages}).choices[0].message.content
    assert client.chat.completions.create(
        **{**CHAT, "messages": [*CHAT["messages"], said.model_dump(), QUESTION]}
    ).choices


def test_log_probabilities_of_a_chat_completion(client: OpenAI) -> None:
    [choice] = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2).choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 2
        assert entry.logprob <= entry.top_logprobs[0].logprob
    text = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content).decode()
    assert choice.message.content and text.removeprefix(" ").startswith(choice.message.content)


def test_a_streamed_chat_joins_to_the_whole(client: OpenAI) -> None:
    whole = client.chat.completions.create(**CHAT, n=2, extra_body=FRESH)
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(**CHAT, n=2, stream=True, stream_options=options, extra_body=FRESH)
    )
    *pieces, last = chunks
    assert last.choices == [] and last.usage is not None and whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    for choice in whole.choices:
        parts = [part for chunk in pieces for part in chunk.choices if part.index == choice.index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert parts[-1].finish_reason == choice.finish_reason


def test_the_clients_own_accumulator_of_a_stream(client: OpenAI) -> None:
    content = client.chat.completions.create(**CHAT).choices[0].message.content
    assert content is not None
    body = {**CHAT, "stop": [content[-6:-2]]}  # it takes an answer that met its length for an error
    whole = client.chat.completions.create(**body)
    with client.chat.completions.stream(**body, extra_body=FRESH) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert text == final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


# What is ours


def test_our_own_fields_and_headers(client: OpenAI) -> None:
    ask = {**ASK, "seed": 11}
    first = client.completions.with_raw_response.create(
        **ask, extra_body={"include_timing": True, "top_k": 5}, extra_headers={"X-Request-Id": "mine-1"}
    )
    assert first.headers["x-cache"] == "miss"
    assert first.headers["x-request-id"] == first.request_id == "mine-1"
    answer = first.parse()
    shown = answer.model_extra
    assert shown is not None
    assert shown["cached"] is False
    assert (shown["parameters"]["top_k"], shown["parameters"]["seed"]) == (5, 11)
    assert shown["timing"]["total_seconds"] > 0
    again = client.completions.with_raw_response.create(**ask, extra_body={"top_k": 5})
    assert again.headers["x-cache"] == "hit"
    extra = again.parse().model_extra
    assert extra is not None and extra["cached"] is True
    assert again.parse().choices == answer.choices
    unasked = client.completions.with_raw_response.create(**ask, extra_body={"top_k": 5, "cache": False})
    assert unasked.headers["x-cache"] == "bypass"
    drawn = {key: value for key, value in ask.items() if key != "seed"}
    assert client.completions.with_raw_response.create(**drawn).headers["x-cache"] == "bypass"


def test_the_time_a_request_may_take() -> None:
    decoder = Gate()
    with running_server(fake_model(decoder)) as server, connect(server) as client:
        decoder.let_through(4)
        [choice] = client.completions.create(
            model=MODEL, prompt="!", max_tokens=50, extra_body={"timeout": 1}
        ).choices
        assert choice.finish_reason == "timeout"
        decoder.open()


def test_models(client: OpenAI) -> None:
    [listed] = client.models.list()
    assert listed == client.models.retrieve(MODEL)
    assert (listed.id, listed.object, listed.owned_by) == (MODEL, "model", "pocketlm")
    assert 0 < listed.created <= time.time()
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("somebody/else")


# Errors


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": 3}, "temperature", "between 0.0 and 2.0"),
        ({"max_tokens": -1}, "max_tokens", "at least 0"),
        ({"prompt": ""}, "prompt", "prompt must be a string"),
        ({"prompt": [[1], ["a"]]}, "prompt", "list of token ids"),
        ({"prompt": [9999]}, "prompt", "9999"),
        ({"prompt": "word " * 600}, "prompt", "context window is 512"),
        ({"logprobs": 21}, "logprobs", "between 0 and 20"),
        ({"n": 3, "best_of": 2}, "best_of", "between 3 and 16"),
        ({"logit_bias": {"9999": 1}}, "logit_bias", "0 to 8191"),
        ({"suffix": "the end"}, "suffix", "suffix is not supported"),
        ({"extra_body": {"guided_json": {}}}, "guided_json", "unknown field 'guided_json'"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"extra_headers": {"X-Request-Timeout-Seconds": "-1"}}, "X-Request-Timeout-Seconds", "above 0"),
    ],
)
def test_a_bad_completion_names_the_field(
    client: OpenAI, fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.completions.create(**{**ASK, **fields})
    assert (caught.value.status_code, caught.value.param) == (400, param)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code in ("invalid_value", "context_length_exceeded")
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "a" * 9000}]}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"extra_body": {"chat_template": "x"}}, "chat_template"),
    ],
)
def test_a_bad_chat_completion_names_the_field(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**CHAT, **fields})
    assert caught.value.param == param and param.partition("[")[0] in caught.value.message


def test_what_asks_for_nothing_is_accepted(client: OpenAI) -> None:
    plain = client.chat.completions.create(**CHAT).choices
    neutral: dict[str, Any] = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "store": False,
    }
    assert client.chat.completions.create(**CHAT, **neutral).choices == plain


def test_a_lenient_server_reports_what_it_ignored() -> None:
    with running_server(bundled_model(), lenient=True) as server, connect(server) as client:
        plain = client.completions.create(**ASK)
        response = client.completions.with_raw_response.create(
            **ASK, suffix="the end", extra_body={"guided_json": {"a": 1}}
        )
        assert response.headers["x-ignored-fields"] == "suffix, guided_json"
        assert response.parse().choices == plain.choices
        tool = {"type": "function", "function": {"name": "f"}}
        chat = client.chat.completions.with_raw_response.create(**CHAT, tools=[tool])
        assert chat.headers["x-ignored-fields"] == "tools"
        assert "x-ignored-fields" not in client.completions.with_raw_response.create(**ASK).headers


def test_a_model_that_is_not_there(client: OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError, match="this server has bundled") as caught:
            client.completions.create(**{**ASK, "model": "gpt-4"}, stream=stream)
        assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_the_api_key() -> None:
    key = "a-key-of-the-test"
    with running_server(bundled_model(), api_key=[key]) as server:
        with connect(server, api_key=key) as client:
            assert client.completions.create(**ASK).choices
            assert [model.id for model in client.models.list()] == [MODEL]
        with connect(server, api_key="another-key", max_retries=2) as client:
            for ask in (client.models.list, lambda: client.chat.completions.create(**CHAT)):
                with pytest.raises(openai.AuthenticationError) as caught:
                    ask()
                assert caught.value.code == "invalid_api_key"
                assert key not in str(caught.value)


def test_a_busy_server_is_asked_again_when_it_says_and_then_given_up() -> None:
    decoder = Gate()
    body: dict[str, Any] = {"model": MODEL, "prompt": "!", "max_tokens": 20, "stream": True}
    with running_server(fake_model(decoder), max_streams=1) as server, connect(server) as client:
        decoder.let_through(1)
        with client.completions.create(**body) as held, connect(server, max_retries=2) as patient:
            start = time.monotonic()
            with pytest.raises(openai.RateLimitError) as caught:
                patient.completions.create(**body)
            # Two waits of the second in Retry-After. Its own would be 1.5 s at most, together.
            assert time.monotonic() - start >= 2
            assert caught.value.response.headers["retry-after"] == "1"
            assert (caught.value.type, caught.value.code) == ("overloaded_error", "overloaded")
            assert num_requests(server, 429) == 3
            decoder.open()
            assert list(held)[-1].choices[0].finish_reason == "length"
        wait_until(lambda: server.app.state.service.num_streams == 0)
        assert list(client.completions.create(**body))[-1].choices[0].finish_reason == "length"


def test_the_rate_limit() -> None:
    with running_server(bundled_model(), rate_limit_requests=2, rate_limit_tokens=40) as server:
        with connect(server) as client:
            answer = client.completions.with_raw_response.create(**ASK)
            assert answer.headers["x-ratelimit-remaining-requests"] == "1"
            assert answer.headers["x-ratelimit-remaining-tokens"] == str(40 - 3 - 12)
        with connect(server, max_retries=2) as client:
            # More than a minute's share: no use in waiting, and the client is told so.
            with pytest.raises(openai.RateLimitError, match="shorten the prompt"):
                client.completions.create(**{**ASK, "max_tokens": 100})
        assert num_requests(server, 429) == 1
        with connect(server) as client:
            with pytest.raises(openai.RateLimitError, match="2 requests are allowed a minute") as caught:
                client.completions.create(**ASK)
            assert (caught.value.type, caught.value.code) == ("rate_limit_error", "rate_limit_exceeded")
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 120


def test_a_deadline_that_passed_is_not_tried_again() -> None:
    decoder = Gate()
    model = fake_model(decoder)
    with running_server(model) as server, connect(server, max_retries=2) as client:
        with pytest.raises(openai.APIStatusError, match="not one token was ready") as caught:
            client.completions.create(model=MODEL, prompt="!", extra_body={"timeout": 0.2})
        assert caught.value.status_code == 408
        assert (caught.value.type, caught.value.code) == ("timeout_error", "timeout")
        assert num_requests(server, 408) == 1
        decoder.open()
        wait_until(lambda: is_idle(model))


def test_a_client_that_waits_no_longer_frees_everything() -> None:
    decoder = Gate()
    model = fake_model(decoder)
    with running_server(model) as server, connect(server) as client:
        with pytest.raises(openai.APITimeoutError):
            client.completions.create(model=MODEL, prompt="!", timeout=0.3)
        engine = server.app.state.service.registry.entries()[0].engine
        wait_until(lambda: engine.num_jobs == 0)
        decoder.open()
        wait_until(lambda: is_idle(model))
        assert client.completions.create(model=MODEL, prompt="!").choices


def test_a_failed_request_is_tried_again() -> None:
    with running_server(fake_model(FakeDecoder(errors=[RuntimeError("secret")]))) as server:
        with connect(server, max_retries=1) as client:
            assert client.completions.create(model=MODEL, prompt="!").choices
        assert (num_requests(server, 500), num_requests(server, 200)) == (1, 1)


def test_a_request_that_cannot_succeed_is_an_internal_server_error() -> None:
    nan_token_id = bundled_model().tokenizer.encode("!")[0]
    with running_server(fake_model(FakeDecoder(nan_token_id=nan_token_id))) as server:
        with connect(server, max_retries=1) as client:
            for stream in (False, True):
                with pytest.raises(openai.InternalServerError, match="not finite") as caught:
                    client.completions.create(model=MODEL, prompt="!", stream=stream)
                assert (caught.value.status_code, caught.value.code) == (500, "non_finite_logits")
        assert num_requests(server, 500) == 4


def test_a_model_that_could_not_be_loaded_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketlm.registry.LOAD_COOLDOWN_S", 1.0)
    failures = [ModelLoadError("it is not there yet")]

    def load(name: str, config: EngineConfig, available_bytes: int | None = None) -> LoadedModel:
        if name == "other" and failures:
            raise failures.pop()
        return replace(fake_model(FakeDecoder()), name=name)

    def estimate_other(name: str, *rest: Any) -> MemoryEstimate:
        return estimate(MODEL, *rest)

    registry = Registry([MODEL, "other"], loader=load, estimator=estimate_other)
    registry.preload()
    with running_server(registry) as server, connect(server, max_retries=2) as client:
        answer = client.completions.create(model="other", prompt="!")
        assert answer.model == "other" and answer.choices
        assert (num_requests(server, 503), num_requests(server, 200)) == (1, 1)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_that_fails_in_the_middle(path: str) -> None:
    decoder = Gate()
    with running_server(fake_model(decoder)) as server, connect(server, max_retries=2) as client:
        decoder.let_through(3)
        chunks: Any
        if path == "/v1/completions":
            chunks = client.completions.create(model=MODEL, prompt="!", max_tokens=20, stream=True)
        else:
            chunks = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "!"}], max_tokens=20, stream=True
            )
        assert next(chunks).choices
        decoder.errors.append(RuntimeError("secret"))
        decoder.open()
        with pytest.raises(openai.APIError, match="forward pass failed") as caught:
            list(chunks)
        assert not isinstance(caught.value, openai.APIStatusError)  # it had a good status by then
        assert (caught.value.type, caught.value.code) == ("server_error", "engine_error")
        assert "secret" not in str(caught.value.body)
        assert num_requests(server, 200, path) == 1  # and is not tried again


# Many at once


def test_answers_to_many_clients_are_each_as_alone(server: RunningServer, client: OpenAI) -> None:
    def body(i: int) -> dict[str, Any]:
        return {**ASK, "prompt": f"Question {i}: what is a pod?", "max_tokens": 20, "seed": i}

    def conversation(i: int) -> dict[str, Any]:
        question = {"role": "user", "content": f"What is pod number {i}?"}
        return {**CHAT, "messages": [SYSTEM, question], "max_tokens": 20, "seed": i}

    async def completion(i: int) -> str:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as own:
            if i % 2:
                return (await own.completions.create(**body(i), extra_body=FRESH)).choices[0].text
            stream = await own.completions.create(**body(i), stream=True, extra_body=FRESH)
            return "".join([chunk.choices[0].text async for chunk in stream])

    async def chat(i: int) -> str:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as own:
            if i % 2:
                answer = await own.chat.completions.create(**conversation(i), extra_body=FRESH)
                return answer.choices[0].message.content or ""
            stream = await own.chat.completions.create(**conversation(i), stream=True, extra_body=FRESH)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_at_once() -> tuple[list[str], list[str]]:
        texts = await asyncio.gather(*map(completion, range(8)), *map(chat, range(8)))
        return texts[:8], texts[8:]

    completions, chats = asyncio.run(all_at_once())
    for i in range(8):
        assert completions[i] == client.completions.create(**body(i), extra_body=FRESH).choices[0].text
        alone = client.chat.completions.create(**conversation(i), extra_body=FRESH)
        assert chats[i] == alone.choices[0].message.content


def test_the_async_client_hears_the_same_errors(server: RunningServer) -> None:
    async def ask() -> None:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.completions.create(**ASK, top_p=0)
            assert caught.value.param == "top_p"
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(**{**CHAT, "model": "gpt-4"}, stream=True)
            assert [model.id async for model in client.models.list()] == [MODEL]
            assert (await client.models.retrieve(MODEL)).id == MODEL

    asyncio.run(ask())
