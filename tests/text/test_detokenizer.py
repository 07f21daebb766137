from __future__ import annotations

from collections.abc import Sequence

import pytest
from checkpoints import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from pocketlm.hub import BUNDLED
from pocketlm.text.detokenizer import REPLACEMENT, Detokenizer
from pocketlm.text.tokenizer import Tokenizer

BUNDLED_TOKENIZER = Tokenizer.from_folder(BUNDLED)
BYTE_TOKENIZER = Tokenizer(byte_tokenizer())  # an id below 256 is a byte
END_OF_TEXT = 256

WORDS = ["\u2581", "\u2581\u2581\u2581", "\u2581the", "\u2581pod", "s", ".", "\u2581\u4f60", "\u597d", "\n"]


def metaspace_tokenizer() -> Tokenizer:
    """As T5 and early Llama: a space is a sign of its own, and the first one is dropped."""
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="."))
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens(["<s>"])
    return Tokenizer(backend)


def byte_fallback_backend() -> Backend:
    """As Llama 2: the same signs, and bytes spelled out for characters that have no token."""
    words = [*WORDS, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="."))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>"])
    return backend


METASPACE = metaspace_tokenizer()
BYTE_FALLBACK = Tokenizer(byte_fallback_backend())


def pieces(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


@given(st.lists(st.integers(0, BUNDLED_TOKENIZER.vocab_size + 5), max_size=200))
def test_random_tokens_join_to_the_whole_text(token_ids: list[int]) -> None:
    assert "".join(pieces(BUNDLED_TOKENIZER, token_ids)) == BUNDLED_TOKENIZER.decode(token_ids)


@given(st.lists(st.integers(0, END_OF_TEXT + 2), max_size=300))
def test_random_bytes_join_to_the_whole_text(token_ids: list[int]) -> None:
    assert "".join(pieces(BYTE_TOKENIZER, token_ids)) == BYTE_TOKENIZER.decode(token_ids)


NOISE = [b"\xc2", b"\xe2", b"\xe2\x80", b"\xf0", b"\xf0\x9f", b"\xf0\x9f\x99", b"\x80"]


@given(st.lists(st.sampled_from(NOISE)), st.sampled_from([b"", b"\x99\x82", b"a", "🙂".encode()]))
def test_long_runs_of_unfinished_characters(noise: list[bytes], end: bytes) -> None:
    """What a model with random weights may well emit, or a client with logit_bias force."""
    token_ids = list(b"".join(noise * 20) + end)
    assert "".join(pieces(BYTE_TOKENIZER, token_ids)) == BYTE_TOKENIZER.decode(token_ids)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_piece_has_half_a_character_and_none_is_late(text: str) -> None:
    """Byte by byte: each character comes whole, with its last byte."""
    detokenizer = Detokenizer(BYTE_TOKENIZER)
    for char in text:
        expected = [*[""] * (len(char.encode()) - 1), char]
        assert [detokenizer.push(token_id) for token_id in char.encode()] == expected


@pytest.mark.parametrize("tokenizer", [BUNDLED_TOKENIZER, BYTE_TOKENIZER], ids=["bundled", "bytes"])
def test_emoji(tokenizer: Tokenizer) -> None:
    text = "🙂 a family 👩‍👩‍👧‍👦, a flag 🇳🇱 and 你好"
    found = pieces(tokenizer, tokenizer.encode(text))
    assert "".join(found) == text
    assert REPLACEMENT not in "".join(found)


def test_special_tokens_inside_a_character() -> None:
    first, *rest = "🙂".encode()
    token_ids = [first, END_OF_TEXT, *rest, END_OF_TEXT, *b"b"]
    assert pieces(BYTE_TOKENIZER, token_ids) == ["", "", "", "", "🙂", "", "b", ""]


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    token_ids = list("a🙂".encode())[:-1]
    assert pieces(BYTE_TOKENIZER, token_ids) == ["a", "", "", "", REPLACEMENT]


@given(st.lists(st.integers(0, len(WORDS) + 2), max_size=60))
def test_a_decoder_that_drops_the_first_space(token_ids: list[int]) -> None:
    assert "".join(pieces(METASPACE, token_ids)) == METASPACE.decode(token_ids)


@given(st.lists(st.sampled_from([*range(len(WORDS)), "é", "🙂", "\u0800", "<s>"]), max_size=60))
def test_a_decoder_with_byte_tokens(items: list[int | str]) -> None:
    token_ids = []
    for item in items:
        if item == "<s>":
            token_ids.append(BYTE_FALLBACK.vocab_size - 1)
        elif isinstance(item, str):
            token_ids += [len(WORDS) + byte for byte in item.encode()]
        else:
            token_ids.append(item)
    found = pieces(BYTE_FALLBACK, token_ids)
    assert "".join(found) == BYTE_FALLBACK.decode(token_ids)
    assert REPLACEMENT not in "".join(found)


def test_added_tokens_that_are_not_special_are_text() -> None:
    backend = byte_tokenizer()
    backend.add_tokens([AddedToken("<tool é>", special=False)])
    tokenizer = Tokenizer(backend)
    token_ids = [*"é".encode(), 257, *"🙂".encode(), 257]
    assert tokenizer.decode(token_ids) == "é<tool é>🙂<tool é>"
    assert "".join(pieces(tokenizer, token_ids)) == tokenizer.decode(token_ids)


class CountingTokenizer(Tokenizer):
    most_decoded = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.most_decoded = max(self.most_decoded, len(token_ids))
        return super().decode(token_ids)


@pytest.mark.parametrize("content", [b"word " * 500, "🙂".encode() * 500, b"\x80" * 2000])
def test_the_cost_of_a_push_does_not_grow(content: bytes) -> None:
    """Where the last tokens are decoded again with each new one."""
    tokenizer = CountingTokenizer(byte_fallback_backend())
    pieces(tokenizer, [len(WORDS) + byte for byte in content])
    assert 2 <= tokenizer.most_decoded <= 65


def test_a_byte_level_text_is_never_decoded_again() -> None:
    tokenizer = CountingTokenizer(byte_tokenizer())
    assert "".join(pieces(tokenizer, list("a 🙂".encode()))) == "a 🙂"
    assert tokenizer.most_decoded == 0


def test_every_token_alone_is_what_decode_says() -> None:
    """Tokens that were added may hold the signs that spell bytes, or others."""
    backend = Backend.from_file(str(BUNDLED / "tokenizer.json"))
    backend.add_tokens(["<é>", "\u0120x y", " z", "\u0120\u0120\u0120q"])
    tokenizer = Tokenizer(backend)
    for token_id in range(tokenizer.vocab_size + 2):
        assert "".join(pieces(tokenizer, [token_id])) == tokenizer.decode([token_id])
