from __future__ import annotations

from pocketlm.engine.sequence import Sequence
from pocketlm.outputs import FinishReason, TokenLogprobs
from pocketlm.sampling import SamplingParams

EOS = 7


def make_sequence(params: SamplingParams, *, max_new_tokens: int = 10) -> Sequence:
    return Sequence(0, [1, 2, 3], params, seed=0, max_new_tokens=max_new_tokens, eos_token_ids=(EOS,))


def test_a_new_sequence_has_its_prompt_pending() -> None:
    seq = make_sequence(SamplingParams())
    assert (seq.num_tokens, seq.num_prompt_tokens, seq.num_output_tokens) == (3, 3, 0)
    assert seq.num_pending_tokens == 3
    assert seq.output_token_ids == []


def test_output_follows_the_prompt_and_leaves_it_unchanged() -> None:
    seq = make_sequence(SamplingParams())
    seq.append(4)
    seq.append(5)
    assert seq.token_ids == [1, 2, 3, 4, 5]
    assert seq.prompt_token_ids == [1, 2, 3]
    assert seq.output_token_ids == [4, 5]


def test_the_eos_token_stops_and_is_kept() -> None:
    seq = make_sequence(SamplingParams())
    assert seq.append(4) is None
    assert seq.append(EOS) is FinishReason.STOP
    assert seq.output_token_ids == [4, EOS]


def test_ignore_eos_ignores_eos_but_not_stop_token_ids() -> None:
    seq = make_sequence(SamplingParams(ignore_eos=True, stop_token_ids=[9]))
    assert seq.append(EOS) is None
    assert seq.append(9) is FinishReason.STOP


def test_the_last_token_allowed_ends_with_length() -> None:
    seq = make_sequence(SamplingParams(), max_new_tokens=2)
    assert seq.append(4) is None
    assert seq.append(4) is FinishReason.LENGTH


def test_a_stop_token_in_the_last_place_is_a_stop() -> None:
    seq = make_sequence(SamplingParams(), max_new_tokens=1)
    assert seq.append(EOS) is FinishReason.STOP


def test_what_would_end_the_answer_is_banned_until_min_tokens() -> None:
    seq = make_sequence(SamplingParams(min_tokens=2, stop_token_ids=[9]))
    assert seq.banned_ids == [EOS, 9]
    seq.append(4)
    assert seq.banned_ids == [EOS, 9]
    seq.append(4)
    assert seq.banned_ids == []


def test_an_ignored_eos_is_not_banned() -> None:
    assert make_sequence(SamplingParams(min_tokens=2, ignore_eos=True)).banned_ids == []


# Which logits a sequence needs.


def report_rows(seq: Sequence, num_tokens: int) -> list[int]:
    """Compute the next tokens: the rows that were to be reported."""
    rows = seq.prompt_logits_in(num_tokens)
    seq.num_computed_tokens += num_tokens
    if seq.prompt_logprobs is not None:
        seq.prompt_logprobs += [TokenLogprobs((row,), (0.0,), (1,)) for row in rows]
    return list(rows)


def make_long(prompt_logprobs: int | None = 0) -> Sequence:
    params = SamplingParams(prompt_logprobs=prompt_logprobs)
    return Sequence(0, list(range(10)), params, seed=0, max_new_tokens=10)


def test_only_the_last_token_of_a_plain_sequence_must_be_computed() -> None:
    seq = make_long(None)
    assert not seq.wants_prompt_logits
    assert seq.first_wanted == 9
    assert report_rows(seq, 10) == []


def test_each_token_of_the_prompt_but_the_last_reports_the_one_after_it() -> None:
    seq = make_long()
    assert seq.first_wanted == 0
    assert [report_rows(seq, 4), report_rows(seq, 4), report_rows(seq, 2)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8],
    ]
    assert not seq.wants_prompt_logits
    assert seq.first_wanted == 9


def test_rows_reported_before_a_preemption_are_not_reported_again() -> None:
    seq = make_long()
    report_rows(seq, 6)
    seq.num_computed_tokens = 0
    assert seq.first_wanted == 6
    assert [report_rows(seq, 4), report_rows(seq, 6)] == [[], [6, 7, 8]]


def test_a_prompt_of_one_token_has_nothing_to_report() -> None:
    seq = Sequence(0, [5], SamplingParams(prompt_logprobs=3), seed=0, max_new_tokens=10)
    assert not seq.wants_prompt_logits
    assert seq.prompt_logprobs == []
    assert report_rows(seq, 1) == []
