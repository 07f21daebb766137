"""What lm-eval's `local-completions` sends, and what it makes of the answer: our own engine's numbers.

Written after version 0.4.13, in our words: it sends batches of token ids with `echo`, reads the
log-probabilities from where the continuation begins to the last but one, and takes a token for the
greedy choice if its own is the largest shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
from served import RunningServer, bundled_model, is_idle, running_server

from pocketlm.llm import LLM
from pocketlm.sampling import SamplingParams

HEADERS = {"Authorization": "Bearer "}  # lm-eval's, where no key is set; requests is what it sends with
CASES = [
    ("Kubernetes is a", " container orchestration system"),
    ("A pod is the smallest", " unit"),
    ("The scheduler", " assigns pods to nodes, and the kubelet runs them. That is all there is to it."),
    ("a", " é½ 🚀 z"),  # characters of several tokens, none of them likely
]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="float32")  # an engine of its own, beside the server's


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(bundled_model(), max_length_limit=512) as server:
        yield server
    assert is_idle(bundled_model())


def ask(server: RunningServer, **body: Any) -> Any:
    response = requests.post(
        f"{server.url}/v1/completions", json={"model": "bundled", **body}, headers=HEADERS, timeout=60
    )
    assert response.status_code == 200, response.text
    return response.json()


def loglikelihoods(answer: Any, context_lengths: list[int]) -> list[tuple[float, bool]]:
    """The sum for each choice, and whether greedy decoding would have said the same."""
    found = []
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    for choice, start in zip(choices, context_lengths, strict=True):
        logprobs = choice["logprobs"]
        values = logprobs["token_logprobs"][start:-1]  # without the token that was generated
        tops = logprobs["top_logprobs"][start:-1]
        is_greedy = all(value == max(top.values()) for value, top in zip(values, tops, strict=True))
        found.append((sum(values), is_greedy))
    return found


def expected(llm: LLM, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    [output] = llm.generate([context + continuation], params)
    assert output.prompt_logprobs is not None
    entries = output.prompt_logprobs[len(context) :]
    mine = [(entry or {})[token_id] for entry, token_id in zip(entries, continuation, strict=True)]
    return sum(logprob.logprob for logprob in mine), all(logprob.rank == 1 for logprob in mine)


def encoded(llm: LLM) -> list[tuple[list[int], list[int]]]:
    """Contexts and continuations, among them what greedy decoding says."""
    encode = llm.model.tokenizer.encode
    cases = [(encode(context), encode(continuation)) for context, continuation in CASES]
    context = encode("A container is")
    [greedy] = llm.generate([context], SamplingParams(max_tokens=6, temperature=0))
    return [*cases, (context, greedy.outputs[0].token_ids)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_loglikelihoods_are_those_of_the_engine(server: RunningServer, llm: LLM, batch_size: int) -> None:
    cases = encoded(llm)
    found = []
    for i in range(0, len(cases), batch_size):
        batch = cases[i : i + batch_size]
        answer = ask(
            server,
            prompt=[context + continuation for context, continuation in batch],
            temperature=0,
            max_tokens=1,
            logprobs=1,
            seed=1234,
            echo=True,
        )
        found += loglikelihoods(answer, [len(context) for context, _ in batch])
    assert found == [expected(llm, *case) for case in cases]
    assert [is_greedy for _, is_greedy in found] == [False, False, False, False, True]


def test_without_a_token_generated(server: RunningServer, llm: LLM) -> None:
    """max_tokens 0, as other harnesses ask: the same numbers, and none after the prompt."""
    prompts = [context + continuation for context, continuation in encoded(llm)]
    ask_for = {"prompt": prompts, "temperature": 0, "logprobs": 1, "seed": 1234, "echo": True}
    one, none = (ask(server, **ask_for, max_tokens=n)["choices"] for n in (1, 0))
    for prompt, with_one, with_none in zip(prompts, one, none, strict=True):
        for name, values in with_none["logprobs"].items():
            assert len(values) == len(prompt) and with_one["logprobs"][name][:-1] == values
        assert with_one["text"].startswith(with_none["text"])
        assert with_none["text"] == llm.model.tokenizer.decode(prompt)
        assert with_none["finish_reason"] == "length"


def test_a_token_that_ends_the_answer_is_counted_too(llm: LLM) -> None:
    """Else the last of the prompt would be taken for the generated one, and left out of the sum."""
    context, continuation = encoded(llm)[0]
    [after] = llm.generate([context + continuation], SamplingParams(max_tokens=1, temperature=0))
    [end] = after.outputs[0].token_ids
    with running_server(bundled_model()) as server:
        answer = ask(
            server,
            prompt=[context + continuation],
            temperature=0,
            max_tokens=1,
            logprobs=1,
            seed=1234,
            echo=True,
            stop_token_ids=[end],
        )
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["tokens"]) == len(context + continuation) + 1
    assert loglikelihoods(answer, [len(context)]) == [expected(llm, context, continuation)]


def test_a_whole_window_leaves_room_for_its_one_token(server: RunningServer, llm: LLM) -> None:
    """lm-eval cuts what it sends to one token less than the model's length."""
    words = llm.model.tokenizer.encode("Pods run containers. " * 200)
    context, continuation = words[:400], words[400:511]
    answer = ask(
        server,
        prompt=[context + continuation],
        temperature=0,
        max_tokens=1,
        logprobs=1,
        seed=1234,
        echo=True,
    )
    assert loglikelihoods(answer, [400]) == [expected(llm, context, continuation)]


