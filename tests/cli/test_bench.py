"""pocketlm bench: against the engine, against a server, and at the terminal."""

from __future__ import annotations

import json
import re
import socket
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from command import pocketlm
from served import bundled_model, is_idle, running_server, wait_until

QUICK = (
    "--concurrency",
    "1,3",
    "--requests",
    "4",
    "--max-tokens",
    "5",
    "--prompt-words",
    "6",
    "--warmup",
    "1",
)


def bench(*arguments: str) -> dict[str, Any]:
    result = pocketlm("bench", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def check_levels(report: dict[str, Any]) -> None:
    assert [level["clients"] for level in report["levels"]] == [1, 3]
    for level in report["levels"]:
        assert (level["requests"], level["complete"], level["unfinished"]) == (4, 4, 0)
        assert level["errors"] == {} and level["tokens"] == 20
        assert level["tokens_per_s"] == pytest.approx(20 / level["seconds"], rel=0.02)
        assert level["prompt_tokens"] >= 6
        for name in ("ttft_ms", "itl_ms", "e2e_ms"):
            assert 0 <= level[name]["p50"] <= level[name]["p90"] <= level[name]["p99"]
        assert level["ttft_ms"]["p50"] <= level["e2e_ms"]["p50"]


def test_the_engine_in_place() -> None:
    report = bench(*QUICK, "--target-ttft", "60000", "--target-itl", "60000")
    check_levels(report)
    assert report["url"] is None and report["target_ttft_ms"] == 60000
    for level in report["levels"]:
        assert level["good_percent"] == 100 and level["goodput"] == level["requests_per_s"]


def test_several_models_in_turn() -> None:
    arguments = ("--model", "bundled", "--shape", "distilgpt2", "--dtype", "float32", "--max-model-len", "64")
    report = bench(*arguments, "--concurrency", "1", "--requests", "1", "--max-tokens", "2", "--warmup", "0")
    assert [level["model"] for level in report["levels"]] == ["bundled", "shape:distilgpt2"]


def test_a_server_and_its_key() -> None:
    model = bundled_model()
    key = "a-secret-key-of-a-test"
    with running_server(model, api_key=(key,)) as server:
        server.client.headers["Authorization"] = f"Bearer {key}"
        check_levels(bench("--url", server.url, "--api-key", key, *QUICK))
        wait_until(lambda: is_idle(model))
        # One to find out what the server knows, one to warm up, and the eight of the levels.
        assert server.sample("request_success_total", finished_reason="length") == 10
        refused = pocketlm("bench", "--url", server.url, *QUICK)
    assert refused.returncode == 1 and refused.stdout == ""
    assert "/v1/models answers 401" in refused.stderr and "Traceback" not in refused.stderr


def test_arrivals_at_a_rate_end_with_their_time() -> None:
    arguments = ("--rate", "50", "--requests", "5000", "--max-seconds", "1.5", "--max-tokens", "20")
    [level] = bench(*arguments)["levels"]
    assert level["rate"] == 50 and level["clients"] is None
    assert level["requests"] == level["complete"] + level["unfinished"]
    assert 0 < level["complete"] and level["requests"] < 500  # about 75 are due in that time


def test_errors_are_counted_by_kind_and_shown() -> None:
    with running_server(bundled_model(), rate_limit_requests=3) as server:
        arguments = ("--url", server.url, "--concurrency", "1", "--requests", "6", "--warmup", "0")
        result = pocketlm("bench", *arguments)
        assert result.returncode == 0, result.stderr
        complete, refused = (
            re.search(pattern, result.stdout) for pattern in (r"complete +(\d) of 6", r"error 429 +(\d)")
        )
        assert complete and refused and int(complete[1]) + int(refused[1]) == 6
    # Each asks for more tokens than a minute has, so that none is answered.
    with running_server(bundled_model(), rate_limit_tokens=60) as server:
        arguments = ("--url", server.url, "--concurrency", "1", "--requests", "6", "--warmup", "0")
        result = pocketlm("bench", *arguments)
    assert result.returncode == 1 and re.search(r"error 429 +6", result.stdout)
    assert "Traceback" not in result.stderr


def test_no_answer_in_time_is_a_failure_and_still_a_report() -> None:
    result = pocketlm(
        "bench", "--requests", "2", "--max-tokens", "400", "--max-seconds", "0.1", "--warmup", "0"
    )
    assert result.returncode == 1
    assert re.search(r"^unfinished +1 ", result.stdout, re.MULTILINE)
    assert "error: not one request was answered; see the errors, or raise --max-seconds" in result.stderr


def test_it_says_first_what_it_will_send() -> None:
    result = pocketlm("bench", *QUICK, "--seed", "7")
    said, _, _ = result.stderr.partition("loading bundled")
    assert "1 to warm up, then 4 with 1 client, 4 with 3 clients" in said
    assert "prompt of 6 words and takes up to 5 new tokens" in said and "seed 7" in said
    assert re.search(r"^clients +1 +3 *$", result.stdout, re.MULTILINE)
    assert re.search(r"^TTFT p99 ms +[\d.]+ +[\d.]+ *$", result.stdout, re.MULTILINE)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    file = tmp_path / "bench.html"
    result = pocketlm("bench", *QUICK, "--target-ttft", "100", "--html", str(file))
    assert result.returncode == 0 and f"wrote {file}" in result.stderr
    text = file.read_text()
    page = Page(text)
    assert page.tags.count("svg") == 5 and "table" in page.tags
    assert "script" not in page.tags and page.addresses == []
    assert "Goodput" in text and "Time to first token" in text


def test_a_name_is_shown_as_text_in_the_page() -> None:
    from pocketlm.bench.figures import figures
    from pocketlm.bench.load import Level, Run
    from pocketlm.cli.bench_page import bench_page

    found = figures("<script>alert(1)</script>", Run(Level(1, None, 1, 1.0), 0.0, 1.0), None)
    assert "<script>" not in bench_page([found], ["<b>"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--concurrency", "1,x"], 2, "error: concurrency must be whole numbers above 0"),
        (["--concurrency", "1.5"], 2, "error: concurrency must be whole numbers above 0"),
        (["--rate", "0"], 2, "error: rate must be numbers above 0"),
        (["--rate", "nan"], 2, "error: rate must be numbers above 0"),
        (["--rate", "1", "--concurrency", "1"], 2, "error: give --concurrency or --rate"),
        (["--url", "http://x", "--dtype", "int8"], 2, "error: dtype is for the engine in place"),
        (["--url", "http://x", "--shape", "gpt2"], 2, "error: shape is for the engine in place"),
        (["--url", "nowhere"], 1, "error: cannot reach nowhere"),
        (["--url", "http://a:xx"], 2, "error: url: 'http://a:xx' is no address"),
        (["--html", "no/such/folder/file.html"], 2, "error: html: there is no folder"),
        (["--model", "no/such/folder"], 1, "error: "),
        (["--shape", "gpt7"], 1, "'shape:gpt7'"),
        (
            ["--prompt-words", "5000"],
            1,
            "error: bundled does not answer the warm-up requests: the prompt has",
        ),
        (["--requests", "0"], 2, "--requests"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], code: int, message: str) -> None:
    result = pocketlm("bench", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr and "Traceback" not in result.stderr


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    result = pocketlm("bench", "--url", f"http://127.0.0.1:{port}")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: cannot reach http://127.0.0.1:{port}")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
@pytest.mark.parametrize("columns", [80, 40])
def test_in_a_terminal_it_shows_progress_and_a_table(columns: int) -> None:
    from terminal import terminal

    with terminal("bench", *QUICK, "--concurrency", "1,2,3,4,5", columns=columns, lines=60) as window:
        assert window.wait() == 0
        assert "0/4" in window.written or "1/4" in window.written or "4/4" in window.written
        for clients in range(1, 6):
            assert re.search(rf"^clients .*\b{clients}\b", window.screen, re.MULTILINE)
        assert "…" not in window.screen.partition("complete")[2]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
def test_ctrl_c_ends_it_quietly() -> None:
    from terminal import CTRL_C, terminal

    with terminal("bench", "--requests", "100000", "--concurrency", "8", "--max-tokens", "400") as window:
        window.wait_for("/100000")
        window.send(CTRL_C)
        assert window.wait(timeout_s=20) == 130
        assert "Traceback" not in window.written
