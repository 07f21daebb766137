"""The checkpoint that all engines load: GPT-2 124M with random weights, as Hugging Face would store it."""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path

from checkpoints import byte_tokenizer, write_checkpoint
from tokenizers import Tokenizer, models

from peers.workload import WORD_IDS, text_of

VOCAB_SIZE, END_OF_TEXT = 50257, "<|endoftext|>"


def write(folder: Path) -> Path:
    write_checkpoint(
        folder,
        seed=0,
        tokenizer=False,
        architectures=["GPT2LMHeadModel"],
        vocab_size=VOCAB_SIZE,
        n_positions=1024,
        n_ctx=1024,
        n_embd=768,
        n_layer=12,
        n_head=12,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
        bos_token_id=VOCAB_SIZE - 1,
        eos_token_id=VOCAB_SIZE - 1,
        torch_dtype="float32",
    )
    vocab, merges = vocabulary()
    tokenizer = byte_tokenizer()
    tokenizer.model = models.BPE(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt, which the converters read
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024, "eos_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    check_words(tokenizer)
    return folder


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """GPT-2's size: bytes, then aB, aBc, a space and aBc, and numbers that fill it up.

    A lower-case letter merges only with what is left of it, so that a word has one way to be merged.
    """
    low, up = string.ascii_lowercase, string.ascii_uppercase
    pairs = [(a, b) for a in low for b in up]
    words = [(a + b, c) for a, b in pairs for c in low]
    spaced = [("Ġ", a + b) for a, b in words]
    numbers: list[tuple[str, str]] = []
    for length in range(2, 6):
        numbers += [
            ("".join(digits[:-1]), digits[-1]) for digits in itertools.product(string.digits, repeat=length)
        ]
    vocab = {token: id for token, id in byte_tokenizer().get_vocab().items() if id < 256}
    merges = (pairs + words + spaced + numbers)[: VOCAB_SIZE - 1 - len(vocab)]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    vocab[END_OF_TEXT] = len(vocab)
    assert len(vocab) == VOCAB_SIZE
    return vocab, merges


def check_words(tokenizer: Tokenizer) -> None:
    """The workload's prompts are the same as ids and as text."""
    ids = list(WORD_IDS[::99])
    assert tokenizer.encode(text_of(ids)).ids == ids
