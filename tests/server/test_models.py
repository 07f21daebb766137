"""Several models behind one server: which of them answers, when it is loaded, what is told of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from checkpoints import write_checkpoint
from lazy_models import MIB, LazyModels
from served import RunningServer, running_server, wait_until

from pocketlm import LLM, SamplingParams
from pocketlm.config import engine_config
from pocketlm.registry import Registry

SETTINGS = {"dtype": "float32", "num_threads": 1, "max_num_seqs": 4}
GENERATING = ("/generate", "/v1/completions", "/v1/chat/completions")
PROMPT = "Pods are"


@dataclass
class Served:
    server: RunningServer
    one: str  # the names of the two models on disk
    two: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled model and two small ones from disk; "second" is an alias."""
    folder = tmp_path_factory.mktemp("models")
    one, two = (str(write_checkpoint(folder / name, seed=seed)) for name, seed in [("one", 1), ("two", 2)])
    registry = Registry(["bundled", one, two], aliases={"second": two}, config=engine_config(**SETTINGS))
    registry.preload()
    with running_server(registry) as server:
        yield Served(server, one, two)


def ask(server: RunningServer, path: str = "/generate", **fields: Any) -> httpx.Response:
    body = {"max_tokens": 8, "temperature": 0, "cache": False, **fields}
    if path == "/v1/chat/completions":
        body["messages"] = [{"role": "user", "content": PROMPT}]
    else:
        body["prompt"] = PROMPT
    return server.client.post(path, json=body)


def listed(server: RunningServer) -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in server.client.get("/models").json()["models"]}


def states(server: RunningServer) -> list[str]:
    return [model["state"] for model in listed(server).values()]


class TestWhichModelAnswers:
    def test_each_answers_as_it_does_alone(self, served: Served) -> None:
        for given, name in [
            (None, "bundled"),
            ("bundled", "bundled"),
            (served.one, served.one),
            ("second", served.two),
        ]:
            llm = LLM(name, **SETTINGS)
            [output] = llm.generate([PROMPT], SamplingParams(max_tokens=8, temperature=0))
            response = ask(served.server, **({} if given is None else {"model": given}))
            assert response.status_code == 200, response.text
            answer = response.json()
            assert answer["generated_text"] == PROMPT + output.outputs[0].text
            assert answer["model"] == name

    @pytest.mark.parametrize("path", GENERATING)
    @pytest.mark.parametrize("stream", [False, True])
    def test_every_route_takes_the_name_and_the_alias(self, served: Served, path: str, stream: bool) -> None:
        answers = [ask(served.server, path, model=name, stream=stream) for name in (served.two, "second")]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert all(f'"model":"{served.two}"' in answer.text for answer in answers)
        assert '"model":"bundled"' in ask(served.server, path, stream=stream).text

    def test_each_has_its_own_tokenizer(self, served: Served) -> None:
        body = {"prompt": "Kubernetes"}
        counts = [
            served.server.client.post("/tokenize", json={**body, **model}).json()["count"]
            for model in ({}, {"model": "second"})
        ]
        assert counts[0] < counts[1] == len("Kubernetes")  # a token a byte
        tokens = {"model": "second", "tokens": list(b"Kubernetes")}
        assert served.server.client.post("/detokenize", json=tokens).json() == body

    @pytest.mark.parametrize("path", [*GENERATING, "/tokenize", "/detokenize"])
    def test_another_model_cannot_be_asked_for(self, served: Served, path: str, tmp_path: Path) -> None:
        there = str(write_checkpoint(tmp_path / "there", seed=3))
        for name in ("gpt2", there, "../one", ""):
            fields = {"tokens": [1]} if path == "/detokenize" else {"prompt": "x"}
            fields = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else fields
            response = served.server.client.post(path, json={**fields, "model": name})
            error = response.json()["error"]
            if name:
                assert response.status_code == 404
                message = error["message"] if path.startswith("/v1/") else error
                assert f"the model {name!r} is not served here; this server has bundled, " in message
            else:
                assert response.status_code in (400, 404)
            if path.startswith("/v1/") and name:
                assert (error["type"], error["param"]) == ("invalid_request_error", "model")
                assert error["code"] == "model_not_found"


