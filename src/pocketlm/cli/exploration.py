"""What `pocketlm explore` finds out: one prompt, each sampling parameter varied while the others stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm.llm import LLM
from pocketlm.sampling import SamplingParams

NUM_SHOWN_TOKENS = 10  # of a next-token distribution


@dataclass(frozen=True)
class Token:
    """One token of the prompt."""

    id: int
    text: str


@dataclass(frozen=True)
class Context:
    """How much of the context window is used."""

    window: int
    prompt_tokens: int
    longest_tokens: int  # prompt and the longest answer

    @property
    def used_percent(self) -> float:
        return round(100 * self.longest_tokens / self.window, 1)


@dataclass(frozen=True)
class Candidate:
    """A token that may follow the prompt."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Distribution:
    """The likeliest next tokens at one temperature, and what all the others have together."""

    temperature: float
    tokens: list[Candidate]
    other_tokens: int
    other_probability: float


@dataclass(frozen=True)
class Answer:
    """What the model wrote with one value of the parameter that was varied."""

    value: float
    text: str
    num_tokens: int
    finish_reason: str
    num_candidates: int  # how many tokens the first one was drawn from


@dataclass(frozen=True)
class Experiment:
    """Answers that differ in one parameter; `fixed` has the others."""

    parameter: str
    fixed: dict[str, float]
    answers: list[Answer]


@dataclass(frozen=True)
class Exploration:
    """All that was found out about a prompt."""

    model: str
    prompt: str
    seed: int
    prompt_tokens: list[Token]
    context: Context
    distributions: list[Distribution]
    experiments: list[Experiment]

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        values["context"]["used_percent"] = self.context.used_percent
        return values


Varied = dict[str, list[SamplingParams]]  # parameter -> the values of its experiment, in place


def varied(base: SamplingParams, values: dict[str, list[Any]]) -> Varied:
    """One SamplingParams for each value of each parameter. A wrong value raises InvalidRequest."""
    return {name: [replace(base, **{name: value}) for value in listed] for name, listed in values.items()}


def explore_prompt(
    llm: LLM,
    prompt: str,
    base: SamplingParams,
    experiments: Varied,
    track: Callable[[Iterable[str]], Iterator[str]],
) -> Exploration:
    """Run the experiments, each as one batch; `track` sees the parameters go by, for a progress bar."""
    assert base.seed is not None  # one for all, so that answers differ by the varied parameter alone
    logprobs = llm.next_token_logprobs(prompt)
    found = [_experiment(llm, prompt, base, name, experiments[name], logprobs) for name in track(experiments)]
    tokenizer = llm.model.tokenizer
    token_ids = tokenizer.encode(prompt)
    longest = max(answer.num_tokens for experiment in found for answer in experiment.answers)
    return Exploration(
        model=llm.model.name,
        prompt=prompt,
        seed=base.seed,
        prompt_tokens=[Token(token_id, tokenizer.token_string(token_id)) for token_id in token_ids],
        context=Context(llm.model.max_model_len, len(token_ids), len(token_ids) + longest),
        distributions=[
            _distribution(llm, logprobs, params.temperature) for params in experiments["temperature"]
        ],
        experiments=found,
    )


def _experiment(
    llm: LLM,
    prompt: str,
    base: SamplingParams,
    name: str,
    all_params: list[SamplingParams],
    logprobs: NDArray[np.float32],
) -> Experiment:
    outputs = llm.generate([prompt] * len(all_params), all_params)
    answers = []
    for params, output in zip(all_params, outputs, strict=True):
        [completion] = output.outputs
        assert completion.finish_reason is not None
        answers.append(
            Answer(
                value=getattr(params, name),
                text=completion.text,
                num_tokens=len(completion.token_ids),
                finish_reason=completion.finish_reason.value,
                num_candidates=num_candidates(logprobs, params),
            )
        )
    fixed = {other: getattr(base, other) for other in ("temperature", "max_tokens", "top_k", "top_p")}
    del fixed[name]
    return Experiment(name, fixed, answers)


def probabilities(logprobs: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """The distribution at a temperature; 0 gives everything to the likeliest token. [V]"""
    if temperature == 0:
        chosen = np.zeros(len(logprobs))
        chosen[logprobs.argmax()] = 1.0
        return chosen
    weights = np.exp((logprobs.astype(np.float64) - float(logprobs.max())) / temperature)
    return np.asarray(weights / weights.sum())


def num_candidates(logprobs: NDArray[np.float32], params: SamplingParams) -> int:
    """How many tokens top-k and then top-p leave to draw from; equally likely ones stay together."""
    if params.temperature == 0:
        return 1
    kept = np.sort(probabilities(logprobs, params.temperature))[::-1]  # [V] the likeliest first
    if 0 < params.top_k < len(kept):
        kept = kept[kept >= kept[params.top_k - 1]]
    if params.top_p < 1:
        enough = np.cumsum(kept) >= params.top_p * kept.sum()
        kept = kept[kept >= kept[enough.argmax()]]
    return len(kept)


def _distribution(llm: LLM, logprobs: NDArray[np.float32], temperature: float) -> Distribution:
    likeliest = np.argsort(-logprobs, kind="stable")[:NUM_SHOWN_TOKENS]
    shares = probabilities(logprobs, temperature)
    tokens = [
        Candidate(int(i), llm.model.tokenizer.token_string(int(i)), float(shares[i])) for i in likeliest
    ]
    rest = max(0.0, 1.0 - sum(token.probability for token in tokens))
    return Distribution(temperature, tokens, len(shares) - len(tokens), rest)
