"""POST /generate and GET /health as the exercise has them, over a real port."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from served import RunningServer, bundled_model, is_idle, running_server, wait_until

from pocketlm import LLM, SamplingParams

# What the exercise's Python client asks: (prompt, max_length, temperature), with its defaults filled in.
CLIENT_REQUESTS = [
    ("Docker containers are", 50, 0.7),
    ("Machine learning infrastructure requires", 80, 0.7),
    ("The future of AI is", 50, 1.2),
]
# What its curl lines send.
CURL_REQUESTS = [
    {"prompt": "Kubernetes is a", "max_length": 50, "temperature": 0.7},
    {"prompt": "The best way to deploy machine learning models is", "max_length": 100, "temperature": 1.0},
]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(bundled_model()) as server:
        yield server
    assert is_idle(bundled_model())


def generate(server: RunningServer, **body: Any) -> dict[str, Any]:
    response = server.client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_health(server: RunningServer) -> None:
    response = server.client.get("/health")
    answer = response.json()
    assert (response.status_code, answer["status"], answer["model"]) == (200, "healthy", "bundled")
    engine = answer["engines"]["bundled"]
    assert (engine["dtype"], engine["running"], engine["waiting"]) == ("float32", 0, 0)


@pytest.mark.parametrize(("prompt", "max_length", "temperature"), CLIENT_REQUESTS)
def test_the_client_of_the_exercise(
    server: RunningServer, prompt: str, max_length: int, temperature: float
) -> None:
    """It uses requests, prints three fields of a 200, and anything else as an error."""
    body = {"prompt": prompt, "max_length": max_length, "temperature": temperature}
    response = requests.post(f"{server.url}/generate", json=body, timeout=60)
    assert response.status_code == 200
    answer = response.json()
    assert answer["prompt"] == prompt
    assert answer["generated_text"].startswith(prompt)
    assert isinstance(answer["inference_time_seconds"], float)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_lines_of_the_exercise(server: RunningServer) -> None:
    """Multi-line JSON after -d, an explicit POST, localhost by name."""
    host = server.url.replace("127.0.0.1", "localhost")

    def curl(*arguments: str) -> Any:
        done = subprocess.run(["curl", *arguments], capture_output=True, timeout=60, check=True)
        return json.loads(done.stdout)

    assert curl(f"{host}/health")["status"] == "healthy"
    for body in CURL_REQUESTS:
        header, data = "Content-Type: application/json", json.dumps(body, indent=4)
        answer = curl("-X", "POST", f"{host}/generate", "-H", header, "-d", data)
        assert answer["generated_text"].startswith(str(body["prompt"]))
        assert answer["parameters"]["max_length"] == body["max_length"]
        assert answer["parameters"]["temperature"] == body["temperature"]


def test_the_answer_has_the_fields_of_the_exercise_and_the_effective_parameters(
    server: RunningServer,
) -> None:
    start = time.perf_counter()
    answer = generate(server, prompt="Kubernetes is a", max_length=30, temperature=0.5)
    elapsed = time.perf_counter() - start
    assert answer["prompt"] == "Kubernetes is a"
    assert answer["generated_text"].startswith("Kubernetes is a") and len(answer["generated_text"]) > 20
    assert 0 <= answer["inference_time_seconds"] <= round(elapsed, 2)
    seed = answer["parameters"].pop("seed")
    assert isinstance(seed, int)
    assert answer["parameters"] == {
        "max_length": 30,
        "temperature": 0.5,
        "top_k": 50,
        "top_p": 1.0,
        "num_return_sequences": 1,
    }
    assert answer["finish_reason"] in ("length", "stop")
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 3 and usage["prompt_tokens"] + usage["completion_tokens"] <= 30


def test_the_defaults_are_those_of_the_exercise(server: RunningServer) -> None:
    answer = generate(server, prompt="Kubernetes is a", ignore_eos=True)
    assert (answer["parameters"]["max_length"], answer["parameters"]["temperature"]) == (50, 0.7)
    assert sum(answer["usage"].values()) == 50


def test_an_answer_can_be_had_again_from_its_seed(server: RunningServer) -> None:
    first = generate(server, prompt="Kubernetes is a", cache=False)
    other = generate(server, prompt="Kubernetes is a", cache=False)
    again = generate(server, prompt="Kubernetes is a", seed=first["parameters"]["seed"], cache=False)
    assert again["generated_text"] == first["generated_text"] != other["generated_text"]


def test_several_answers(server: RunningServer) -> None:
    answer = generate(server, prompt="Kubernetes is a", num_return_sequences=3, seed=7)
    assert len(set(answer["generated_texts"])) == 3
    assert answer["generated_text"] == answer["generated_texts"][0]
    assert len(answer["finish_reasons"]) == 3
    second = generate(server, prompt="Kubernetes is a", seed=8)
    assert second["generated_text"] == answer["generated_texts"][1]


def test_every_sampling_field_reaches_the_engine_and_is_reported(server: RunningServer) -> None:
    fields: dict[str, Any] = {
        "max_tokens": 12,
        "min_tokens": 2,
        "temperature": 1.1,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "seed": 3,
        "stop": ["zzz", "qqq"],
        "stop_token_ids": [5],
        "ignore_eos": True,
    }
    answer = generate(server, prompt="Kubernetes is a", logit_bias={"588": 5, "7": -100}, **fields)
    assert answer["parameters"] == {
        **fields,
        "max_length": 200,
        "logit_bias": {"588": 5, "7": -100},
        "num_return_sequences": 1,
    }
    params = SamplingParams(logit_bias={588: 5, 7: -100}, max_length=200, **fields)
    assert answer["generated_text"] == in_process("Kubernetes is a", params)


def in_process(prompt: str, params: SamplingParams) -> str:
    """What LLM answers, from a second copy of the model: the server's engine has a thread of its own."""
    [output] = LLM(dtype="float32").generate(prompt, params)
    return output.prompt + output.outputs[0].text


