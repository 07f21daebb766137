"""The text side of a request, without an engine loop: steps are made by hand."""

from __future__ import annotations

import pytest
from served import bundled_model

from pocketlm.errors import InvalidRequest, NonFiniteLogits
from pocketlm.generation import Generation, Piece, admit
from pocketlm.outputs import FinishReason, StepOutput, TokenLogprobs
from pocketlm.sampling import MAX_SEED, SamplingParams

TOKENIZER = bundled_model().tokenizer
EOS = 0


def make(params: SamplingParams, prompt: str = "A prompt") -> Generation:
    return admit(TOKENIZER, bundled_model().engine, prompt, params)


def run(params: SamplingParams, token_ids: list[int], reason: FinishReason) -> tuple[Generation, list[Piece]]:
    """All pieces of one sequence whose last token ends it for `reason`."""
    generation = make(params)
    pieces = []
    for i, token_id in enumerate(token_ids):
        is_last = i == len(token_ids) - 1
        piece = generation.push(0, StepOutput(0, token_id, reason if is_last else None))
        pieces += [piece] if piece is not None else []
    return generation, pieces


def test_the_pieces_join_to_the_text() -> None:
    text = " one — two 🙂 three"
    token_ids = TOKENIZER.encode(text)
    generation, pieces = run(SamplingParams(), token_ids, FinishReason.LENGTH)
    [completion] = generation.output.outputs
    assert completion.text == "".join(piece.text for piece in pieces) == text
    assert completion.token_ids == [i for piece in pieces for i in piece.token_ids] == token_ids
    assert completion.finish_reason is pieces[-1].finish_reason is FinishReason.LENGTH
    assert all(piece.finish_reason is None for piece in pieces[:-1])
    assert generation.is_finished


def test_half_a_character_is_shown_only_at_the_end() -> None:
    token_ids = TOKENIZER.encode("🙂")
    assert len(token_ids) > 1
    _, pieces = run(SamplingParams(), token_ids[:-1], FinishReason.LENGTH)
    assert [piece.text for piece in pieces[:-1]] == [""] * (len(pieces) - 1)
    assert pieces[-1].text.strip("�") == "" and pieces[-1].text


@pytest.mark.parametrize("end", [EOS, TOKENIZER.encode(" end")[0]])
def test_the_token_that_ends_an_answer_is_in_its_ids_and_not_in_its_text(end: int) -> None:
    token_ids = [*TOKENIZER.encode(" some words"), end]
    generation, _ = run(SamplingParams(stop_token_ids=[end]), token_ids, FinishReason.STOP)
    [completion] = generation.output.outputs
    assert completion.text == " some words"
    assert completion.token_ids == token_ids


def test_a_stop_string_ends_the_answer_before_it_and_asks_for_an_abort() -> None:
    token_ids = TOKENIZER.encode(" one two three four")
    generation = make(SamplingParams(stop=["wo th"]))
    pieces = [generation.push(0, StepOutput(0, token_id)) for token_id in token_ids]
    found = next(i for i, piece in enumerate(pieces) if piece is not None and piece.finish_reason is not None)
    [completion] = generation.output.outputs
    assert completion.text == " one t"
    assert completion.finish_reason is FinishReason.STOP
    assert completion.token_ids == token_ids[: found + 1]
    assert pieces[found + 1 :] == [None] * (len(token_ids) - found - 1)  # the engine was a step ahead


def test_what_looked_like_a_stop_string_is_shown_at_the_end() -> None:
    generation, _ = run(
        SamplingParams(stop=["four five"]), TOKENIZER.encode(" three four"), FinishReason.LENGTH
    )
    assert generation.output.outputs[0].text == " three four"


def test_a_stop_string_in_the_last_token_wins_over_length() -> None:
    generation, _ = run(SamplingParams(stop=["four"]), TOKENIZER.encode(" three four"), FinishReason.LENGTH)
    assert generation.output.outputs[0].text == " three "
    assert generation.output.outputs[0].finish_reason is FinishReason.STOP


def test_stop_strings_do_not_count_before_min_tokens() -> None:
    token_ids = TOKENIZER.encode(" the cat and the dog and the end")
    assert TOKENIZER.decode(token_ids[:5]) == " the cat and the"
    generation, _ = run(SamplingParams(min_tokens=5, stop=["the"]), token_ids, FinishReason.LENGTH)
    [completion] = generation.output.outputs
    assert completion.finish_reason is FinishReason.STOP
    assert completion.text == " the cat and the dog and "


