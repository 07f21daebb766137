"""Engine: token ids in, token ids out. It knows no text, no clock, no socket and no thread."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pocketlm.engine.batch import Batch
from pocketlm.engine.block_manager import BlockManager
from pocketlm.engine.runner import Runner
from pocketlm.engine.scheduler import Scheduler
from pocketlm.engine.sequence import Sequence
from pocketlm.errors import ConfigError, EngineDead, EngineError, InvalidRequest
from pocketlm.kernels import Decoder
from pocketlm.kernels.inputs import BLOCK_SIZE
from pocketlm.outputs import StepOutput
from pocketlm.sampling import MAX_SEED, SamplingParams

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine holds now, and what it did since it was made."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int  # what the prefix cache keeps in free blocks counts as free
    prefix_cache_queries: int  # tokens of the sequences admitted, again each time if preempted
    prefix_cache_hits: int  # those of them that did not have to be computed
    num_preemptions: int
    num_prompt_tokens: int  # of all sequences added
    num_output_tokens: int
    num_draft_tokens: int  # computed as a guess at what a sequence would draw
    num_accepted_tokens: int  # those of them that it did draw


class Engine:
    """Sequences go in with `add`; each `step` computes one batch and says what it drew.

    Not thread-safe: one thread owns an engine and makes every call, except that `check` may be
    called from any thread.

    `last_batch` is what the last step computed, until the next one; empty if it had nothing to do.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        eos_token_ids: tuple[int, ...],
        num_blocks: int,
        max_model_len: int,
        max_num_seqs: int,
        max_batch_tokens: int,
        prefix_caching: bool,
        speculative_tokens: int,
    ) -> None:
        if max_model_len > decoder.spec.max_positions:
            raise ConfigError(
                f"max_model_len is {max_model_len} tokens, but the context window of this model is "
                f"{decoder.spec.max_positions}; lower max_model_len"
            )
        if num_blocks * BLOCK_SIZE < max_model_len:
            raise ConfigError(
                f"the KV cache has room for {num_blocks * BLOCK_SIZE} tokens, but one request may take "
                f"max_model_len = {max_model_len}; raise kv_cache_memory or lower max_model_len"
            )
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.last_batch: Batch = []
        self.decoder = decoder
        self._vocab_size = decoder.spec.vocab_size
        self._eos_token_ids = eos_token_ids
        self._block_manager = BlockManager(num_blocks, BLOCK_SIZE, prefix_caching)
        self._scheduler = Scheduler(
            max_num_seqs, max_batch_tokens, self._block_manager, speculative_tokens=speculative_tokens
        )
        self._runner = Runner(decoder, decoder.new_kv_cache(num_blocks))
        self._next_seq_id = 0
        self._num_failures_in_a_row = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def check(self, prompt_token_ids: list[int], params: SamplingParams) -> None:
        """Raise what `add` would raise (InvalidRequest, EngineDead), without adding."""
        if self._is_dead:
            raise EngineDead("the engine has failed and takes no more requests; restart the process")
        if not prompt_token_ids:
            raise InvalidRequest("the prompt is empty; give at least one token", param="prompt")
        params.num_new_tokens(len(prompt_token_ids), self.max_model_len)
        params.check_vocabulary(self._vocab_size)
        for token_id in prompt_token_ids:
            if type(token_id) is not int or not 0 <= token_id < self._vocab_size:
                raise InvalidRequest(
                    f"the prompt's token ids must be integers from 0 to {self._vocab_size - 1}, "
                    f"got {token_id!r:.60}",
                    param="prompt",
                )

    def add(self, prompt_token_ids: list[int], params: SamplingParams, *, seed: int) -> int:
        """Queue one continuation of a prompt; its seq_id. (`params.n` and `params.seed` are the caller's.)"""
        self.check(prompt_token_ids, params)
        if not 0 <= seed <= MAX_SEED:
            raise InvalidRequest(f"seed must be between 0 and {MAX_SEED}, got {seed}", param="seed")
        seq = Sequence(
            seq_id=self._next_seq_id,
            prompt_token_ids=list(prompt_token_ids),
            params=params,
            seed=seed,
            max_new_tokens=params.num_new_tokens(len(prompt_token_ids), self.max_model_len),
            eos_token_ids=self._eos_token_ids,
        )
        self._next_seq_id += 1
        self._scheduler.add(seq)
        return seq.seq_id

    def abort(self, seq_id: int) -> None:
        """Drop a sequence; it gives no further output. No effect if it is unknown or finished."""
        self._scheduler.abort(seq_id)

    def step(self) -> list[StepOutput]:
        """Compute one batch: a StepOutput for each sequence that drew a token, ended or failed, [] if idle.

        A sequence whose draft was right drew several tokens: it has one for each, in order.

        If the forward pass fails, so do the sequences of this batch. If it fails in the next step too,
        so does every sequence, and EngineDead is raised.
        """
        batch = self.last_batch = self._scheduler.schedule()
        if not batch:
            return []
        try:
            computed = self._runner.run(batch)
        except Exception as error:
            return self._fail(batch, error)
        self._num_failures_in_a_row = 0
        return self._scheduler.update(batch, computed)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_blocks=self._block_manager.num_blocks,
            num_free_blocks=self._block_manager.num_free_blocks,
            prefix_cache_queries=self._block_manager.prefix_cache_queries,
            prefix_cache_hits=self._block_manager.prefix_cache_hits,
            num_preemptions=self._scheduler.num_preemptions,
            num_prompt_tokens=self._scheduler.num_prompt_tokens,
            num_output_tokens=self._scheduler.num_output_tokens,
            num_draft_tokens=self._scheduler.num_draft_tokens,
            num_accepted_tokens=self._scheduler.num_accepted_tokens,
        )

    def worker_cpu_s(self) -> float | None:
        """Processor time used so far by the decoder's threads beside the one that calls `step`."""
        return self.decoder.worker_cpu_s()

    @property
    def _is_dead(self) -> bool:
        return self._num_failures_in_a_row >= 2

    def _fail(self, batch: Batch, error: Exception) -> list[StepOutput]:
        """Fail the batch after an exception in the forward pass; after two in a row, everything."""
        self._num_failures_in_a_row += 1
        # The exception's own text stays in the log: this message reaches clients.
        message = f"the forward pass failed ({type(error).__name__}); the log has the details"
        log.exception("forward pass failed; %d sequences in the batch fail with it", len(batch))
        if self._is_dead:
            self._scheduler.fail_all()
            raise EngineDead(f"two steps in a row failed, nothing more can run: {message}") from error
        return [self._scheduler.fail(item.seq, EngineError(message)) for item in batch]
