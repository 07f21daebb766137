from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, processors

from pocketlm.errors import InvalidRequest, ModelLoadError
from pocketlm.hub import BUNDLED
from pocketlm.text.tokenizer import Tokenizer

BUNDLED_TOKENIZER = Tokenizer.from_folder(BUNDLED)


@given(st.text())
def test_decoding_gives_the_text_back(text: str) -> None:
    ids = BUNDLED_TOKENIZER.encode(text)
    assert all(0 <= token_id < BUNDLED_TOKENIZER.vocab_size for token_id in ids)
    assert BUNDLED_TOKENIZER.decode(ids) == text.replace("<|endoftext|>", "")


def test_no_special_token_is_added_and_none_is_shown() -> None:
    assert BUNDLED_TOKENIZER.encode("") == []
    assert 0 not in BUNDLED_TOKENIZER.encode("a pod")
    assert BUNDLED_TOKENIZER.encode("<|endoftext|>") == [0]
    assert BUNDLED_TOKENIZER.decode([0, *BUNDLED_TOKENIZER.encode("a pod"), 0]) == "a pod"


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    size = BUNDLED_TOKENIZER.vocab_size
    assert size == 8192
    assert BUNDLED_TOKENIZER.decode([size, *BUNDLED_TOKENIZER.encode("a"), size + 1]) == "a"


@pytest.mark.parametrize("text", ["\ud800", "half an emoji: \ud83d!", "\udc00" * 3, "x" * 5 + "\udfff"])
def test_a_lone_surrogate_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"lone surrogate, U\+D[0-9A-F]{3}, at character") as error:
        BUNDLED_TOKENIZER.encode(text)
    assert error.value.param == "prompt"


def test_a_nul_byte_is_a_character_like_others() -> None:
    assert BUNDLED_TOKENIZER.decode(BUNDLED_TOKENIZER.encode("a\0b")) == "a\0b"


def test_truncation_and_padding_left_in_the_file_do_not_apply(tmp_path: Path) -> None:
    backend = Backend.from_file(str(BUNDLED / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "The scheduler gives each pod a node that has room for it."
    assert Tokenizer.from_folder(tmp_path).encode(text) == BUNDLED_TOKENIZER.encode(text)


def test_gpt2s_two_files_make_the_same_tokenizer(tmp_path: Path) -> None:
    model = json.loads((BUNDLED / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    tokenizer = Tokenizer.from_folder(tmp_path)
    text = "Pods, nodes & café — 你好 🙂\n\t<|endoftext|> done"
    assert tokenizer.encode(text) == BUNDLED_TOKENIZER.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("<|endoftext|>", "")
    assert tokenizer.vocab_size == BUNDLED_TOKENIZER.vocab_size


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")  # without merges.txt it is of no use
    with pytest.raises(ModelLoadError, match=r"has no tokenizer\.json, and no vocab\.json with merges\.txt"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"{", b"\xff\xfe", b'{"model": {"type": "Magic"}}'])
def test_a_damaged_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is not a valid tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_damaged_merges(tmp_path: Path) -> None:
    shutil.copy(BUNDLED / "config.json", tmp_path / "vocab.json")
    (tmp_path / "merges.txt").write_text("a b c d\n")
    with pytest.raises(ModelLoadError, match=r"vocab\.json with merges\.txt is not a valid tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_the_bytes_of_tokens_join_to_the_text() -> None:
    text = "café — 数 🙂\n\t<|endoftext|> done"
    ids = BUNDLED_TOKENIZER.encode(text)
    assert b"".join(map(BUNDLED_TOKENIZER.token_bytes, ids)).decode() == text


def test_the_names_of_tokens() -> None:
    [whole] = BUNDLED_TOKENIZER.encode(" the")
    assert BUNDLED_TOKENIZER.token_string(whole) == " the"
    assert BUNDLED_TOKENIZER.token_string(0) == "<|endoftext|>"
    names = [BUNDLED_TOKENIZER.token_string(token_id) for token_id in BUNDLED_TOKENIZER.encode("🙂")]
    assert "".join(name.removeprefix("bytes:") for name in names) == r"\xf0\x9f\x99\x82"
    assert all(name.startswith("bytes:") for name in names) and len(names) > 1
    assert BUNDLED_TOKENIZER.token_string(10**6) == "token_id:1000000"


@given(st.text())
def test_no_two_tokens_of_a_text_lose_a_byte(text: str) -> None:
    ids = BUNDLED_TOKENIZER.encode(text)
    assert b"".join(map(BUNDLED_TOKENIZER.token_bytes, ids)).decode() == text


def sentencepiece_like() -> Tokenizer:
    """A tokenizer in the way of Llama 2: spaces and bytes are spelled, and a text gets a first token."""
    vocab = {"<unk>": 0, "<s>": 1, "\u2581": 2, "a": 3, "\u2581a": 4}
    vocab |= {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
    backend = Backend(models.BPE(vocab, [("\u2581", "a")], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(backend)


def test_tokens_that_spell_spaces_and_bytes() -> None:
    tokenizer = sentencepiece_like()
    ids = tokenizer.encode(" aé")
    assert [tokenizer.token_string(token_id) for token_id in ids] == [
        "<s>",
        " a",
        r"bytes:\xc3",
        r"bytes:\xa9",
    ]
    assert b"".join(map(tokenizer.token_bytes, ids[1:])).decode() == " aé"


def test_a_text_that_has_its_special_tokens_gets_no_second_ones() -> None:
    tokenizer = sentencepiece_like()
    assert tokenizer.encode("<s>a", add_special_tokens=False) == tokenizer.encode("a") == [1, 3]
