"""LLM: generation in process, without a server.

from pocketlm import LLM, SamplingParams

llm = LLM()
[answer] = llm.generate("Kubernetes is a", SamplingParams(max_tokens=20))
print(answer.outputs[0].text)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from pocketlm.accuracy import log_softmax, logits_of
from pocketlm.config import engine_config
from pocketlm.errors import InvalidRequest
from pocketlm.generation import Generation, Piece, Prompt, admit, encode
from pocketlm.kernels.inputs import Float32Array
from pocketlm.loading import load_model
from pocketlm.outputs import RequestOutput, StepOutput
from pocketlm.sampling import SamplingParams

_Inbox = deque[StepOutput]


class Stream(Iterator[Piece]):
    """Pieces of one answer as they are generated; `output` is the answer so far."""

    def __init__(self, output: RequestOutput, pieces: Iterator[Piece]) -> None:
        self.output = output
        self._pieces = pieces

    def __next__(self) -> Piece:
        return next(self._pieces)


class LLM:
    """A model and its engine. For one thread: a server uses AsyncEngine.

    `model` is "bundled", a local folder or a Hugging Face Hub id; the keywords are the fields of
    EngineConfig. A wrong one raises ConfigError.
    """

    def __init__(self, model: str = "bundled", **config: Any) -> None:
        self.model = load_model(model, engine_config(**config))
        # Where the outputs of each sequence go: a stream may be half read while `generate` is called.
        self._inboxes: dict[int, _Inbox] = {}

    def generate(
        self,
        prompts: Prompt | list[str] | list[list[int]] | list[Prompt],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue one prompt or many, in one batch; the answers are in the order of the prompts.

        A prompt is a string or a list of token ids. One SamplingParams holds for all prompts, or
        there is one for each. All are checked before any runs: InvalidRequest.
        """
        prompts = _listed(prompts)
        params = _one_for_each(prompts, sampling_params)
        generations = [self._admit(prompt, p) for prompt, p in zip(prompts, params, strict=True)]
        for _ in self._run(generations):
            pass
        return [generation.output for generation in generations]

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Stream:
        """Continue one prompt piece by piece. Leaving the loop early ends the generation."""
        [params] = _one_for_each([prompt], sampling_params)
        generation = self._admit(prompt, params)
        return Stream(generation.output, self._run([generation]))

    def next_token_logprobs(self, prompt: Prompt) -> Float32Array:
        """The natural log-probability of each token of the vocabulary to follow the prompt. [V]"""
        engine = self.model.engine
        token_ids = encode(self.model.tokenizer, prompt)
        engine.check(token_ids, SamplingParams(max_tokens=1))
        [logits] = deque(logits_of(engine.decoder, token_ids), maxlen=1)
        logprobs: Float32Array = log_softmax(logits[-1:])[0]
        return logprobs

    def _admit(self, prompt: Prompt, params: SamplingParams) -> Generation:
        return admit(self.model.tokenizer, self.model.engine, prompt, params)

    def _run(self, generations: list[Generation]) -> Iterator[Piece]:
        engine = self.model.engine
        inbox: _Inbox = deque()
        owners: dict[int, tuple[Generation, int]] = {}  # seq_id -> its generation and index in it
        try:
            for generation in generations:
                for index, seed in enumerate(generation.seeds):
                    seq_id = engine.add(
                        generation.output.prompt_token_ids, generation.params_of(index), seed=seed
                    )
                    owners[seq_id] = generation, index
                    self._inboxes[seq_id] = inbox
            num_unfinished = len(owners)
            while num_unfinished:
                while not inbox:
                    self._step()
                step = inbox.popleft()
                generation, index = owners[step.seq_id]
                piece = generation.push(index, step)
                if piece is not None:
                    if piece.finish_reason is not None:
                        num_unfinished -= 1
                        engine.abort(step.seq_id)  # if a stop string ended it, the engine would go on
                    yield piece
        finally:
            for seq_id in owners:
                engine.abort(seq_id)
                del self._inboxes[seq_id]

    def _step(self) -> None:
        assert self.model.engine.has_work
        for step in self.model.engine.step():
            self._inboxes[step.seq_id].append(step)


def _listed(prompts: object) -> list[Prompt]:
    """One prompt or many, as many."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, list):
        raise InvalidRequest(
            f"prompts must be a string, a list of token ids or a list of those, got {type(prompts).__name__}",
            param="prompts",
        )
    is_one = bool(prompts) and all(isinstance(item, int) for item in prompts)
    return [prompts] if is_one else prompts


def _one_for_each(
    prompts: list[Prompt], params: SamplingParams | list[SamplingParams] | None
) -> list[SamplingParams]:
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * len(prompts)
    if not isinstance(params, list) or not all(isinstance(p, SamplingParams) for p in params):
        raise InvalidRequest(
            "sampling_params must be a SamplingParams or a list of them", param="sampling_params"
        )
    if len(params) != len(prompts):
        raise InvalidRequest(
            f"there are {len(prompts)} prompts but {len(params)} sampling_params; give one for each",
            param="sampling_params",
        )
    return params
