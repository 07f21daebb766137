"""AsyncEngine: many requests on one thread, abort in every phase, and an engine that fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from fake_decoder import FakeDecoder, expected_output
from gate import Gate
from served import bundled_model, fake_model, is_idle

from pocketlm import hardware
from pocketlm.async_engine import LONG_PROMPT, AsyncEngine
from pocketlm.errors import EngineDead, EngineError, InvalidRequest, Overloaded, PocketLMError
from pocketlm.generation import Piece, Prompt
from pocketlm.hub import resolve
from pocketlm.loading import LoadedModel
from pocketlm.outputs import RequestOutput
from pocketlm.sampling import SamplingParams
from pocketlm.text.tokenizer import Tokenizer


@asynccontextmanager
async def running(model: LoadedModel) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(model)
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def answer(engine: AsyncEngine, prompt: Prompt, params: SamplingParams) -> RequestOutput:
    generation = await engine.admit(prompt, params)
    async for _ in engine.generate(generation):
        pass
    return generation.output


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen in time")


def test_many_at_once_are_answered_as_each_alone() -> None:
    prompts = [f"Request {i} about Kubernetes" for i in range(12)]
    params = [SamplingParams(max_tokens=5 + i, n=1 + i % 3, seed=i) for i in range(12)]

    async def main() -> tuple[list[RequestOutput], list[RequestOutput]]:
        async with running(bundled_model()) as engine:
            pairs = list(zip(prompts, params, strict=True))
            together = await asyncio.gather(*(answer(engine, prompt, p) for prompt, p in pairs))
            return together, [await answer(engine, prompt, p) for prompt, p in pairs]

    together, alone = asyncio.run(main())
    assert together == alone
    assert is_idle(bundled_model())


def test_a_stop_string_ends_the_sequence_in_the_engine() -> None:
    async def main() -> None:
        async with running(bundled_model()) as engine:
            params = SamplingParams(max_tokens=400, seed=1, stop=["e"], ignore_eos=True)
            output = await answer(engine, "Kubernetes is", params)
            assert "e" not in output.outputs[0].text
            await until(lambda: is_idle(engine.model))
            assert engine.model.engine.stats().num_output_tokens - before < 200

    before = bundled_model().engine.stats().num_output_tokens
    asyncio.run(main())


def test_everything_is_checked_before_it_is_queued() -> None:
    async def main() -> None:
        async with running(bundled_model()) as engine:
            for prompt, params in [
                ("", SamplingParams()),
                ("a\x00", SamplingParams()),
                ("a " * 600, SamplingParams()),
                ("word " * LONG_PROMPT, SamplingParams()),
                ("a", SamplingParams(stop_token_ids=[10**6])),
            ]:
                with pytest.raises(InvalidRequest):
                    await engine.admit(prompt, params)

    before = bundled_model().engine.stats()
    asyncio.run(main())
    assert bundled_model().engine.stats() == before


def test_a_long_prompt_is_tokenized_off_the_event_loop() -> None:
    threads = []

    class Spy(Tokenizer):
        def encode(self, text: str) -> list[int]:
            threads.append(threading.current_thread())
            return super().encode(text)

    async def main() -> None:
        tokenizer = Spy.from_folder(resolve("bundled"))
        async with running(replace(bundled_model(), tokenizer=tokenizer)) as engine:
            await engine.admit("short", SamplingParams())
            with pytest.raises(InvalidRequest, match="context window"):
                await engine.admit("long " * LONG_PROMPT, SamplingParams())

    asyncio.run(main())
    assert threads[0] is threading.main_thread() is not threads[1]


@pytest.mark.parametrize("phase", ["queued", "prefill", "decode", "done"])
def test_leaving_early_frees_everything_in_every_phase(phase: str) -> None:
    decoder = Gate()
    model = fake_model(decoder, max_num_seqs=2)
    params = SamplingParams(n=2, max_tokens=100 if phase != "done" else 3, seed=1)

    async def main() -> None:
        async with running(model) as engine:
            if phase == "queued":  # two seats, both taken
                others = [asyncio.create_task(answer(engine, [i], SamplingParams())) for i in range(2)]
                await asyncio.to_thread(decoder.entered.wait, 10)
            task = asyncio.create_task(answer(engine, [1, 2, 3], params))
            if phase == "queued":
                await asyncio.sleep(0.01)
            elif phase == "prefill":
                await asyncio.to_thread(decoder.entered.wait, 10)
            else:
                decoder.open()
                await until(lambda: model.engine.stats().num_output_tokens > 4)
            task.cancel()
            decoder.open()
            await asyncio.wait({task})
            assert task.cancelled() or phase == "done"
            if phase == "queued":
                await asyncio.gather(*others)
            await until(lambda: is_idle(model))
            assert engine.num_jobs == 0 and not engine._routes
            expected = expected_output([4, 5], SamplingParams(seed=9), seed=9)
            assert (await answer(engine, [4, 5], SamplingParams(seed=9))).outputs[0].token_ids == expected

    asyncio.run(main())


def test_closing_the_iterator_ends_the_generation() -> None:
    model = fake_model(FakeDecoder())

    async def main() -> None:
        async with running(model) as engine:
            generation = await engine.admit([1, 2, 3], SamplingParams(max_tokens=200))
            async with aclosing(engine.generate(generation)) as pieces:
                async for _ in pieces:
                    break
            await until(lambda: is_idle(model))
            assert model.engine.stats().num_output_tokens < 200

    asyncio.run(main())


def test_one_failed_step_fails_its_batch_and_no_other_request() -> None:
    decoder = FakeDecoder(errors=[RuntimeError("broken")])
    model = fake_model(decoder)

    async def main() -> None:
        async with running(model) as engine:
            with pytest.raises(EngineError) as caught:
                await answer(engine, [1, 2], SamplingParams())
            assert not isinstance(caught.value, EngineDead)
            assert engine.failure is None
            assert (await answer(engine, [1, 2], SamplingParams())).outputs[0].token_ids
            await until(lambda: is_idle(model))

    asyncio.run(main())


def test_when_the_engine_dies_everyone_hears_and_nobody_waits(caplog: pytest.LogCaptureFixture) -> None:
    decoder = Gate(errors=[RuntimeError("secret one"), RuntimeError("secret two")])
    model = fake_model(decoder, max_num_seqs=2)

    async def main() -> list[Any]:
        async with running(model) as engine:
            tasks = [asyncio.create_task(answer(engine, [i], SamplingParams())) for i in range(6)]
            await asyncio.to_thread(decoder.entered.wait, 10)
            decoder.open()
            results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
            assert engine.failure is not None
            with pytest.raises(EngineDead, match="restart"):
                await engine.admit([1], SamplingParams())
            return results

    results = asyncio.run(main())
    assert all(isinstance(result, EngineError) for result in results)
    dead = [result for result in results if isinstance(result, EngineDead)]
    assert dead and all("secret" not in str(error) for error in dead)
    assert "secret two" in caplog.text  # the log has what the clients do not see


def test_stop_fails_what_is_left_and_ends_the_thread() -> None:
    decoder = Gate()

    async def main() -> None:
        engine = AsyncEngine(fake_model(decoder))
        engine.start()
        task = asyncio.create_task(answer(engine, [1, 2], SamplingParams(max_tokens=200)))
        await asyncio.to_thread(decoder.entered.wait, 10)
        stopping = asyncio.create_task(engine.stop())
        decoder.open()
        await stopping
        with pytest.raises(EngineDead, match="stopped"):
            await task
        with pytest.raises(EngineDead, match="stopped"):
            await engine.admit([1], SamplingParams())

    asyncio.run(main())
    assert not [thread for thread in threading.enumerate() if thread.name == "pocketlm-engine"]


def test_an_idle_engine_sleeps() -> None:
    model = fake_model(FakeDecoder())
    num_steps = 0
    step = model.engine.step

    def counted() -> Any:
        nonlocal num_steps
        num_steps += 1
        return step()

    async def main() -> None:
        model.engine.step = counted  # type: ignore[method-assign]
        async with running(model) as engine:
            await answer(engine, [1], SamplingParams(max_tokens=5))
            seen = num_steps
            await asyncio.sleep(0.1)
            assert seen <= num_steps <= seen + 1
            assert 5 <= num_steps <= 7

    asyncio.run(main())


def test_a_step_is_handed_over_in_one_piece() -> None:
    model = fake_model(FakeDecoder())
    hand_overs: list[Callable[..., Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        call_soon_threadsafe = loop.call_soon_threadsafe

        def counted(callback: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name == "pocketlm-engine":
                hand_overs.append(callback)
            return call_soon_threadsafe(callback, *args, **kwargs)

        loop.call_soon_threadsafe = counted  # type: ignore[assignment,method-assign]
        async with running(model) as engine:
            await answer(engine, [1], SamplingParams(n=8, max_tokens=10))

    asyncio.run(main())
    assert len(hand_overs) == 10


async def submitted(engine: AsyncEngine, prompt: str, owner: str, seed: int = 0) -> asyncio.Task[str]:
    """A request under way; the task's result is its owner."""
    generation = await engine.admit(prompt, SamplingParams(max_tokens=4, seed=seed))

    async def run() -> str:
        async for _ in engine.generate(generation, owner=owner):
            pass
        return owner

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    return task


