"""Conversation: messages and their answers, kept within the context window. It does no input or output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketlm.errors import ContextLengthExceeded, InvalidRequest
from pocketlm.generation import check_text
from pocketlm.llm import LLM
from pocketlm.outputs import FinishReason
from pocketlm.sampling import SamplingParams
from pocketlm.server.protocol.chat import prompt_of

ANSWER_SHARE = 4  # a quarter of the window is for the answer, if nothing else is said


@dataclass(frozen=True)
class Turn:
    """How the last answer went."""

    num_tokens: int
    context_tokens: int  # prompt and answer
    seed: int
    ending: str  # why it ended, if not by itself: a few words for the note after it


class Conversation:
    """A talk with a model. All messages are kept; the model sees the system text and the last that fit."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None = None) -> None:
        self.messages: list[dict[str, str]] = []  # of user and assistant in turn
        self.system = ""
        self.window = llm.model.max_model_len
        self.num_forgotten = 0  # of the messages, the first ones that the model no longer sees
        self.last = Turn(0, 0, 0, "")
        self.is_stopping = False  # set by `stop`, until the answer has ended
        self._llm = llm
        if params.max_tokens is not None and params.max_tokens > self.window // 2:
            raise InvalidRequest(
                f"max_tokens is {params.max_tokens}, but at most half of the context window of {self.window} "
                "tokens can be for the answer; lower it",
                param="max_tokens",
            )
        self._max_tokens = params.max_tokens or max(1, self.window // ANSWER_SHARE)
        self._params = params
        if system:
            self.set_system(system)

    @property
    def is_base_model(self) -> bool:
        """The checkpoint has no chat template, so nobody taught it to chat."""
        return self._llm.model.chat_template.is_plain

    def set_system(self, text: str) -> None:
        """An empty text takes the system message away."""
        check_text("the system text", text)
        self.system = text

    def reset(self) -> None:
        self.messages, self.num_forgotten = [], 0

    def stop(self) -> None:
        """End the answer under way after its next token; what was said of it stays in the conversation."""
        self.is_stopping = True

    def answer(self, text: str) -> Iterator[str]:
        """Say something; the pieces of the answer. ContextLengthExceeded if not even this message fits.

        A message that is refused, or whose answer fails, is not part of the conversation.
        """
        check_text("the message", text)
        self.is_stopping = False
        message = {"role": "user", "content": text}
        num_forgotten, token_ids = self._fitting([*self.messages, message])
        params = replace(
            self._params,
            max_tokens=min(self._max_tokens, self.window - len(token_ids)),
            stop=self._llm.model.chat_template.stop,
        )
        stream = self._llm.stream(token_ids, params)
        self.num_forgotten = num_forgotten
        said = ""
        for piece in stream:
            # The plain template leaves the space for the answer to begin with; it is none of its words.
            new = piece.text if said or not self.is_base_model else piece.text.removeprefix(" ")
            said += new
            yield new
            if self.is_stopping:
                self.is_stopping = False
                break
        [completion] = stream.output.outputs
        self.messages += [message, {"role": "assistant", "content": said}]
        self.last = Turn(
            num_tokens=len(completion.token_ids),
            context_tokens=len(token_ids) + len(completion.token_ids),
            seed=completion.seed,
            ending=_ending(completion.finish_reason),
        )

    def as_json(self) -> dict[str, Any]:
        """The conversation as the body of POST /v1/chat/completions would have it."""
        return {"model": self._llm.model.name, "messages": [*self._system_message, *self.messages]}

    def save(self, file: Path) -> None:
        """Write `as_json` to a file that is not there yet, or raise an OSError."""
        with file.open("x", encoding="utf-8") as opened:
            json.dump(self.as_json(), opened, ensure_ascii=False, indent=2)
            opened.write("\n")

    @property
    def _system_message(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _fitting(self, messages: list[dict[str, str]]) -> tuple[int, list[int]]:
        """How many of the first messages to leave out so that an answer fits, and the prompt without them."""
        room = self.window - self._max_tokens
        for start in range(self.num_forgotten, len(messages), 2):  # a question goes with its answer
            token_ids = prompt_of(self._llm.model, [*self._system_message, *messages[start:]])
            if len(token_ids) <= room:
                return start, token_ids
        raise ContextLengthExceeded(
            f"the message and the system text have {len(token_ids)} tokens; of the context window of "
            f"{self.window}, {room} are for them and {self._max_tokens} for the answer; shorten them",
            param="message",
        )


def _ending(reason: FinishReason | None) -> str:
    if reason is None:
        return "stopped; "
    return "cut off at its longest; " if reason is FinishReason.LENGTH else ""