@pytest.mark.parametrize("as_text", [False, True])
def test_generations_end_before_a_stop_string(server: RunningServer, llm: LLM, as_text: bool) -> None:
    texts = ["Kubernetes is a", "A pod is", "The scheduler"]
    prompts = texts if as_text else [llm.model.tokenizer.encode(text) for text in texts]
    until = [" the", "\n\n", "<|endoftext|>"]  # lm-eval adds the end token's text to a task's own
    answer = ask(server, prompt=prompts, max_tokens=256, temperature=0, stop=until, seed=1234)
    found = {choice["index"]: choice["text"] for choice in answer["choices"]}
    params = SamplingParams(max_tokens=256, temperature=0, stop=until)
    outputs = llm.generate(prompts, params)
    assert found == {i: output.outputs[0].text for i, output in enumerate(outputs)}
    assert all(" the" not in text for text in found.values())
    unstopped = ask(server, prompt=prompts, max_tokens=8, temperature=0, stop=[], seed=1234)
    assert {choice["finish_reason"] for choice in unstopped["choices"]} == {"length"}


def test_many_batches_at_once_are_the_same(server: RunningServer, llm: LLM) -> None:
    """num_concurrent and batch_size above 1: nothing depends on who else is served."""
    cases = encoded(llm) * 4
    body = {"model": "bundled", "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True}

    async def ask_all() -> list[Any]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            batches = [cases[i : i + 2] for i in range(0, len(cases), 2)]
            posts = [
                client.post(
                    "/v1/completions",
                    json={**body, "prompt": [a + b for a, b in batch], "seed": i, "cache": False},
                )
                for i, batch in enumerate(batches)
            ]
            answers = [response.json() for response in await asyncio.gather(*posts)]
            return [
                one
                for batch, answer in zip(batches, answers, strict=True)
                for one in loglikelihoods(answer, [len(context) for context, _ in batch])
            ]

    assert asyncio.run(ask_all()) == [expected(llm, *case) for case in cases]


def test_the_tokenizer_that_lm_eval_can_ask_for_ids(server: RunningServer, llm: LLM) -> None:
    text = "Kubernetes is a system für 🚀"
    body = {"prompt": text, "add_special_tokens": False}
    tokens = server.client.post("/tokenize", json=body).json()["tokens"]
    assert tokens == llm.model.tokenizer.encode(text, add_special_tokens=False)
    assert server.client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": text}