def test_one_owners_crowd_does_not_starve_another() -> None:
    decoder = Gate()

    async def main() -> None:
        async with running(fake_model(decoder, max_num_seqs=2)) as engine:
            crowd = [await submitted(engine, "!", "crowd", seed=i) for i in range(40)]
            guest = await submitted(engine, "#", "guest")
            decoder.open()
            await guest
            # Those who had a seat when the guest came, and those who got one beside the guest.
            assert sum(task.done() for task in crowd) <= 8
            await asyncio.gather(*crowd)

    asyncio.run(main())


def test_a_full_queue_refuses_whoever_crowds_it_and_says_when_to_come_back() -> None:
    decoder = Gate()
    model = fake_model(decoder, max_num_seqs=1)

    async def main() -> None:
        engine = AsyncEngine(model, max_queue=3)
        engine.start()
        try:
            decoder.let_through(5)  # so that the speed is known
            await answer(engine, "!", SamplingParams(max_tokens=5))
            crowd = [await submitted(engine, "!", "crowd", seed=i) for i in range(5)]  # two seats, three wait
            refused = await submitted(engine, "!", "crowd", seed=6)
            with pytest.raises(Overloaded, match="3 requests are waiting already, at most 3 may") as caught:
                await refused
            assert caught.value.retry_after_s == pytest.approx(
                max(1.0, 3 * 5 / engine.tokens_per_s)  # 1 prompt token and 4 new ones each
            )
            guest = await submitted(engine, "#", "guest")  # fills no queue: the crowd's latest has to go
            with pytest.raises(Overloaded):
                await crowd[4]
            decoder.open()
            assert await guest == "guest"
            await asyncio.gather(*crowd[:4])
            assert engine.num_jobs == 0
        finally:
            decoder.open()
            await engine.stop()

    asyncio.run(main())
    assert is_idle(model)


