"""pocketlm monitor: a model's cost as the system counts it, and a server's life as its metrics tell it."""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from command import COMMAND, pocketlm
from rich.console import Console
from served import RunningServer, bundled_model, running_server, wait_until
from terminal import CTRL_C, terminal

from pocketlm.cli.scrape import Scrape, Span, parse
from pocketlm.cli.server_figures import server_figures
from pocketlm.cli.server_view import server_view

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
NO_SERVER = "http://127.0.0.1:1"


def status_mib(pid: int, field: str) -> float:
    """A field of /proc/PID/status; 0 if the process is gone."""
    try:
        found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


# A model in place


def test_the_cost_of_a_model_as_a_table() -> None:
    result = pocketlm("monitor", "--max-tokens", "10", "--prompt", "Kubernetes is a")
    assert result.returncode == 0, result.stderr
    for line in (
        r"model +bundled, 6,967,296 parameters",
        r"memory before load +\d+\.\d MiB",
        r"memory after load +\d+\.\d MiB",
        r"memory of the model +\d+\.\d MiB",
        r"load time +\d+\.\d\d s",
        r"inference time +\d+\.\d\d s for 10 tokens",
        r"memory at inference +\d+\.\d MiB",
        r"peak memory +\d+\.\d MiB",
        r"CPU at inference +\d+\.\d\d processors",
        r"tokens per second +\d+\.\d",
        r"output +Kubernetes is a",
    ):
        assert re.search(rf"^{line}", result.stdout, re.MULTILINE), line


