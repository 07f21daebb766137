"""The text side of one request: token ids of n sequences in, pieces of text and a RequestOutput out.

No IO and no engine loop in here: LLM and AsyncEngine both drive it, each in its own way.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace

from pocketlm.engine.engine import Engine
from pocketlm.errors import InvalidRequest
from pocketlm.outputs import Completion, FinishReason, Logprob, RequestOutput, StepOutput, TokenLogprobs
from pocketlm.sampling import MAX_SEED, SamplingParams
from pocketlm.text.detokenizer import Detokenizer
from pocketlm.text.stop import StopStrings
from pocketlm.text.tokenizer import Tokenizer

Prompt = str | list[int]

NOT_TEXT = re.compile("[\x00\ud800-\udfff]")


@dataclass(slots=True)  # not frozen: one is made for every token, and that would cost three times as much
class Piece:
    """What one step added to one completion. Nobody changes it.

    The text may be empty: half a character and the possible beginning of a stop string are held back.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: FinishReason | None


class Generation:
    """One request under way. `output` is the answer so far; `push` adds to it."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Prompt, prompt_token_ids: list[int], params: SamplingParams
    ) -> None:
        self.params = params
        first_seed = secrets.randbits(32) if params.seed is None else params.seed
        self.output = RequestOutput(
            prompt=prompt if isinstance(prompt, str) else tokenizer.decode(prompt),
            prompt_token_ids=prompt_token_ids,
            outputs=[
                Completion(
                    index=i,
                    text="",
                    token_ids=[],
                    seed=(first_seed + i) % (MAX_SEED + 1),
                    logprobs=None if params.logprobs is None else [],
                )
                for i in range(params.n)
            ],
        )
        self._tokenizer = tokenizer
        self._texts = [_Text(tokenizer, params) for _ in range(params.n)]

    @property
    def seeds(self) -> list[int]:
        """One for each sequence that the engine has to run."""
        return [completion.seed for completion in self.output.outputs]

    def params_of(self, index: int) -> SamplingParams:
        """How sequence `index` is run: the prompt is the same for all, so only the first reports on it."""
        return replace(self.params, prompt_logprobs=None) if index > 0 else self.params

    @property
    def is_finished(self) -> bool:
        return all(completion.finish_reason is not None for completion in self.output.outputs)

    def push(self, index: int, step: StepOutput) -> Piece | None:
        """Take what a step did for sequence `index`; None if its completion had already ended.

        If the piece has a finish_reason and the step has none, a stop string was found: the caller
        aborts the sequence. A step that failed raises its EngineError.
        """
        completion = self.output.outputs[index]
        if completion.finish_reason is not None:
            return None
        if step.error is not None:
            raise step.error
        if step.prompt_logprobs is not None:
            self.output.prompt_logprobs = [None, *map(self._named, step.prompt_logprobs)]
        token_ids = [] if step.token_id is None else [step.token_id]
        text, finish_reason = self._texts[index].push(token_ids, step.finish_reason)
        logprobs = None if step.logprobs is None else [self._named(step.logprobs)]
        completion.text += text
        completion.token_ids += token_ids
        completion.finish_reason = finish_reason
        if completion.logprobs is not None and logprobs is not None:
            completion.logprobs += logprobs
        return Piece(index, text, token_ids, logprobs, finish_reason)

    def _named(self, step: TokenLogprobs) -> dict[int, Logprob]:
        return {
            token_id: Logprob(logprob, rank, self._tokenizer.decode([token_id]))
            for token_id, logprob, rank in zip(step.token_ids, step.logprobs, step.ranks, strict=True)
        }


class _Text:
    """Token ids of one sequence in, text that is safe to show out."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopStrings(params.stop)
        self._num_unsearched = params.min_tokens  # the text of the first min_tokens tokens cannot stop it

    def push(
        self, token_ids: list[int], finish_reason: FinishReason | None
    ) -> tuple[str, FinishReason | None]:
        """The text that became certain, and why the completion ended, if it did."""
        text = ""
        if finish_reason is not FinishReason.STOP:  # a token that ends the answer is no part of its text
            text = "".join(map(self._detokenizer.push, token_ids))
        if finish_reason is not None:
            text += self._detokenizer.flush()
        if self._num_unsearched > 0:
            self._num_unsearched -= len(token_ids)
            return text, finish_reason
        text, found = self._stop.push(text)
        if found is not None:
            return text, FinishReason.STOP
        if finish_reason is not None:
            text += self._stop.flush()
        return text, finish_reason


def admit(tokenizer: Tokenizer, engine: Engine, prompt: Prompt, params: SamplingParams) -> Generation:
    """Tokenize a request and check it, before anything is queued. Safe in any thread; InvalidRequest."""
    prompt_token_ids = encode(tokenizer, prompt)
    engine.check(prompt_token_ids, params)
    return Generation(tokenizer, prompt, prompt_token_ids, params)


def encode(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The token ids of a prompt, which may be given as ids."""
    if isinstance(prompt, str):
        check_text("prompt", prompt)
        return tokenizer.encode(prompt)
    if isinstance(prompt, list):
        return list(prompt)
    raise InvalidRequest(
        f"a prompt must be a string or a list of token ids, got {type(prompt).__name__}", param="prompt"
    )


def check_text(name: str, text: str) -> None:
    """Refuse the two things in a Python string that are not text: NUL and half a surrogate pair."""
    found = NOT_TEXT.search(text)
    if found:
        what = "a NUL character" if found[0] == "\x00" else "half of a surrogate pair"
        raise InvalidRequest(
            f"{name} must not contain {what} (U+{ord(found[0]):04X}, at position {found.start()})", param=name
        )