def test_a_request_of_more_completions_than_there_are_seats_is_served() -> None:
    model = fake_model(FakeDecoder(), max_num_seqs=2)

    async def main() -> None:
        async with running(model) as engine:
            small = [await submitted(engine, "!", "a", seed=i) for i in range(4)]
            output = await answer(engine, "!", SamplingParams(n=20, max_tokens=6, seed=1))
            assert all(len(completion.token_ids) == 6 for completion in output.outputs)
            await asyncio.gather(*small)
            assert engine.num_jobs == 0 and engine._num_taken_seats == 0

    asyncio.run(main())


def test_the_time_of_a_request_is_accounted_for() -> None:
    class Heard:
        def __init__(self) -> None:
            self.pieces: list[float] = []
            self.ended = asyncio.Event()

        def on_piece(self, piece: Piece, at: float) -> None:
            self.pieces.append(at)

        def on_end(self, error: PocketLMError | None) -> None:
            assert error is None
            self.ended.set()

    async def main() -> None:
        async with running(bundled_model()) as engine:
            prompt = "Kubernetes is a system that " * 8
            before = time.monotonic()
            jobs = []
            for _ in range(2):
                listener = Heard()
                params = SamplingParams(max_tokens=30, seed=1, ignore_eos=True)
                job = engine.submit(await engine.admit(prompt, params), listener)
                await listener.ended.wait()
                jobs.append((job, listener))
            elapsed = time.monotonic() - before
            for job, listener in jobs:
                timing = job.timing
                assert len(listener.pieces) == 30
                assert timing.queue_s >= 0 and timing.prefill_s > 0 and timing.decode_s > 0
                total = timing.queue_s + timing.prefill_s + timing.decode_s
                assert total == pytest.approx(listener.pieces[-1] - job.submitted_at, abs=1e-6)
                assert timing.cpu_s is None or 0 < timing.cpu_s <= elapsed * hardware.num_threads()[0] * 1.1
            assert jobs[0][0].timing.num_cached_tokens == 0
            assert jobs[1][0].timing.num_cached_tokens >= 16
            assert engine.tokens_per_s > 0

    asyncio.run(main())
