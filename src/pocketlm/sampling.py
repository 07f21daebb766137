"""SamplingParams: everything a request may say about how its tokens are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pocketlm.errors import ContextLengthExceeded, InvalidRequest

DEFAULT_MAX_TOKENS = 16
MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt. Bad values raise InvalidRequest, which names the field.

    The logits pass through these in order, as in vLLM and Transformers: `logit_bias`, `min_tokens`
    (end tokens masked), `repetition_penalty` (prompt and output), `frequency_penalty` and
    `presence_penalty` (output only), `temperature`, `top_k`, `top_p`, `min_p`, then the draw.
    """

    max_tokens: int | None = (
        None  # new tokens; 16 if max_length is not given either; 0 = compute the prompt only
    )
    max_length: int | None = None  # prompt + new tokens; the smaller of the two bounds wins
    min_tokens: int = 0  # no end token and no stop string before this many new tokens
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # keep the k most likely tokens; 0 = all
    top_p: float = 1.0  # keep the smallest set of tokens with this much probability
    min_p: float = 0.0  # drop tokens less likely than this share of the most likely one
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    seed: int | None = None  # None = drawn for the request, and reported with the answer
    n: int = 1  # completions of one prompt; number i is drawn with seed + i
    stop: Sequence[str] = ()  # a single string is taken as a list of one
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # report the sampled token and this many of the most likely
    prompt_logprobs: int | None = None  # the same for each token of the prompt after the first

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 0)
        if self.max_length is not None:
            _check_integer("max_length", self.max_length, 1)
        _check_integer("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens must not exceed max_tokens ({self.max_tokens}), got {self.min_tokens}",
                param="min_tokens",
            )
        _check_number("temperature", self.temperature, 0.0, 2.0)
        _check_integer("top_k", self.top_k, 0)
        _check_number("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above=True)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, MAX_SEED)
        _check_integer("n", self.n, 1, MAX_N)
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _check_integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequest(
                f"ignore_eos must be true or false, got {_shown(self.ignore_eos)}", param="ignore_eos"
            )
        self._check_stop()
        self._check_token_ids()

    def _check_stop(self) -> None:
        _check_list("stop", self.stop, MAX_STOP_STRINGS)
        for string in self.stop:
            if not isinstance(string, str) or not 1 <= len(string) <= MAX_STOP_STRING_CHARS:
                raise InvalidRequest(
                    f"each stop must be a string of 1 to {MAX_STOP_STRING_CHARS} characters, "
                    f"got {_shown(string)}",
                    param="stop",
                )

    def _check_token_ids(self) -> None:
        _check_list("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        for token_id in self.stop_token_ids:
            _check_integer("stop_token_ids", token_id, 0)
        if not isinstance(self.logit_bias, Mapping):
            raise InvalidRequest(
                f"logit_bias must map token ids to numbers, got {_shown(self.logit_bias)}",
                param="logit_bias",
            )
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequest(
                f"logit_bias takes at most {MAX_LOGIT_BIAS} tokens, got {len(self.logit_bias)}",
                param="logit_bias",
            )
        for token_id, bias in self.logit_bias.items():
            _check_integer("logit_bias", token_id, 0)
            _check_number("logit_bias", bias, -100.0, 100.0)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse token ids the model does not have."""
        for name in ("stop_token_ids", "logit_bias"):
            for token_id in getattr(self, name):
                if token_id >= vocab_size:
                    raise InvalidRequest(
                        f"{name} has token id {token_id}; this model's ids are 0 to {vocab_size - 1}",
                        param=name,
                    )

    def num_new_tokens(self, num_prompt_tokens: int, max_model_len: int) -> int:
        """How many tokens to generate at most, or an error if one is wanted and there is no room for it."""
        least = 0 if self.max_tokens == 0 else 1
        if num_prompt_tokens + least > max_model_len:
            raise ContextLengthExceeded(
                f"the prompt has {num_prompt_tokens} tokens and the context window is "
                f"{max_model_len}, prompt and answer together; shorten the prompt",
                param="prompt",
            )
        room = max_model_len - num_prompt_tokens
        if self.max_length is not None:
            if num_prompt_tokens + least > self.max_length:
                raise ContextLengthExceeded(
                    f"max_length is {self.max_length}, prompt and answer together, but the prompt "
                    f"alone has {num_prompt_tokens} tokens; raise max_length or shorten the prompt",
                    param="max_length",
                )
            room = min(room, self.max_length - num_prompt_tokens)
        if self.max_tokens is not None:
            return min(room, self.max_tokens)
        return room if self.max_length is not None else min(room, DEFAULT_MAX_TOKENS)


def _shown(value: object) -> str:
    """A value as it may stand in a message: never longer than a line."""
    if isinstance(value, int) and abs(value) > 10**60:  # Python refuses to spell out the longest ones
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    bounds = f"at least {low}" if high is None else f"between {low} and {high}"
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or value < low or (high is not None and value > high):  # type: ignore[operator]
        raise InvalidRequest(f"{name} must be an integer {bounds}, got {_shown(value)}", param=name)


def _check_number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    """`above`: the lower bound itself is not allowed."""
    bounds = f"above {low} and at most {high}" if above else f"between {low} and {high}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        raise InvalidRequest(f"{name} must be a number {bounds}, got {_shown(value)}", param=name)


def _check_list(name: str, value: object, longest: int) -> None:
    if not isinstance(value, list | tuple):
        raise InvalidRequest(f"{name} must be a list, got {_shown(value)}", param=name)
    if len(value) > longest:
        raise InvalidRequest(f"{name} takes at most {longest} entries, got {len(value)}", param=name)
