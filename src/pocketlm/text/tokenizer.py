"""Strings <-> token ids, by Hugging Face's tokenizers library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pocketlm.errors import InvalidRequest, ModelLoadError

END_OF_TEXT = "<|endoftext|>"  # GPT-2's one special token


class Tokenizer:
    """A tokenizer of a checkpoint. Safe to use from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()  # some tokenizer.json files carry these from training
        backend.no_padding()
        self._backend = backend
        self._special_ids = {
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        }

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json, or GPT-2's vocab.json and merges.txt, or raise a ModelLoadError."""
        file, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
        if file.exists():
            source = str(file)
        elif vocab.exists() and merges.exists():
            source = f"{vocab} with merges.txt"
        else:
            raise ModelLoadError(f"{folder} has no tokenizer.json, and no vocab.json with merges.txt")
        try:
            if file.exists():
                return cls(tokenizers.Tokenizer.from_file(str(file)))
            return cls(_gpt2_backend(vocab, merges))
        except Exception as error:  # the library raises nothing more precise
            raise ModelLoadError(f"{source} is not a valid tokenizer: {error}") from error

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones among them."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with the special tokens that tokenizer.json itself adds and no others."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"the prompt has a lone surrogate, U+{ord(text[error.start]):04X}, at character "
                f"{error.start}; it must be valid Unicode",
                param="prompt",
            ) from error
        return self._backend.encode(text).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some ids; special tokens and ids beyond the vocabulary have none."""
        return self._backend.decode(list(token_ids), skip_special_tokens=True)

    def has_text(self, token_id: int) -> bool:
        """Whether an id counts at all in `decode`."""
        return token_id not in self._special_ids and self._backend.id_to_token(token_id) is not None


def _gpt2_backend(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([END_OF_TEXT])
    return backend
