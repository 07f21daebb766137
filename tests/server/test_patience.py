"""A limit on others' time, and what it leaves behind."""

from __future__ import annotations

import asyncio
import time

import pytest

from pocketlm.server.patience import wait_patiently


def test_what_is_too_slow_is_cancelled() -> None:
    async def test() -> None:
        ended = asyncio.Event()

        async def slow() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        with pytest.raises(asyncio.TimeoutError):
            await wait_patiently(slow(), 0.05)
        await asyncio.wait_for(ended.wait(), 10)

    asyncio.run(test())


def test_results_and_errors_pass_through() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 5

    async def error() -> int:
        raise KeyError("x")

    async def test() -> None:
        assert await wait_patiently(answer(), 10) == 5
        with pytest.raises(KeyError):
            await wait_patiently(error(), 10)

    asyncio.run(test())


def test_a_late_event_loop_does_not_use_up_the_time_of_others() -> None:
    async def test() -> None:
        async def asked() -> str:
            """Needs the loop twice, as a question and its answer do."""
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                return (await reader.readline()).decode()
            finally:
                writer.close()

        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello\n")
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            asyncio.get_running_loop().call_soon(time.sleep, 0.6)
            assert await wait_patiently(asked(), 0.5) == "hello\n"

    asyncio.run(test())


def test_whoever_stops_waiting_stops_the_call() -> None:
    async def test() -> None:
        ended = asyncio.Event()

        async def failing_end() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()
                raise OSError("while it ends")  # and nobody hears of it

        waiting = asyncio.create_task(wait_patiently(failing_end(), 60))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(ended.wait(), 10)

    asyncio.run(test())
