"""A question whose answer is known: asked again while a model serves, it tells whether it computes right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pocketlm.accuracy import PASSAGE, logits_of
from pocketlm.kernels import Decoder
from pocketlm.sampling import SamplingParams
from pocketlm.text.tokenizer import Tokenizer

OWNER = "known-answer check"  # in whose name the question waits in the queue
NUM_PROMPT_TOKENS = 14  # with the answer more than one KV block
NUM_TOKENS = 8

# Of the bundled model, " point, the container is running on a": the same in each number format, on each
# instruction set, and no second choice comes near it. In int4 that holds for its first five tokens.
BUNDLED_ANSWER = (1287, 12, 265, 1045, 306, 1259, 333, 259)
NUM_SURE_TOKENS = {"float32": NUM_TOKENS, "bfloat16": NUM_TOKENS, "int8": NUM_TOKENS, "int4": 5}


@dataclass(frozen=True)
class KnownAnswer:
    """A prompt and its greedy continuation."""

    prompt_token_ids: list[int]
    params: SamplingParams
    token_ids: list[int] | None  # None: the logits were not finite when the model was loaded
    failure: str | None = None  # what was wrong already when the model was loaded

    def problem(self, token_ids: list[int]) -> str | None:
        """What is wrong with an answer, or None."""
        if token_ids == self.token_ids:
            return None
        return (
            f"the known-answer check failed: to {self.prompt_token_ids} the model answers {token_ids}, "
            f"and it should answer {self.token_ids}"
        )


def record(
    name: str,
    decoder: Decoder,
    tokenizer: Tokenizer,
    max_model_len: int,
    known: list[int] | None = None,
) -> KnownAnswer | None:
    """Ask a decoder without an engine around it; None if a context has no room for an answer.

    What the bundled model has to say does not come from the decoder that is to be checked. `known` is
    what an earlier start recorded.
    """
    prompt = tokenizer.encode(PASSAGE)[:NUM_PROMPT_TOKENS]
    most = NUM_SURE_TOKENS[decoder.dtype] if name == "bundled" else NUM_TOKENS
    num_tokens = min(most, max_model_len - len(prompt))
    if num_tokens < 1:
        return None
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    if known is not None and len(known) >= num_tokens:
        return KnownAnswer(prompt, params, known[:num_tokens])
    found = _greedy(decoder, prompt, num_tokens)
    if found is None:
        failure = (
            "the known-answer check failed: the model's logits are not finite; its weights may be damaged"
        )
        return KnownAnswer(prompt, params, None, failure)
    if name != "bundled":
        return KnownAnswer(prompt, params, found)
    expected = KnownAnswer(prompt, params, list(BUNDLED_ANSWER[:num_tokens]))
    return KnownAnswer(prompt, params, expected.token_ids, expected.problem(found))


def _greedy(decoder: Decoder, prompt: list[int], num_tokens: int) -> list[int] | None:
    """The most likely tokens after a prompt, one by one; None if a logit is not finite."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        *_, logits = logits_of(decoder, token_ids)
        if not np.isfinite(logits).all():
            return None
        token_ids.append(int(logits[-1].argmax()))
    return token_ids[len(prompt) :]