class TestWhatIsTold:
    def test_of_a_loaded_model_what_it_takes(self, served: Served) -> None:
        ask(served.server, model=served.one)
        models = served.server.client.get("/models").json()
        assert models["default"] == "bundled"
        model = listed(served.server)[served.one]
        assert (model["state"], model["dtype"], model["context_window"]) == ("ready", "float32", 64)
        assert model["memory_bytes"] == model["weights_bytes"] + model["kv_cache_bytes"] > 0
        assert model["parameters"] > 10_000 and model["load_seconds"] > 0 and "error" not in model
        assert listed(served.server)[served.two]["aliases"] == ["second"]

    def test_of_one_that_is_not_loaded_what_it_would_take(self, tmp_path: Path) -> None:
        name = str(write_checkpoint(tmp_path / "small", seed=1))
        registry = Registry(["bundled", name], config=engine_config(**SETTINGS))
        registry.preload()
        with running_server(registry) as server:
            before = listed(server)[name]
            assert (before["state"], before["context_window"]) == ("available", 64)
            assert before["estimated_memory_bytes"] > 0
            assert ask(server, model=name).status_code == 200
            after = listed(server)[name]
            assert after["state"] == "ready" and after["parameters"] == before["parameters"]
            assert server.sample("models_loaded") == 2
            assert server.sample("model_memory_bytes", model_name=name) == after["memory_bytes"]

    def test_in_the_form_of_openai(self, served: Served) -> None:
        client = served.server.client
        models = client.get("/v1/models").json()
        assert models["object"] == "list"
        assert [model["id"] for model in models["data"]] == ["bundled", served.one, served.two]
        for name, expected in [("bundled", 0), (served.one, 1), ("second", 2)]:  # one has slashes
            model = client.get(f"/v1/models/{name}").json()
            assert model == models["data"][expected]
            assert model["object"] == "model" and model["owned_by"] == "pocketlm" and model["created"] > 0
        missing = client.get("/v1/models/no/such")
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


class TestLoading:
    def test_first_requests_at_once_load_once(self) -> None:
        gate = threading.Event()
        lazy = LazyModels(before_load=lambda: gate.wait(timeout=20))
        with running_server(lazy.registry("first", "org/other")) as server, ThreadPoolExecutor(8) as pool:
            body = {"prompt": "!", "max_tokens": 4}
            waiting = [
                pool.submit(server.client.post, path, json={**body, "model": "org/other", "seed": i})
                for i, path in enumerate(["/generate", "/v1/completions"] * 4)
            ]
            wait_until(lambda: states(server) == ["ready", "loading"])
            assert server.client.post("/generate", json=body).status_code == 200  # the other does not wait
            assert server.client.get("/v1/models/org/other").json()["state"] == "loading"
            gate.set()
            assert {future.result(timeout=20).status_code for future in waiting} == {200}
        assert lazy.loads == ["first", "org/other"]

    @pytest.mark.parametrize("path", GENERATING)
    def test_a_deadline_counts_the_load(self, path: str) -> None:
        gate = threading.Event()
        with running_server(
            LazyModels(before_load=lambda: gate.wait(timeout=20)).registry("a", "b")
        ) as server:
            response = ask(server, path, model="b", timeout=0.2)
            assert response.status_code == 503 and "was not loaded in time" in response.text
            assert int(response.headers["retry-after"]) >= 1
            gate.set()
            wait_until(lambda: states(server) == ["ready", "ready"])  # for the next one who asks

    def test_a_model_that_cannot_fit_is_refused_before_it_is_loaded(self) -> None:
        lazy = LazyModels(sizes={"huge": 9 * MIB})
        with running_server(lazy.registry("small", "huge", memory_budget=4 * MIB)) as server:
            for path in GENERATING:
                response = ask(server, path, model="huge")
                assert response.status_code == 507
                assert "9.0 MiB" in response.text and "4.0 MiB" in response.text
                assert response.headers["x-should-retry"] == "false"
            assert states(server) == ["ready", "failed"] and "9.0 MiB" in listed(server)["huge"]["error"]
            assert server.client.post("/generate", json={"prompt": "!"}).status_code == 200
        assert lazy.loads == ["small"]

    def test_the_model_used_least_lately_makes_room(self) -> None:
        lazy = LazyModels()
        with running_server(lazy.registry("a", "b", "c", memory_budget=2 * MIB)) as server:
            for name, expected in [
                ("b", ["ready", "ready", "available"]),
                ("a", ["ready", "ready", "available"]),
                ("c", ["ready", "available", "ready"]),
                ("b", ["available", "ready", "ready"]),
            ]:
                assert server.client.post("/generate", json={"prompt": "!", "model": name}).status_code == 200
                assert states(server) == expected

    def test_an_idle_model_is_unloaded_and_comes_back(self) -> None:
        lazy = LazyModels()
        with running_server(lazy.registry("a", keep_alive_s=0.1)) as server:
            wait_until(lambda: states(server) == ["available"])
            assert server.client.get("/health").json() == {"status": "healthy", "model": "a", "engines": {}}
            assert server.client.get("/health/ready").status_code == 200
            assert server.sample("models_loaded") == 0
            assert server.client.post("/generate", json={"prompt": "!"}).status_code == 200
        assert lazy.loads == ["a", "a"]
