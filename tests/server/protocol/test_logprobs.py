"""Log-probabilities in OpenAI's two forms, from entries made by hand."""

from __future__ import annotations

import pytest

from pocketlm.hub import BUNDLED
from pocketlm.outputs import Logprob
from pocketlm.server.protocol.logprobs import TextOffsets, chat_logprobs, completion_logprobs
from pocketlm.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(BUNDLED)
[A], [B], [C] = map(TOKENIZER.encode, (" a", " b", " c"))
UNKNOWN = 10**6  # some models have ids that their tokenizer does not


def entry(*tokens: tuple[int, float, int]) -> dict[int, Logprob]:
    return {token_id: Logprob(logprob, rank, "not used") for token_id, logprob, rank in tokens}


def test_completions() -> None:
    entries = [None, entry((B, -3.0, 7), (A, -0.5, 1), (C, -1.0, 2))]
    assert completion_logprobs(TOKENIZER, [A, B], entries, TextOffsets(TOKENIZER, 10)) == {
        "tokens": [" a", " b"],
        "token_logprobs": [None, -3.0],
        "top_logprobs": [None, {" b": -3.0, " a": -0.5, " c": -1.0}],
        "text_offset": [10, 12],
    }


def test_tokens_with_the_same_name_do_not_hide_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval compares the token's own value with the largest one: both must be there."""
    monkeypatch.setattr(Tokenizer, "token_string", lambda *_: "x")
    entries = [entry((B, -3.0, 7), (A, -0.5, 1), (C, -1.0, 2))]
    [top] = completion_logprobs(TOKENIZER, [B], entries, TextOffsets(TOKENIZER, 0))["top_logprobs"]
    assert top == {"x": -3.0, f"token_id:{A}": -0.5, f"token_id:{C}": -1.0}


def test_text_offsets_count_characters() -> None:
    text = "aé🙂b<|endoftext|> c"
    token_ids = TOKENIZER.encode(text)
    offsets = TextOffsets(TOKENIZER, 0)
    shown = text.replace("<|endoftext|>", "")  # special tokens have no text
    begun = b""
    for token_id in token_ids:
        offset = offsets.next(token_id)
        # A token that begins inside a character is said to begin where the character does.
        assert offset == len(begun.decode(errors="ignore"))
        if TOKENIZER.has_text(token_id):
            begun += TOKENIZER.token_bytes(token_id)
    assert begun.decode() == shown


def test_chat() -> None:
    entries = [entry((B, -3.0, 7), (A, -0.5, 1), (C, -1.0, 2))]
    top = [
        {"token": " a", "logprob": -0.5, "bytes": [32, 97]},
        {"token": " c", "logprob": -1.0, "bytes": [32, 99]},
    ]
    own = {"token": " b", "logprob": -3.0, "bytes": [32, 98]}
    for num_top in (0, 1, 2):
        found = chat_logprobs(TOKENIZER, [B], entries, num_top)
        assert found == [{**own, "top_logprobs": top[:num_top]}]


def test_a_token_among_the_likeliest_is_there_as_well() -> None:
    entries = [entry((A, -0.5, 1), (C, -1.0, 2))]
    [found] = chat_logprobs(TOKENIZER, [A], entries, 2)
    assert [other["token"] for other in found["top_logprobs"]] == [" a", " c"]


def test_half_characters_and_unknown_ids_have_names() -> None:
    half = TOKENIZER.encode("🙂")[0]
    [found] = chat_logprobs(TOKENIZER, [half], [entry((half, -1.0, 1), (UNKNOWN, -2.0, 2))], 2)
    assert found["token"] == "bytes:" + "".join(f"\\x{byte:02x}" for byte in found["bytes"])
    assert found["top_logprobs"][1] == {"token": f"token_id:{UNKNOWN}", "logprob": -2.0, "bytes": []}