def test_each_sequence_has_its_seed_text_and_end() -> None:
    generation = make(SamplingParams(n=2, seed=MAX_SEED, stop="b"))
    assert generation.seeds == [MAX_SEED, 0]  # seed + i, modulo 2**64
    a, b = TOKENIZER.encode(" a")[0], TOKENIZER.encode(" b")[0]
    generation.push(1, StepOutput(7, b))
    generation.push(0, StepOutput(6, a))
    assert not generation.is_finished
    generation.push(0, StepOutput(6, a, FinishReason.LENGTH))
    assert generation.is_finished
    assert [completion.text for completion in generation.output.outputs] == [" a a", " "]


def test_without_a_seed_one_is_drawn_and_reported() -> None:
    seeds = {make(SamplingParams()).output.outputs[0].seed for _ in range(20)}
    assert len(seeds) > 1 and all(0 <= seed < 2**32 for seed in seeds)


def test_logprobs_are_named_by_token() -> None:
    generation = make(SamplingParams(logprobs=1))
    a, b = TOKENIZER.encode(" a")[0], TOKENIZER.encode(" b")[0]
    step = StepOutput(0, a, FinishReason.LENGTH, TokenLogprobs((a, b), (-2.0, -1.0), (2, 1)))
    piece = generation.push(0, step)
    assert piece is not None and piece.logprobs is not None
    [entry] = piece.logprobs
    assert {token_id: (x.logprob, x.rank, x.decoded_token) for token_id, x in entry.items()} == {
        a: (-2.0, 2, " a"),
        b: (-1.0, 1, " b"),
    }
    assert generation.output.outputs[0].logprobs == [entry]
    assert make(SamplingParams()).output.outputs[0].logprobs is None


def test_prompt_logprobs_are_named_by_token_and_the_first_token_has_none() -> None:
    prompt = " b a"
    b, a = TOKENIZER.encode(prompt)
    generation = make(SamplingParams(prompt_logprobs=1), prompt)
    assert generation.output.prompt_logprobs is None
    report = [TokenLogprobs((a, b), (-2.0, -1.0), (2, 1))]
    generation.push(0, StepOutput(0, a, prompt_logprobs=report))
    generation.push(0, StepOutput(0, b, FinishReason.LENGTH))
    assert generation.output.prompt_logprobs is not None
    first, entry = generation.output.prompt_logprobs
    assert first is None and entry is not None
    assert {token_id: (x.logprob, x.rank, x.decoded_token) for token_id, x in entry.items()} == {
        a: (-2.0, 2, " a"),
        b: (-1.0, 1, " b"),
    }


def test_only_the_first_sequence_reports_on_the_prompt() -> None:
    params = SamplingParams(n=3, prompt_logprobs=1, temperature=0.5)
    generation = make(params)
    assert [generation.params_of(index) for index in range(3)] == [
        params,
        *[SamplingParams(n=3, temperature=0.5)] * 2,
    ]


def test_an_answer_of_no_tokens_is_an_empty_piece() -> None:
    generation = make(SamplingParams(max_tokens=0, logprobs=1, stop="x"))
    piece = generation.push(0, StepOutput(0, None, FinishReason.LENGTH))
    assert piece == Piece(0, "", [], None, FinishReason.LENGTH)
    [completion] = generation.output.outputs
    assert (completion.text, completion.token_ids, completion.logprobs) == ("", [], [])
    assert completion.finish_reason is FinishReason.LENGTH
    assert generation.is_finished


def test_a_failed_step_raises_its_error() -> None:
    error = NonFiniteLogits("not finite")
    with pytest.raises(NonFiniteLogits) as caught:
        make(SamplingParams()).push(0, StepOutput(0, None, FinishReason.ERROR, error=error))
    assert caught.value is error


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a\x00b", r"prompt .*NUL.*U\+0000, at position 1"),
        ("ab\ud800", r"prompt .*surrogate.*U\+D800, at position 2"),
        ("", "prompt is empty"),
        ([], "prompt is empty"),
        ([5, 10**6], "0 to 8191, got 1000000"),
        ([5, "x"], "got 'x'"),
        ([True], "got True"),
        (5, "string or a list of token ids, got int"),
        (b"bytes", "got bytes"),
    ],
)
def test_a_wrong_prompt_is_refused(prompt: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        admit(TOKENIZER, bundled_model().engine, prompt, SamplingParams())  # type: ignore[arg-type]
    assert caught.value.param == "prompt"


def test_a_prompt_of_ids_has_a_text() -> None:
    token_ids = TOKENIZER.encode("Kubernetes is a")
    output = admit(TOKENIZER, bundled_model().engine, token_ids, SamplingParams()).output
    assert (output.prompt, output.prompt_token_ids) == ("Kubernetes is a", token_ids)
