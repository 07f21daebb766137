"""Several models: loaded once and when asked for, within the budget; a failure stays with its model."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import DEFAULTS, draw_weights, write_checkpoint, write_weights
from fake_decoder import MAX_POSITIONS, FakeDecoder, expected_output

from pocketlm.config import EngineConfig, engine_config
from pocketlm.engine.engine import Engine
from pocketlm.errors import (
    ConfigError,
    EngineDead,
    InsufficientMemory,
    ModelLoadError,
    ModelNotFound,
    ModelUnavailable,
    NonFiniteLogits,
    PocketLMError,
)
from pocketlm.hub import BUNDLED
from pocketlm.known_answer import KnownAnswer
from pocketlm.loading import LoadedModel, load_model
from pocketlm.memory import MemoryEstimate
from pocketlm.registry import LOAD_COOLDOWN_S, ModelEntry, ModelState, Registry, parse_aliases
from pocketlm.sampling import SamplingParams
from pocketlm.text.chat_template import ChatTemplate
from pocketlm.text.tokenizer import Tokenizer

MIB = 1 << 20
PROMPT = [1, 2, 3]
PARAMS = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(BUNDLED)


def fake_model(name: str, *, size: int = MIB, **changes: Any) -> LoadedModel:
    """A model of the FakeDecoder that says it takes `size` bytes."""
    decoder = changes.pop("decoder", None) or FakeDecoder()
    engine = Engine(
        decoder,
        eos_token_ids=(),
        num_blocks=64,
        max_model_len=MAX_POSITIONS,
        max_num_seqs=8,
        max_batch_tokens=64,
        prefix_caching=True,
        speculative_tokens=0,
    )
    fields: dict[str, Any] = {
        "name": name,
        "model_type": "fake",
        "num_parameters": 1,
        "tokenizer": tokenizer(),
        "chat_template": ChatTemplate(None, {}, "none"),
        "engine": engine,
        "dtype": "float32",
        "dtype_reason": "for a test",
        "max_model_len": MAX_POSITIONS,
        "weights_bytes": size,
        "kv_cache_bytes": 0,
        "fingerprint": name,
        "known_answer": KnownAnswer(PROMPT, PARAMS, expected_output(PROMPT, PARAMS)),
        "settings": (),
        "load_s": 0.25,
    }
    return LoadedModel(**{**fields, **changes})


@dataclass
class Loads:
    """A loader of fake models that does what a test says, and remembers what it was asked."""

    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each model, 1 MiB unless given
    peaks: dict[str, int] = field(default_factory=dict)  # while it loads, if that is more
    errors: dict[str, BaseException] = field(default_factory=dict)
    gates: dict[str, threading.Event] = field(default_factory=dict)  # the load of a model waits for its gate
    loaded: list[str] = field(default_factory=list)
    granted: dict[str, int | None] = field(default_factory=dict)
    threads: set[threading.Thread] = field(default_factory=set)

    def load(self, name: str, config: EngineConfig, available_bytes: int | None = None) -> LoadedModel:
        self.loaded.append(name)
        self.granted[name] = available_bytes
        self.threads.add(threading.current_thread())
        if name in self.gates:
            assert self.gates[name].wait(timeout=10)
        if name in self.errors:
            raise self.errors[name]
        return fake_model(name, size=self.size(name))

    def estimate(self, name: str, config: EngineConfig, available_bytes: int) -> MemoryEstimate:
        size = self.size(name)
        return MemoryEstimate(1, size, self.peaks.get(name, size), 0, 0, MAX_POSITIONS)

    def size(self, name: str) -> int:
        return self.sizes.get(name, MIB)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketlm.hardware.available_memory", lambda: (1 << 40, "for a test"))


def registry_of(names: str, loads: Loads | None = None, **settings: Any) -> Registry:
    loads = loads or Loads()
    return Registry(names.split(), loader=loads.load, estimator=loads.estimate, **settings)


@asynccontextmanager
async def running(registry: Registry) -> AsyncIterator[Registry]:
    await registry.start()
    try:
        yield registry
    finally:
        await registry.stop()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


async def ask(registry: Registry, name: str | None, deadline_in: float | None = None) -> list[int]:
    """The answer of a model to the prompt."""
    deadline = None if deadline_in is None else asyncio.get_running_loop().time() + deadline_in
    async with registry.use(name, deadline) as engine:
        generation = await engine.admit(PROMPT, PARAMS)
        async for _ in engine.generate(generation):
            pass
        return generation.output.outputs[0].token_ids


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen in time")


def entry_of(registry: Registry, name: str) -> ModelEntry:
    [entry] = [entry for entry in registry.entries() if entry.name == name]
    return entry


def states(registry: Registry) -> dict[str, str]:
    return {entry.name: entry.state.value for entry in registry.entries()}


ANSWER = expected_output(PROMPT, PARAMS)


class TestNames:
    def test_the_first_model_is_the_default_and_aliases_stand_for_their_model(self) -> None:
        registry = registry_of("a b", aliases={"small": "b", "tiny": "b"})
        assert [registry.resolve(name) for name in (None, "a", "b", "small")] == ["a", "a", "b", "b"]
        assert [entry.aliases for entry in registry.entries()] == [(), ("small", "tiny")]

    def test_only_what_was_named_can_be_asked_for(self) -> None:
        with pytest.raises(
            ModelNotFound, match=r"'c' is not served here; this server has a, b, small"
        ) as error:
            registry_of("a b", aliases={"small": "b"}).resolve("c")
        assert error.value.param == "model"

    @pytest.mark.parametrize(
        ("names", "aliases", "message"),
        [
            ("", {}, "name at least one model"),
            ("a b a", {}, "'a' is given 2 times"),
            ("a", {"b": "c"}, "'b' stands for 'c', which is not served; there is a"),
            ("a b", {"b": "a"}, "'b' is itself the name of a model"),
        ],
    )
    def test_names_that_cannot_be_meant(self, names: str, aliases: dict[str, str], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            registry_of(names, aliases=aliases)

    def test_aliases_as_they_are_configured(self) -> None:
        assert parse_aliases(["small=gpt2", "x=org/name=1"]) == {"small": "gpt2", "x": "org/name=1"}
        for wrong in ("small", "=gpt2", "small=", ""):
            with pytest.raises(ConfigError, match="is not of the form NEW=MODEL"):
                parse_aliases([wrong])
        with pytest.raises(ConfigError, match="'a' is given twice"):
            parse_aliases(["a=b", "a=c"])


class TestLoading:
    def test_the_first_is_preloaded_and_the_others_wait_for_their_first_use(self) -> None:
        loads = Loads()

        async def main() -> None:
            async with running(registry) as models:
                assert await ask(models, None) == ANSWER
                assert loads.loaded == ["a"]
                assert await ask(models, "b") == ANSWER
                assert await ask(models, "b") == ANSWER
                assert loads.loaded == ["a", "b"]
                assert threading.main_thread() not in loads.threads
                entry = entry_of(models, "b")
                assert (entry.state, entry.num_users, entry.load_s) == (ModelState.READY, 0, 0.25)

        registry = registry_of("a b", loads)
        registry.preload()
        assert states(registry) == {"a": "ready", "b": "available"}
        loads.threads.clear()
        run(main())

    def test_what_is_loaded_already(self) -> None:
        async def main() -> None:
            async with running(Registry.of(fake_model("a"), fake_model("b"))) as models:
                assert await ask(models, "b") == ANSWER == await ask(models, None)

        run(main())

    def test_concurrent_first_users_load_once_and_nobody_else_waits(self) -> None:
        loads = Loads(gates={"b": threading.Event()})

        async def main() -> None:
            async with running(registry) as models:
                tasks = [asyncio.create_task(ask(models, "b")) for _ in range(5)]
                await until(lambda: loads.loaded == ["a", "b"])
                assert states(models)["b"] == "loading"
                assert await ask(models, "a") == ANSWER
                assert await ask(models, "c") == ANSWER  # a third model is not held up either
                loads.gates["b"].set()
                assert await asyncio.gather(*tasks) == [ANSWER] * 5
                assert loads.loaded == ["a", "b", "c"]

        registry = registry_of("a b c", loads)
        registry.preload()
        run(main())

    def test_a_waiter_that_is_cancelled_leaves_the_load_to_the_others(self) -> None:
        loads = Loads(gates={"a": threading.Event()})

        async def main() -> None:
            async with running(registry_of("a", loads)) as models:
                first, second = (asyncio.create_task(ask(models, "a")) for _ in range(2))
                await until(lambda: loads.loaded == ["a"])
                first.cancel()
                await asyncio.wait({first})
                assert entry_of(models, "a").num_users == 1
                loads.gates["a"].set()
                assert await second == ANSWER
                assert loads.loaded == ["a"]

        run(main())

    @pytest.mark.parametrize("deadline_in", [-1.0, 0.0, 0.02])
    def test_a_deadline_that_passes_while_it_loads(self, deadline_in: float) -> None:
        loads = Loads(gates={"a": threading.Event()})

        async def main() -> None:
            async with running(registry_of("a", loads)) as models:
                with pytest.raises(ModelUnavailable, match="not loaded in time") as error:
                    await ask(models, "a", deadline_in)
                assert error.value.retry_after_s is not None
                await until(lambda: loads.loaded == ["a"])
                loads.gates["a"].set()  # the load goes on
                await until(lambda: states(models)["a"] == "ready")
                assert await ask(models, "a", 10) == ANSWER
                assert loads.loaded == ["a"]

        run(main())

    def test_stopping_does_not_wait_for_a_load(self) -> None:
        loads = Loads(gates={"a": threading.Event()})

        async def main() -> None:
            async with running(registry_of("a b", loads)) as models:
                task = asyncio.create_task(ask(models, "a"))
                await until(lambda: loads.loaded == ["a"])
                task.cancel()
            with pytest.raises(ModelUnavailable, match="shutting down"):
                await ask(models, "b")

        run(main())
        loads.gates["a"].set()
        for thread in loads.threads:
            thread.join(timeout=10)

    def test_stopping_ends_every_engine(self) -> None:
        async def main() -> None:
            async with running(registry_of("a b")) as models:
                await ask(models, "a")
                await ask(models, "b")
            assert not [thread for thread in threading.enumerate() if thread.name == "pocketlm-engine"]

        run(main())


class TestFailure:
    def test_a_failed_load_cools_down_and_then_is_tried_again(self) -> None:
        loads, clock = Loads(errors={"b": ModelLoadError("it is damaged")}), Clock()

        async def main() -> None:
            async with running(registry_of("a b", loads, clock=clock)) as models:
                tasks = [asyncio.create_task(ask(models, "b")) for _ in range(3)]
                for result in await asyncio.gather(*tasks, return_exceptions=True):
                    assert isinstance(result, ModelUnavailable)
                    assert str(result) == "the model b could not be loaded: it is damaged"
                    assert (result.retry_after_s, result.param) == (LOAD_COOLDOWN_S, "model")
                entry = entry_of(models, "b")
                assert (entry.state, entry.num_users) == (ModelState.FAILED, 0)
                assert entry.error == "the model b could not be loaded: it is damaged"
                assert entry.model is None and entry.held_bytes == 0

                clock.now += LOAD_COOLDOWN_S - 10
                with pytest.raises(ModelUnavailable, match="it is damaged") as caught:
                    await ask(models, "b")
                assert caught.value.retry_after_s == 10
                assert loads.loaded == ["b"]
                assert await ask(models, "a") == ANSWER

                clock.now += 10
                with pytest.raises(ModelUnavailable):
                    await ask(models, "b")
                del loads.errors["b"]
                clock.now += LOAD_COOLDOWN_S
                assert await ask(models, "b") == ANSWER
                assert (entry.state, entry.error) == (ModelState.READY, None)
                assert loads.loaded == ["b", "a", "b", "b"]

        run(main())

    @pytest.mark.parametrize("error", [MemoryError(), OSError("secret"), RuntimeError("secret")])
    def test_whatever_loading_raises_stays_with_the_model(
        self, error: Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with running(registry_of("a b", Loads(errors={"b": error}))) as models:
                with pytest.raises(ModelUnavailable, match=type(error).__name__) as caught:
                    await ask(models, "b")
                assert "secret" not in str(caught.value)
                assert await ask(models, "a") == ANSWER

        run(main())
        assert str(error) in caplog.text  # for the operator

    def test_preload_raises_what_is_wrong(self) -> None:
        with pytest.raises(ModelLoadError, match="it is damaged"):
            registry_of("a", Loads(errors={"a": ModelLoadError("it is damaged")})).preload()
        with pytest.raises(
            InsufficientMemory, match=r"needs 3.0 MiB of memory, and the memory budget is 2.0 MiB"
        ):
            registry_of("a", Loads(sizes={"a": 3 * MIB}), memory_budget=2 * MIB).preload()

    def test_a_model_whose_files_disappear(self, tmp_path: Path) -> None:
        """Through the real loader; the message has the name that was configured and no other path."""
        one = str(write_checkpoint(tmp_path / "one", seed=1))
        two = write_checkpoint(tmp_path / "two", seed=2)
        registry = Registry([one, str(two)], config=engine_config(num_threads=1, max_num_seqs=2))
        registry.preload()
        assert entry_of(registry, str(two)).estimate is not None
        (two / "model.safetensors").unlink()

        async def main() -> None:
            async with running(registry) as models:
                with pytest.raises(ModelUnavailable, match=r"has no model.safetensors"):
                    await ask(models, str(two))
                async with models.use(one) as engine:
                    assert await engine.admit("It works", SamplingParams())

        run(main())

    def test_an_engine_that_died_stays_and_says_so(self) -> None:
        decoder = FakeDecoder(errors=[RuntimeError("one"), RuntimeError("two")])

        async def main() -> None:
            async with running(Registry.of(fake_model("a", decoder=decoder), fake_model("b"))) as models:
                for _ in range(2):
                    with pytest.raises(PocketLMError):
                        await ask(models, "a")
                with pytest.raises(EngineDead):
                    await ask(models, "a")
                assert states(models)["a"] == "ready"
                engine = entry_of(models, "a").engine
                assert engine is not None and engine.failure is not None
                assert await ask(models, "b") == ANSWER

        run(main())


class TestMemory:
    """Budgets in MiB; a model takes 1 unless the test says more."""

    def test_what_can_never_fit_is_refused_before_it_is_loaded(self) -> None:
        loads = Loads(sizes={"big": 10 * MIB})

        async def main() -> None:
            async with running(registry_of("a big", loads, memory_budget=4 * MIB)) as models:
                await ask(models, "a")
                for _ in range(2):
                    with pytest.raises(
                        InsufficientMemory, match=r"needs 10.0 MiB .* budget is 4.0 MiB"
                    ) as error:
                        await ask(models, "big")
                assert error.value.param == "model"
                assert states(models) == {"a": "ready", "big": "failed"}  # nothing was unloaded for it
                assert loads.loaded == ["a"]

        run(main())

    def test_the_machine_may_have_less_than_the_budget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loads, clock = Loads(sizes={"b": 5 * MIB}), Clock()

        async def main() -> None:
            async with running(registry_of("a b", loads, memory_budget=100 * MIB, clock=clock)) as models:
                monkeypatch.setattr("pocketlm.hardware.available_memory", lambda: (5 * MIB, "for a test"))
                with pytest.raises(InsufficientMemory, match=r"needs 5.0 MiB .* machine has 4.0 MiB"):
                    await ask(models, "b")
                monkeypatch.setattr("pocketlm.hardware.available_memory", lambda: (7 * MIB, "for a test"))
                with pytest.raises(InsufficientMemory):
                    await ask(models, "b")
                clock.now += 5
                assert await ask(models, "b") == ANSWER  # after a while it is looked at again
                assert loads.granted["b"] == int(0.8 * 7 * MIB)

        run(main())

    def test_the_machine_must_have_what_loading_takes_and_the_budget_what_stays(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock()
        loads = Loads(peaks={"b": 8 * MIB, "c": 6 * MIB}, gates={"b": threading.Event()})

        async def main() -> None:
            async with running(registry_of("a b c", loads, memory_budget=2 * MIB, clock=clock)) as models:
                await ask(models, "a")
                monkeypatch.setattr("pocketlm.hardware.available_memory", lambda: (5 * MIB, "for a test"))
                with pytest.raises(InsufficientMemory, match=r"needs 8.0 MiB .* while it loads, .* 5.0 MiB"):
                    await ask(models, "b")
                monkeypatch.setattr("pocketlm.hardware.available_memory", lambda: (10 * MIB, "for a test"))
                clock.now += 5
                first = asyncio.create_task(ask(models, "b"))
                await until(lambda: loads.loaded == ["a", "b"])
                assert states(models)["a"] == "ready"  # the budget has room for both
                second = asyncio.create_task(ask(models, "c"))  # what is free is promised to b
                await until(lambda: states(models)["c"] == "loading")
                await asyncio.sleep(0.05)
                assert loads.loaded == ["a", "b"]
                loads.gates["b"].set()
                assert await asyncio.gather(first, second) == [ANSWER, ANSWER]

        run(main())

    def test_the_least_recently_used_idle_model_makes_room(self) -> None:
        loads, clock = Loads(sizes={"d": 2 * MIB}), Clock()

        async def main() -> None:
            async with running(registry_of("a b c d", loads, memory_budget=3 * MIB, clock=clock)) as models:
                for name in ("a", "b", "c", "a"):
                    clock.now += 1
                    await ask(models, name)
                assert states(models) == {"a": "ready", "b": "ready", "c": "ready", "d": "available"}
                await ask(models, "d")
                assert states(models) == {"a": "ready", "b": "available", "c": "available", "d": "ready"}
                assert await ask(models, "b") == ANSWER  # and comes back
                assert states(models) == {"a": "available", "b": "ready", "c": "available", "d": "ready"}

        run(main())

    def test_an_unloaded_model_is_gone_from_memory(self) -> None:
        decoders: list[weakref.ref[FakeDecoder]] = []

        def load(name: str, config: EngineConfig, available_bytes: int | None = None) -> LoadedModel:
            decoder = FakeDecoder()
            decoders.append(weakref.ref(decoder))
            return fake_model(name, decoder=decoder)

        async def main() -> None:
            names = ["a", "b"]
            async with running(
                Registry(names, loader=load, estimator=Loads().estimate, memory_budget=MIB)
            ) as models:
                await ask(models, "a")
                await ask(models, "b")
                assert decoders[0]() is None and decoders[1]() is not None

        gc.disable()  # it must not take a collection
        try:
            run(main())
        finally:
            gc.enable()

    def test_a_model_in_use_stays_and_who_needs_its_memory_waits(self) -> None:
        loads = Loads()

        async def main() -> None:
            async with running(registry_of("a b c", loads, memory_budget=MIB)) as models:
                async with models.use("a") as engine:
                    with pytest.raises(
                        ModelUnavailable, match="its memory is in use by a; try again"
                    ) as error:
                        await ask(models, "b", 0.05)
                    assert error.value.retry_after_s is not None
                    await until(lambda: states(models)["b"] == "available")  # nobody waits: it was given up
                    waiting = asyncio.create_task(ask(models, "b", 20))
                    await asyncio.sleep(0.05)
                    assert states(models) == {"a": "ready", "b": "loading", "c": "available"}
                    assert engine.failure is None and loads.loaded == ["a"]
                assert await waiting == ANSWER
                assert states(models) == {"a": "available", "b": "ready", "c": "available"}

        run(main())

    def test_memory_that_another_process_gives_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pocketlm.registry.MEMORY_CHECK_S", 0.01)
        available = MIB
        monkeypatch.setattr("pocketlm.hardware.available_memory", lambda: (available, "for a test"))

        async def main() -> None:
            nonlocal available
            loads = Loads(sizes={"a": MIB // 2})
            async with running(registry_of("a b", loads, memory_budget=9 * MIB)) as models:
                async with models.use("a"):
                    waiting = asyncio.create_task(ask(models, "b"))
                    await until(lambda: states(models)["b"] == "loading")
                    await asyncio.sleep(0.05)
                    assert loads.loaded == ["a"]
                    available = 2 * MIB
                    assert await waiting == ANSWER
                    assert states(models) == {"a": "ready", "b": "ready"}

        run(main())

    def test_idle_models_are_not_unloaded_in_vain(self) -> None:
        """`big` needs the memory of both others, and one of them is in use."""
        loads = Loads(sizes={"big": 2 * MIB})

        async def main() -> None:
            async with running(registry_of("a b big", loads, memory_budget=2 * MIB)) as models:
                await ask(models, "a")
                async with models.use("b"):
                    waiting = asyncio.create_task(ask(models, "big"))
                    await until(lambda: states(models)["big"] == "loading")
                    await asyncio.sleep(0.05)
                    assert states(models)["a"] == "ready"
                assert await waiting == ANSWER
                assert states(models) == {"a": "available", "b": "available", "big": "ready"}

        run(main())

    def test_what_a_load_was_granted_is_not_granted_twice(self) -> None:
        loads = Loads(gates={"a": threading.Event()}, sizes={"a": 2 * MIB, "b": 2 * MIB})

        async def main() -> None:
            async with running(registry_of("a b", loads, memory_budget=3 * MIB)) as models:
                first = asyncio.create_task(ask(models, "a"))
                await until(lambda: loads.loaded == ["a"])
                second = asyncio.create_task(ask(models, "b"))
                await until(lambda: states(models)["b"] == "loading")
                await asyncio.sleep(0.05)
                assert loads.loaded == ["a"]
                loads.gates["a"].set()
                assert await asyncio.gather(first, second) == [ANSWER, ANSWER]
                assert states(models) == {"a": "available", "b": "ready"}

        run(main())

    def test_each_model_may_take_an_equal_part_of_what_is_left(self) -> None:
        loads = Loads(sizes={"a": MIB, "b": 6 * MIB})

        async def main() -> None:
            async with running(registry_of("a b c", loads, memory_budget=12 * MIB)) as models:
                for name in ("a", "b", "c"):
                    await ask(models, name)
                # 12 / 3; (12 - 1) / 2 is not enough for b; what is left
                assert loads.granted == {"a": 4 * MIB, "b": 6 * MIB, "c": 5 * MIB}

        run(main())

    def test_the_budget_without_a_configured_one_is_a_share_of_the_machine(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("pocketlm.hardware.available_memory", lambda: (10 * MIB, "for a test"))
        with caplog.at_level(logging.INFO):
            assert registry_of("a").memory_budget == 8 * MIB
            assert registry_of("a", memory_budget=3 * MIB).memory_budget == 3 * MIB
        assert "memory_budget=8.0 MiB: 80% of 10.0 MiB for a test" in caplog.text
        assert "memory_budget=3.0 MiB: as configured" in caplog.text

    def test_real_models_fit_into_the_budget_they_are_given(self, tmp_path: Path) -> None:
        """Whatever is loaded and unloaded, the sum of what the loaded ones take stays within the budget."""
        names = [str(write_checkpoint(tmp_path / str(i), seed=i, n_embd=64)) for i in range(3)]
        budget = 3 * MIB
        registry = Registry(names, config=engine_config(num_threads=1, dtype="float32"), memory_budget=budget)
        registry.preload()

        async def main() -> None:
            async with running(registry) as models:
                for name in [*names, *names]:
                    async with models.use(name):
                        loaded = [entry.model for entry in models.entries() if entry.model is not None]
                        assert 0 < sum(model.memory_bytes for model in loaded) <= budget
                        assert entry_of(models, name).model in loaded

        run(main())

    def test_many_users_of_more_models_than_fit(self) -> None:
        """In whatever order they come, each is answered, and the budget holds at every moment."""
        loads = Loads(sizes={"a": MIB, "b": 2 * MIB, "c": 3 * MIB})
        budget = 4 * MIB

        async def user(models: Registry, number: int) -> None:
            rng = np.random.default_rng(number)
            for _ in range(10):
                await asyncio.sleep(float(rng.random()) / 100)
                assert await ask(models, str(rng.choice(["a", "b", "c"]))) == ANSWER
                assert sum(entry.held_bytes for entry in models.entries()) <= budget

        async def main() -> None:
            async with running(registry_of("a b c", loads, memory_budget=budget)) as models:
                await asyncio.gather(*(user(models, number) for number in range(6)))
                assert all(entry.num_users == 0 and entry.task is None for entry in models.entries())

        run(main())


class TestKeepAlive:
    def test_only_what_was_idle_for_so_long_is_unloaded(self) -> None:
        clock = Clock()

        async def main() -> None:
            async with running(registry_of("a b c", clock=clock, keep_alive_s=60)) as models:
                await ask(models, "a")
                clock.now += 59
                await ask(models, "b")
                async with models.use("c"):
                    await models.unload_expired()
                    assert set(states(models).values()) == {"ready"}
                    clock.now += 1
                    await models.unload_expired()
                    assert states(models) == {"a": "available", "b": "ready", "c": "ready"}
                    clock.now += 1000
                    await models.unload_expired()
                    assert states(models) == {"a": "available", "b": "available", "c": "ready"}
                await models.unload_expired()
                assert states(models)["c"] == "ready"  # it was in use until now
                assert await ask(models, "a") == ANSWER

        run(main())

    def test_it_happens_by_itself(self) -> None:
        async def main() -> None:
            async with running(registry_of("a", keep_alive_s=0.02)) as models:
                await ask(models, "a")
                await until(lambda: states(models)["a"] == "available")
                assert await ask(models, "a") == ANSWER

        run(main())

    def test_a_check_does_not_keep_a_model(self) -> None:
        clock = Clock()

        async def main() -> None:
            async with running(registry_of("a", clock=clock, keep_alive_s=60)) as models:
                await ask(models, "a")
                clock.now += 60
                assert await models.check("a") is None
                await models.unload_expired()
                assert states(models)["a"] == "available"
                assert await models.check("a") is None
                assert states(models)["a"] == "available"  # nor does it load one

        run(main())


class TestKnownAnswer:
    def test_a_model_that_answers_as_it_should(self) -> None:
        async def main() -> None:
            async with running(Registry.of(fake_model("a"))) as models:
                assert await models.check("a") is None
                assert entry_of(models, "a").check_failure is None

        run(main())

    def test_the_bundled_model_through_the_engine(self) -> None:
        async def main() -> None:
            model = load_model("bundled", engine_config(num_threads=1, max_num_seqs=4))
            async with running(Registry.of(model)) as models:
                # Beside other requests, as it will be.
                async with models.use("bundled") as engine:
                    others = [
                        await engine.admit("Other words", SamplingParams(max_tokens=9)) for _ in range(3)
                    ]

                    async def finish(generation: Any) -> None:
                        async for _ in engine.generate(generation):
                            pass

                    await asyncio.gather(models.check("bundled"), *map(finish, others))
                assert entry_of(models, "bundled").check_failure is None

        run(main())

    def test_another_answer_is_a_failure_until_the_right_one_comes(self) -> None:
        model = fake_model("a", known_answer=KnownAnswer(PROMPT, PARAMS, [1] * 8))

        async def main() -> None:
            async with running(Registry.of(model)) as models:
                failure = await models.check("a")
                assert failure is not None and f"answers {ANSWER}, and it should answer {[1] * 8}" in failure
                assert entry_of(models, "a").check_failure == failure
                assert model.known_answer is not None and model.known_answer.token_ids is not None
                model.known_answer.token_ids[:] = ANSWER
                assert await models.check("a") is None
                assert entry_of(models, "a").check_failure is None

        run(main())

    def test_an_engine_that_fails_fails_the_check(self) -> None:
        model = fake_model("a", decoder=FakeDecoder(errors=[RuntimeError("broken")]))

        async def main() -> None:
            async with running(Registry.of(model)) as models:
                assert "the known-answer check failed" in str(await models.check("a"))
                assert await models.check("a") is None

        run(main())

    def test_a_full_queue_says_nothing_about_the_model(self) -> None:
        async def main() -> None:
            async with running(Registry.of(fake_model("a"), max_queue=0)) as models:
                params = SamplingParams(max_tokens=100, n=20)  # more than there are seats
                async with models.use("a") as engine:
                    blocking = engine.generate(await engine.admit(PROMPT, params))
                    await anext(blocking)
                    assert await models.check("a") is None
                    await blocking.aclose()

        run(main())

    def test_nan_in_the_weights(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The model loads, its entry says what is wrong, and requests fail with that."""
        folder = write_checkpoint(tmp_path / "model", seed=1)
        weights = draw_weights(DEFAULTS, seed=1, tied=True)
        weights["h.0.ln_1.weight"][0] = np.nan
        write_weights(folder, weights, dtype="F32", shards=1)
        registry = Registry([str(folder)], config=engine_config(num_threads=1, max_num_seqs=2))
        registry.preload()
        assert "not finite" in str(entry_of(registry, str(folder)).check_failure)
        assert "not finite" in caplog.text

        async def main() -> None:
            async with running(registry) as models:
                async with models.use(None) as engine:
                    generation = await engine.admit("Words", SamplingParams())
                    with pytest.raises(NonFiniteLogits):
                        async for _ in engine.generate(generation):
                            pass
                failure = await models.check(str(folder))
                assert failure is not None and entry_of(models, str(folder)).check_failure == failure

        run(main())