@needs_proc
def test_its_memory_agrees_with_proc() -> None:
    """Read from outside, until its end: the peak, which the kernel keeps, and what it holds in the end."""
    settings = ["--shape", "distilgpt2", "--dtype", "float32", "--max-tokens", "150"]
    command = [*COMMAND, "monitor", *settings, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        peak, resident = 0.0, []
        while process.poll() is None:
            for child in psutil.Process(process.pid).children():
                peak = max(peak, status_mib(child.pid, "VmHWM"))
                resident.append(status_mib(child.pid, "VmRSS"))
            time.sleep(0.001)
        output, _ = process.communicate()
    found = json.loads(output)
    assert found["ok"] and found["model"] == "shape:distilgpt2" and found["parameters"] == 81_912_576
    assert found["peak_memory_mib"] == pytest.approx(peak, rel=0.02)
    assert found["memory_during_mib"] == pytest.approx(
        statistics.median(resident[len(resident) // 2 :]), rel=0.02
    )
    assert found["memory_mib"] == found["memory_after_mib"] - found["memory_before_mib"]
    assert found["memory_mib"] > 4 * 81_912_576 / 2**20  # four bytes a parameter
    assert found["tokens_per_second"] == pytest.approx(150 / found["inference_s"])


def test_ctrl_c_ends_it_with_its_child() -> None:
    with terminal("monitor", "--shape", "gpt2-large") as screen:
        screen.wait_for("loading shape:gpt2-large")
        process = psutil.Process(screen.process.pid)
        wait_until(lambda: bool(process.children()))
        children = process.children(recursive=True)
        screen.send(CTRL_C)
        assert screen.wait(timeout_s=10) == 130
        assert "Traceback" not in screen.screen
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such-folder/model/x"], 1, "error: 'no-such-folder/model/x' is not a local folder"),
        (["--shape", "gpt3"], 1, "error: there is no shape 'shape:gpt3'; shapes are shape:distilgpt2"),
        (["bundled", "--shape", "gpt2"], 2, "error: give a model or --shape, not both"),
        (["--max-tokens", "0x"], 2, "max-tokens"),
        (["--interval", "2"], 2, "error: interval: it is for watching a server"),
        (["--url", NO_SERVER, "--dtype", "int8"], 2, "error: dtype is for a model in place"),
        (["bundled", "--url", NO_SERVER], 2, "error: model is for a model in place"),
        (["--url", NO_SERVER], 1, f"error: the server at {NO_SERVER} does not answer"),
        (["--url", "localhost:5000"], 2, "error: url: 'localhost:5000' is no address"),
        (["--url", "http://[::"], 2, "error: url: 'http://[::' is no address"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], code: int, message: str) -> None:
    result = pocketlm("monitor", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr and "Traceback" not in result.stderr


# A running server


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(bundled_model()) as server:
        yield server


class Load:
    """Two clients that ask again and again, from their first answers until the end of the block."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._is_over = threading.Event()
        self._num_answers = 0
        self._pool = ThreadPoolExecutor(2)

    def _ask(self, client: int) -> None:
        i = 0
        while not self._is_over.is_set():
            body = {"prompt": f"Client {client} asks", "max_tokens": 20, "seed": i, "ignore_eos": True}
            self._server.client.post("/generate", json=body).raise_for_status()
            self._num_answers += 1
            i += 1

    def __enter__(self) -> None:
        self._clients = [self._pool.submit(self._ask, i) for i in range(2)]
        wait_until(lambda: self._num_answers >= 2, timeout_s=60)

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for client in self._clients:
            client.result(timeout=60)
        self._pool.shutdown()


def test_one_look_at_a_busy_server_as_json(server: RunningServer) -> None:
    with Load(server):
        result = pocketlm("monitor", "--url", server.url, "--once", "--json", "--interval", "2")
    assert result.returncode == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    model = found["models"]["bundled"]
    assert 2 <= found["interval_s"] == found["window_s"]
    assert model["tokens_per_second"] == pytest.approx(20 * model["requests_per_second"], rel=0.5)
    for latency in (model["ttft_s"], model["inter_token_s"]):
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
    assert 0 <= model["kv_cache_usage"] <= 1 and 0 <= model["running"] <= 2
    assert model["memory_mib"] == pytest.approx(bundled_model().memory_bytes / 2**20)
    assert found["processors_used"] > 0


@needs_proc
def test_the_memory_of_a_server_agrees_with_proc(server: RunningServer) -> None:
    result = pocketlm("monitor", "--url", server.url, "--once", "--json", "--interval", "0.1")
    resident = status_mib(psutil.Process().pid, "VmRSS")  # the server runs in this process
    assert json.loads(result.stdout)["memory_mib"] == pytest.approx(resident, rel=0.02)


@pytest.mark.parametrize("columns", [40, 80])
def test_the_live_view_fits_and_ctrl_c_ends_it(server: RunningServer, columns: int) -> None:
    with (
        Load(server),
        terminal("monitor", "--url", server.url, "--interval", "0.2", columns=columns, lines=40) as screen,
    ):
        screen.wait_for(r"first token p50 +[1-9\d.]+ ms")
        text = screen.wait_for(r"tokens/s +[1-9]")
        for word in ("bundled", "running", "next token p99", "KV cache", "CPU", "memory", "MiB"):
            assert word in text
        assert screen.colors
        screen.send(CTRL_C)
        assert screen.wait(timeout_s=10) == 130
    assert "Traceback" not in screen.screen
    assert screen.screen.count("running") == 1  # it was redrawn in its place


def test_no_color(server: RunningServer) -> None:
    arguments = ("monitor", "--url", server.url, "--once", "--interval", "0.1")
    with terminal(*arguments, environment={"NO_COLOR": "1"}) as screen:
        assert screen.wait() == 0
    assert "tokens/s" in screen.screen and not screen.colors


def test_it_ends_when_the_server_goes_away() -> None:
    with running_server(bundled_model()) as server:
        command = [*COMMAND, "monitor", "--url", server.url, "--interval", "0.1", "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
    _, errors = process.communicate(timeout=30)
    assert [line["url"] for line in lines] == [server.url] * 2
    assert process.returncode == 1
    assert errors.startswith(f"error: the server at {server.url} does not answer")
    assert "Traceback" not in errors


def test_what_is_no_pocketlm_server_is_said() -> None:
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"port (\d+)", process.stdout.readline())
        assert found
        result = pocketlm("monitor", "--url", f"http://127.0.0.1:{found[1]}")
        process.kill()
    assert result.returncode == 1 and "is it a pocketlm server?" in result.stderr


def test_a_server_with_keys() -> None:
    with running_server(bundled_model(), api_key=("a-secret-key-of-a-test",)) as server:
        arguments = ("monitor", "--url", f"{server.url}/v1", "--once", "--json", "--interval", "0.1")
        with_flag = pocketlm(*arguments, "--api-key", "a-secret-key-of-a-test")
        with_variable = pocketlm(*arguments, environment={"POCKETLM_API_KEY": "a-secret-key-of-a-test"})
        wrong = pocketlm(*arguments, "--api-key", "guess")
    assert (with_flag.returncode, with_variable.returncode) == (0, 0)
    if wrong.returncode:  # where /metrics asks for a key, too
        assert "asks for a key: give --api-key" in wrong.stderr


# Scrapes


def scrape(at_s: float, **values: float) -> Scrape:
    return Scrape(at_s, {(name, frozenset()): value for name, value in values.items()})


def test_a_counter_that_fell_began_again() -> None:
    span = Span(scrape(0, tokens=100), scrape(2, tokens=30))
    assert (span.increase("tokens"), span.rate("tokens"), span.rate("others")) == (30, 15, None)


def test_shares_of_what_happened_since() -> None:
    span = Span(scrape(0, hits=5, misses=5), scrape(1, hits=8, misses=6))
    assert span.share("hits", "hits", "misses") == 0.75
    assert Span(scrape(0, hits=1), scrape(1, hits=1)).share("hits", "hits") is None


def histogram(at_s: float, *counts: int) -> Scrape:
    bounds = ("0.1", "0.2", "0.4", "+Inf")
    samples = {("s_bucket", frozenset({("le", b)})): c for b, c in zip(bounds, counts, strict=True)}
    return Scrape(at_s, samples)


def test_quantiles_are_those_of_the_time_between() -> None:
    """The ten before do not count; of the ten since, half lie in each of two buckets."""
    span = Span(histogram(0, 10, 10, 10, 10), histogram(1, 10, 15, 20, 20))
    found = span.quantiles("s", (0.25, 0.5, 0.75, 1))
    assert found == pytest.approx([0.15, 0.2, 0.3, 0.4])
    assert Span(histogram(0, 1, 1, 1, 1), histogram(1, 1, 1, 1, 1)).quantiles("s", (0.5,)) is None


def test_beyond_the_last_bound_it_is_the_bound() -> None:
    found = Span(histogram(0, 0, 0, 0, 0), histogram(1, 0, 0, 0, 4)).quantiles("s", (0.5, 0.99))
    assert found == [0.4, 0.4] and not any(map(math.isinf, found))


METRICS = """\
pocketlm:generation_tokens_total{model_name="a"} 10
pocketlm:generation_tokens_total{model_name="b"} 0
pocketlm:num_requests_running{model_name="a"} 3
pocketlm:num_requests_waiting{model_name="a"} 2
pocketlm:kv_cache_usage_perc{model_name="a"} 0.5
pocketlm:cgroup_throttled_seconds_total 1.5
pocketlm:gpu_utilization{gpu="0"} 0.25
pocketlm:gpu_memory_used_bytes{gpu="0"} 1073741824
pocketlm:gpu_memory_total_bytes{gpu="0"} 8589934592
"""


def test_a_gpu_throttling_and_a_model_that_is_not_loaded() -> None:
    first, last = parse(METRICS), parse(METRICS.replace(" 1.5", " 1.75"))
    first, last = Scrape(0, first.samples), Scrape(1, last.samples)
    figures = server_figures([first, last])
    assert list(figures.models) == ["a"] and figures.num_models_unloaded == 1
    console = Console(width=80)
    with console.capture() as captured:
        console.print(server_view(figures))
    text = captured.get()
    for row in (
        r"running +3",
        r"waiting +2",
        r"KV cache .*50%",
        r"first token p50 +-",
        r"throttled +0\.25 s/s",
        r"models unloaded +1",
        r"GPU 0 .*25%",
        r"GPU 0 memory +1\.0 of 8\.0 GiB",
    ):
        assert re.search(row, text), row
