"""Strings <-> token ids, by Hugging Face's tokenizers library."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pocketlm.errors import InvalidRequest, ModelLoadError

END_OF_TEXT = "<|endoftext|>"  # GPT-2's one special token
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # how SentencePiece spells a byte that no other token has
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # and how it spells a space


def _byte_spellings() -> dict[str, int]:
    """GPT-2's spelling of bytes: those that can be seen are themselves, the others follow from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTES = _byte_spellings()


class Tokenizer:
    """A tokenizer of a checkpoint. Safe to use from several threads.

    `joins_bytes`: a text is the `text_bytes` of its tokens laid end to end, and nothing else is done to it.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()  # some tokenizer.json files carry these from training
        backend.no_padding()
        self._backend = backend
        self._special_ids = {
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        }
        self._added_ids = backend.get_added_tokens_decoder().keys()
        decoder = b"{}" if backend.decoder is None else backend.decoder.__getstate__()
        self._is_byte_level = b'"ByteLevel"' in decoder
        self.joins_bytes = json.loads(decoder).get("type") == "ByteLevel"
        self._text_bytes: dict[int, bytes] = {}  # of the ids asked for so far

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

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text; `add_special_tokens`: with those that tokenizer.json itself puts around it.

        Special tokens that the text spells out are special either way.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"the prompt has a lone surrogate, U+{ord(text[error.start]):04X}, at character "
                f"{error.start}; it must be valid Unicode",
                param="prompt",
            ) from error
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some ids; special tokens and ids beyond the vocabulary have none."""
        return self._backend.decode(list(token_ids), skip_special_tokens=True)

    def has_text(self, token_id: int) -> bool:
        """Whether an id counts at all in `decode`."""
        return token_id not in self._special_ids and self._backend.id_to_token(token_id) is not None

    def text_bytes(self, token_id: int) -> bytes:
        """What an id adds to a text where `joins_bytes`."""
        found = self._text_bytes.get(token_id)
        if found is None:
            token = (self._backend.id_to_token(token_id) or "") if self.has_text(token_id) else ""
            is_spelled = all(char in BYTES for char in token)  # else it is an added token, as it stands
            found = bytes(BYTES[char] for char in token) if is_spelled else token.encode()
            self._text_bytes[token_id] = found
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for, which may be half a character; a special token stands for its name."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added_ids:
            return token.encode()
        if self._is_byte_level:
            return b"".join(bytes([BYTES[char]]) if char in BYTES else char.encode() for char in token)
        byte = BYTE_TOKEN.fullmatch(token)
        return bytes.fromhex(byte[1]) if byte else token.replace(SPACE, " ").encode()

    def token_string(self, token_id: int) -> str:
        r"""A name for one token: its text, or bytes:\xe2\x80 if that is not whole characters."""
        name = self.token_bytes(token_id)
        try:
            return name.decode() or f"token_id:{token_id}"
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in name)


def _gpt2_backend(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([END_OF_TEXT])
    return backend
