"""The Python API: LLM.generate, LLM.stream, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_decoder import FakeDecoder, expected_output
from served import bundled_model, fake_model, is_idle

import pocketlm
from pocketlm import LLM, ConfigError, EngineError, FinishReason, InvalidRequest, SamplingParams, errors
from pocketlm.generation import Prompt
from pocketlm.outputs import RequestOutput

PROMPTS = ["Kubernetes is a", "Docker containers are", "The future of AI is"]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> LLM:
    """An LLM over the model that all tests share."""
    monkeypatch.setattr("pocketlm.llm.load_model", lambda name, config: bundled_model())
    return LLM()


def fake_llm(monkeypatch: pytest.MonkeyPatch, decoder: FakeDecoder) -> LLM:
    monkeypatch.setattr("pocketlm.llm.load_model", lambda name, config: fake_model(decoder))
    return LLM()


def texts(outputs: list[RequestOutput]) -> list[list[str]]:
    return [[completion.text for completion in output.outputs] for output in outputs]


def test_one_call_from_name_to_text() -> None:
    llm = LLM(model="bundled", dtype="float32", max_model_len=64, num_threads=1)
    [output] = llm.generate("Kubernetes is a", SamplingParams(temperature=0, max_tokens=8))
    [completion] = output.outputs
    assert output.prompt == "Kubernetes is a"
    assert llm.model.tokenizer.decode(output.prompt_token_ids) == "Kubernetes is a"
    assert completion.text == llm.model.tokenizer.decode(completion.token_ids) and completion.text
    assert len(completion.token_ids) == 8
    assert completion.finish_reason is FinishReason.LENGTH


def test_many_prompts_are_answered_in_order_as_each_alone(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=4 * i + 4, seed=i) for i in range(3)]
    together = llm.generate(PROMPTS, params)
    alone = [llm.generate(prompt, p)[0] for prompt, p in zip(PROMPTS, params, strict=True)]
    assert together == alone
    assert [output.prompt for output in together] == PROMPTS
    assert is_idle(llm.model)


def test_a_prompt_may_be_given_as_ids(llm: LLM) -> None:
    params = SamplingParams(seed=1)
    ids = [llm.model.tokenizer.encode(prompt) for prompt in PROMPTS]
    assert llm.generate(ids, params) == llm.generate(PROMPTS, params)
    assert llm.generate(ids[0], params) == llm.generate([PROMPTS[0]], params)
    mixed: list[Prompt] = [ids[0], PROMPTS[1]]
    assert llm.generate(mixed, params) == llm.generate(PROMPTS[:2], params)


def test_no_prompts_no_answers(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_defaults_are_sixteen_tokens_and_a_drawn_seed(llm: LLM) -> None:
    [endless] = llm.generate("Kubernetes is a", SamplingParams(ignore_eos=True))
    assert len(endless.outputs[0].token_ids) == 16
    first, second = (llm.generate("Kubernetes is a")[0].outputs[0] for _ in range(2))
    assert first.seed != second.seed
    [again] = llm.generate("Kubernetes is a", SamplingParams(seed=first.seed))
    assert again.outputs[0] == first


def test_n_completions_are_drawn_with_seeds_in_a_row(llm: LLM) -> None:
    [output] = llm.generate("Kubernetes is a", SamplingParams(n=3, seed=5))
    assert [completion.seed for completion in output.outputs] == [5, 6, 7]
    assert [completion.index for completion in output.outputs] == [0, 1, 2]
    [second] = llm.generate("Kubernetes is a", SamplingParams(seed=6))
    assert second.outputs[0].text == output.outputs[1].text
    assert len({completion.text for completion in output.outputs}) == 3


def test_logprobs_come_one_entry_a_token(llm: LLM) -> None:
    [output] = llm.generate("Kubernetes is a", SamplingParams(temperature=0, max_tokens=5, logprobs=2))
    [completion] = output.outputs
    assert completion.logprobs is not None
    for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert entry[token_id].rank == 1  # greedy
        assert len(entry) == 2 and all(x.logprob < 0 for x in entry.values())


def test_a_prompt_is_scored_without_drawing_a_token(llm: LLM) -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=2)
    [output] = llm.generate("Kubernetes is a", params)
    [completion] = output.outputs
    assert (completion.text, completion.token_ids) == ("", [])
    assert completion.finish_reason is FinishReason.LENGTH
    assert output.prompt_logprobs is not None
    first, *others = output.prompt_logprobs
    assert first is None
    for token_id, entry in zip(output.prompt_token_ids[1:], others, strict=True):
        assert entry is not None and entry[token_id].logprob < 0
        assert sorted(x.rank for x in entry.values())[:2] == [1, 2]
    assert is_idle(llm.model)


def test_an_answer_scored_as_a_prompt_has_the_log_probabilities_it_was_drawn_with(llm: LLM) -> None:
    [drawn] = llm.generate("Kubernetes is a", SamplingParams(seed=1, max_tokens=30, logprobs=3))
    [completion] = drawn.outputs
    ids = drawn.prompt_token_ids + completion.token_ids
    [read] = llm.generate(ids, SamplingParams(max_tokens=0, prompt_logprobs=3))
    assert read.prompt_logprobs is not None
    assert read.prompt_logprobs[len(drawn.prompt_token_ids) :] == completion.logprobs


def test_prompt_logprobs_come_with_the_first_piece_and_do_not_change_the_answers(llm: LLM) -> None:
    params = SamplingParams(n=2, seed=3, max_tokens=5)
    [plain] = llm.generate("Kubernetes is a", params)
    stream = llm.stream("Kubernetes is a", replace(params, prompt_logprobs=0))
    next(stream)
    assert stream.output.prompt_logprobs is not None
    assert len(stream.output.prompt_logprobs) == len(plain.prompt_token_ids)
    for _ in stream:
        pass
    assert stream.output.outputs == plain.outputs


def test_next_token_logprobs_are_those_of_the_first_drawn_token(llm: LLM) -> None:
    for prompt in (PROMPTS[0], "word " * 100):
        [output] = llm.generate(prompt, SamplingParams(max_tokens=1, temperature=0, logprobs=20))
        [completion] = output.outputs
        assert completion.logprobs is not None
        found = llm.next_token_logprobs(prompt)  # [V]
        assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
        for token_id, entry in completion.logprobs[0].items():
            assert found[token_id] == pytest.approx(entry.logprob, abs=1e-5)
    with pytest.raises(InvalidRequest, match="the prompt is empty"):
        llm.next_token_logprobs("")


def test_stop_strings_end_early_and_free_the_sequence(llm: LLM) -> None:
    [whole] = llm.generate("Kubernetes is a", SamplingParams(seed=1, max_tokens=40))
    text = whole.outputs[0].text
    stop = text[len(text) // 2 :][:4]
    [stopped] = llm.generate("Kubernetes is a", SamplingParams(seed=1, max_tokens=40, stop=stop))
    assert stopped.outputs[0].text == text[: text.index(stop)]
    assert stopped.outputs[0].finish_reason is FinishReason.STOP
    assert is_idle(llm.model)


def test_stream_yields_what_generate_returns(llm: LLM) -> None:
    params = SamplingParams(n=2, seed=3, max_tokens=12)
    stream = llm.stream("Kubernetes is a", params)
    joined = ["", ""]
    for piece in stream:
        joined[piece.index] += piece.text
        assert stream.output.outputs[piece.index].text == joined[piece.index]
    assert [stream.output] == llm.generate("Kubernetes is a", params)
    assert [joined] == texts([stream.output])


def test_speculation_changes_no_answer() -> None:
    plain, fast = LLM(dtype="float32"), LLM(dtype="float32", speculative_tokens=6)
    prompt = "Pods run containers. Pods run containers. Pods run containers. Pods"
    for params in (
        SamplingParams(temperature=0, max_tokens=60, logprobs=2, prompt_logprobs=1, seed=1),
        SamplingParams(temperature=0, max_tokens=60, stop=["AllocatableResources` is"], seed=1),
        SamplingParams(temperature=0, max_tokens=60, repetition_penalty=1.01, min_tokens=60, seed=1),
        SamplingParams(temperature=0.3, max_tokens=60, seed=4),
    ):
        before = fast.model.engine.stats()
        assert fast.generate(prompt, params) == plain.generate(prompt, params)
        pieces, expected = fast.stream(prompt, params), plain.stream(prompt, params)
        assert list(pieces) == list(expected)
        assert pieces.output == expected.output
        after = fast.model.engine.stats()
        assert after.num_accepted_tokens > before.num_accepted_tokens
        assert is_idle(fast.model)
    several = SamplingParams(max_tokens=20, seed=4, n=2)
    assert fast.generate([prompt, "Pods"], several) == plain.generate([prompt, "Pods"], several)


def test_a_stream_left_early_frees_its_blocks(llm: LLM) -> None:
    for piece in llm.stream("Kubernetes is a", SamplingParams(n=3, max_tokens=100)):
        if piece.index == 2:
            break
    assert is_idle(llm.model)


def test_generate_works_while_a_stream_is_half_read(llm: LLM) -> None:
    params = SamplingParams(seed=3, max_tokens=12)
    expected = llm.generate(PROMPTS[0], params)
    stream = llm.stream(PROMPTS[0], params)
    next(stream)
    other = llm.generate(PROMPTS[1], params)
    for _ in stream:
        pass
    assert [stream.output] == expected
    assert other == llm.generate(PROMPTS[1], params)


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        (5, None, "prompts must be a string.*got int"),
        (("a", "b"), None, "prompts must be.*got tuple"),
        (["a", None], None, "a prompt must be .*got NoneType"),
        (["a", ""], None, "prompt is empty"),
        (["a", "b"], [SamplingParams()], "2 prompts but 1 sampling_params"),
        ("a", {"max_tokens": 5}, "sampling_params must be a SamplingParams"),
        (["a", "a " * 600], None, "context window is 512"),
        ("a", SamplingParams(stop_token_ids=[10**6]), "stop_token_ids has token id 1000000"),
    ],
)
def test_everything_is_checked_before_anything_runs(
    llm: LLM, prompts: Any, params: Any, message: str
) -> None:
    before = llm.model.engine.stats()
    with pytest.raises(InvalidRequest, match=message):
        llm.generate(prompts, params)
    assert llm.model.engine.stats() == before


def test_a_wrong_stream_is_refused_when_it_is_asked_for(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="prompt is empty"):
        llm.stream("")


def test_unknown_settings_and_models_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'max_seqs'"):
        LLM(max_seqs=1)
    with pytest.raises(ConfigError, match="dtype"):
        LLM(dtype="int3")


def test_a_failed_sequence_raises_and_frees_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = FakeDecoder(nan_token_id=42)
    llm = fake_llm(monkeypatch, decoder)
    with pytest.raises(EngineError, match="not finite"):
        llm.generate([[1, 2], [3, 42]], SamplingParams(max_tokens=20))
    assert is_idle(llm.model)
    decoder.nan_token_id = None
    params = SamplingParams(max_tokens=3)
    [output] = llm.generate([[1, 2]], params)
    [completion] = output.outputs
    assert completion.token_ids == expected_output([1, 2], params, seed=completion.seed)


def test_ctrl_c_frees_the_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = FakeDecoder()
    llm = fake_llm(monkeypatch, decoder)
    stream = llm.stream([1, 2, 3], SamplingParams(max_tokens=50))
    next(stream)
    decoder.errors.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        for _ in stream:
            pass
    assert is_idle(llm.model)


def test_the_public_names_are_exactly_those_in_all() -> None:
    public = {"LLM", "SamplingParams", "RequestOutput", "Completion", "FinishReason", "__version__"}
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert set(pocketlm.__all__) == set(dir(pocketlm)) == public | kinds
    for name in pocketlm.__all__:
        assert getattr(pocketlm, name) is getattr(pocketlm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pocketlm.nothing  # noqa: B018


def test_import_is_light() -> None:
    code = "import sys, pocketlm; print({'numpy', 'pydantic', 'tokenizers'}.isdisjoint(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"
