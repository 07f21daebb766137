"""PieceEncoder: the pieces of a stream as bytes of its response."""

from __future__ import annotations

from dataclasses import replace

import orjson

from pocketlm.generation import Piece
from pocketlm.outputs import RequestOutput
from pocketlm.server import sse
from pocketlm.server.protocol import ApiRequest, Head

MARK = "\N{OBJECT REPLACEMENT CHARACTER}text\N{OBJECT REPLACEMENT CHARACTER}"


class PieceEncoder:
    """Once an answer has begun, its events differ in their text alone: what is around it is encoded once.

    What has more to say, log-probabilities or the end, is encoded by itself.
    """

    def __init__(self, asked: ApiRequest, head: Head) -> None:
        self._asked, self._head = asked, head
        self._frames: dict[tuple[int, int], tuple[bytes, bytes]] = {}  # before and behind the text

    def encode(self, prompt_index: int, output: RequestOutput, piece: Piece) -> bytes:
        """The events of one piece; b"" if it has nothing to show yet."""
        is_plain = piece.finish_reason is None and piece.logprobs is None
        frame = self._frames.get((prompt_index, piece.index)) if is_plain else None
        if frame is not None:
            return b"".join((frame[0], orjson.dumps(piece.text), frame[1])) if piece.text else b""
        events = self._encode(prompt_index, output, piece)
        if is_plain and piece.text:  # it has begun now
            marked = self._encode(prompt_index, output, replace(piece, text=MARK))
            before, behind = marked.split(orjson.dumps(MARK))
            self._frames[prompt_index, piece.index] = before, behind
        return events

    def _encode(self, prompt_index: int, output: RequestOutput, piece: Piece) -> bytes:
        return b"".join(map(sse.encode, self._asked.piece(self._head, prompt_index, output, piece)))
