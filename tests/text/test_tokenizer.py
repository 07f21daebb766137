from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

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