def test_null_means_not_given(server: RunningServer) -> None:
    answer = generate(server, prompt="Kubernetes is a", max_length=None, temperature=None, stop=None, seed=1)
    assert answer["parameters"]["max_length"] == 50
    assert answer["generated_text"] == generate(server, prompt="Kubernetes is a", seed=1)["generated_text"]


def test_greedy(server: RunningServer) -> None:
    texts = {generate(server, prompt="Kubernetes is a", temperature=0)["generated_text"] for _ in range(3)}
    assert len(texts) == 1


def test_any_text_comes_back_as_it_was_sent(server: RunningServer) -> None:
    prompt = 'Größe — 数 🙂 \n\t"quoted" \\ \u2028'
    answer = generate(server, prompt=prompt)
    assert answer["prompt"] == prompt
    assert answer["generated_text"].startswith(prompt)


def test_32_clients_at_once_get_what_each_gets_alone(server: RunningServer) -> None:
    def ask(i: int) -> str:
        body = {"prompt": f"Request {i} says", "seed": i, "max_length": 30 + i, "temperature": 0.5 + i / 32}
        text: str = generate(server, **body)["generated_text"]
        return text

    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(ask, range(32)))
    assert together == [ask(i) for i in range(32)]


def connect(server: RunningServer) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)))


def test_a_client_that_goes_away_frees_its_blocks(server: RunningServer) -> None:
    engine = server.model.engine
    before = engine.stats().num_output_tokens
    body = json.dumps(
        {"prompt": "Kubernetes is a", "max_length": 200, "num_return_sequences": 16, "ignore_eos": True}
    ).encode()
    head = (
        f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    with connect(server) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        wait_until(lambda: engine.stats().num_output_tokens > before)
    wait_until(lambda: is_idle(server.model))
    assert engine.stats().num_output_tokens - before < 16 * 197  # it did not run to its end
    assert server.client.get("/health").status_code == 200


def test_a_client_that_goes_away_while_it_sends_is_forgotten(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(server) as connection:
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        time.sleep(0.05)
    generate(server, prompt="Kubernetes is a", max_length=5)
    assert "Traceback" not in caplog.text


def test_prompts_are_not_logged(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        generate(server, prompt="My password is swordfish", max_length=10)
        server.client.post("/generate", json={"prompt": "My password is swordfish", "top_k": -1})
    assert "swordfish" not in caplog.text


def test_the_schema_shows_every_field(server: RunningServer) -> None:
    schema = server.client.get("/openapi.json").json()
    body = schema["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "max_length", "temperature", "seed", "stop"} <= body["properties"].keys()
    assert server.client.get("/docs").status_code == 200


def test_the_limit_of_max_length_is_a_setting() -> None:
    with running_server(bundled_model(), max_length_limit=20) as server:
        answer = generate(server, prompt="Kubernetes is a")
        assert answer["parameters"]["max_length"] == 20
        response = server.client.post("/generate", json={"prompt": "a", "max_length": 21})
        assert response.json() == {"error": "max_length cannot exceed 20"}
