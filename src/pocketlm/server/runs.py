"""Run: one HTTP request's generations, merged, until its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from pocketlm.errors import ModelUnavailable, PocketLMError, RequestTimeout
from pocketlm.generation import Piece
from pocketlm.outputs import Completion, FinishReason, RequestOutput, Timing
from pocketlm.server.flights import Ended, Flight, Reader

Arrival = tuple[int, Piece]  # the number of its prompt, and the piece


@dataclass(frozen=True, slots=True)
class _Deadline:
    pass


@dataclass(frozen=True, slots=True)
class _Beat:
    pass


class Run:
    """Answers to the prompts of one request, from flights and from the cache.

    `outputs` are the answers so far, one a prompt: those of this run alone, since another reader of a
    flight may have a later deadline. Times are those of the event loop's clock.
    """

    def __init__(self, *, started_at: float, deadline: float, beat_s: float | None = None) -> None:
        self.outputs: list[RequestOutput] = []
        self.num_cached = 0  # prompts answered from the cache
        self.is_timed_out = False
        self._started_at, self._deadline = started_at, deadline
        self._is_drained = False
        self._beat_s = beat_s
        self._loop = asyncio.get_running_loop()
        self._inbox: list[tuple[int, Piece | Ended] | _Deadline | _Beat] = []
        self._has_mail = asyncio.Event()
        self._sources: list[RequestOutput] = []  # of `outputs`, in the same order
        self._flights: list[tuple[Flight, Reader]] = []  # not left yet
        self._timings: list[Timing] = []  # of all its flights
        self._num_under_way = 0
        self._alarm = self._loop.call_at(deadline, self._put, _Deadline())
        self._beat = None if beat_s is None else self._loop.call_later(beat_s, self._on_beat)

    def add_cached(self, output: RequestOutput) -> None:
        """The next prompt's answer is known."""
        prompt_index = self._add(output)
        self.num_cached += 1
        for c in output.outputs:
            piece = Piece(c.index, c.text, list(c.token_ids), c.logprobs, c.finish_reason)
            self._put((prompt_index, piece))
        self._put((prompt_index, Ended(None)))

    def add_flight(self, flight: Flight) -> None:
        """The next prompt's answer is on its way."""
        prompt_index = self._add(flight.output)
        reader = partial(self._arrived, prompt_index)
        self._flights.append((flight, reader))
        self._timings.append(flight.timing)
        flight.join(reader)

    async def batches(self) -> AsyncIterator[list[Arrival]]:
        """What arrived since the last look, to the end; an empty list says that `beat_s` passed.

        At the deadline every completion under way ends with FinishReason.TIMEOUT; if there is not one
        token by then: RequestTimeout. An error of a flight is raised.
        """
        while self._num_under_way:
            await self._has_mail.wait()
            self._has_mail.clear()
            events, self._inbox = self._inbox, []
            batch: list[Arrival] = []
            is_silent, error = True, None
            for event in events:
                if isinstance(event, _Deadline):
                    batch += self._time_out()
                    break
                if isinstance(event, _Beat):
                    continue
                prompt_index, arrived = event
                is_silent = False
                if isinstance(arrived, Ended):
                    self._num_under_way -= 1
                    error = error or arrived.error
                else:
                    self._absorb(prompt_index, arrived)
                    batch.append((prompt_index, arrived))
            if batch or is_silent:
                yield batch
            if error is not None:
                raise error

    @property
    def timing(self) -> Timing:
        """Over all prompts: the longest times, the sums of the rest."""
        cpu = [timing.cpu_s for timing in self._timings]
        return Timing(
            queue_s=max((timing.queue_s for timing in self._timings), default=0.0),
            prefill_s=max((timing.prefill_s for timing in self._timings), default=0.0),
            decode_s=max((timing.decode_s for timing in self._timings), default=0.0),
            cpu_s=None if None in cpu else sum(filter(None, cpu)),
            num_cached_tokens=sum(timing.num_cached_tokens for timing in self._timings),
        )

    def end_by(self, deadline: float) -> None:
        """The server stops then: an earlier deadline, or none of this run's business."""
        if deadline < self._deadline:
            self._deadline, self._is_drained = deadline, True
            self._alarm.cancel()
            self._alarm = self._loop.call_at(deadline, self._put, _Deadline())

    def close(self) -> None:
        """Leave the flights; those that nobody else waits for end. To be called however the run went."""
        self._alarm.cancel()
        if self._beat is not None:
            self._beat.cancel()
        reason = FinishReason.TIMEOUT if self.is_timed_out else FinishReason.ABORT
        while self._flights:  # emptied: the readers know this run
            flight, reader = self._flights.pop()
            flight.leave(reader, reason)

    def _add(self, output: RequestOutput) -> int:
        self.outputs.append(
            RequestOutput(
                prompt=output.prompt,
                prompt_token_ids=output.prompt_token_ids,
                outputs=[
                    Completion(
                        index=c.index,
                        text="",
                        token_ids=[],
                        seed=c.seed,
                        logprobs=None if c.logprobs is None else [],
                    )
                    for c in output.outputs
                ],
            )
        )
        self._sources.append(output)
        self._num_under_way += 1
        return len(self.outputs) - 1

    def _arrived(self, prompt_index: int, event: Piece | Ended) -> None:
        self._put((prompt_index, event))

    def _put(self, event: tuple[int, Piece | Ended] | _Deadline | _Beat) -> None:
        self._inbox.append(event)
        self._has_mail.set()

    def _on_beat(self) -> None:
        assert self._beat_s is not None
        if not self._inbox:
            self._put(_Beat())
        self._beat = self._loop.call_later(self._beat_s, self._on_beat)

    def _absorb(self, prompt_index: int, piece: Piece) -> None:
        output = self.outputs[prompt_index]
        output.prompt_logprobs = self._sources[prompt_index].prompt_logprobs  # known with the first piece
        completion = output.outputs[piece.index]
        completion.text += piece.text
        completion.token_ids += piece.token_ids
        completion.finish_reason = piece.finish_reason
        if completion.logprobs is not None and piece.logprobs is not None:
            completion.logprobs += piece.logprobs

    def _time_out(self) -> list[Arrival]:
        """End what is under way where it is."""
        completions = [c for output in self.outputs for c in output.outputs]
        self.is_timed_out = True
        if not any(c.token_ids or c.finish_reason for c in completions):
            raise self._nothing_yet()
        ended: list[Arrival] = []
        for prompt_index, output in enumerate(self.outputs):
            for completion in output.outputs:
                if completion.finish_reason is None:
                    piece = Piece(completion.index, "", [], None, FinishReason.TIMEOUT)
                    self._absorb(prompt_index, piece)
                    ended.append((prompt_index, piece))
        self._num_under_way = 0
        return ended

    def _nothing_yet(self) -> PocketLMError:
        if self._is_drained:
            return ModelUnavailable(
                "the server is shutting down, and had not begun with this request; send it again",
                retry_after_s=1.0,
            )
        return RequestTimeout(
            f"not one token was ready after {self._deadline - self._started_at:g} s, waiting included; give "
            "the request more time with its field timeout, or send it when the server has less to do"
        )
