"""The log's lines: what stands in them, for people and for programs, and what never does."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from pocketlm.outputs import Timing
from pocketlm.server.request_log import RequestRecord, configure_logging, log_request

Lines = Callable[[], list[str]]

TIMING = Timing(queue_s=0.01, prefill_s=0.123456, decode_s=1.5, cpu_s=2.25, num_cached_tokens=16)
FULL = RequestRecord(
    "id-1",
    model="bundled",
    stream=True,
    cache="miss",
    num_prompt_tokens=20,
    num_output_tokens=40,
    timing=TIMING,
    finish_reasons=["stop", "length"],
    user="u-7",
)
SHOWN = {
    "request_id": "id-1",
    "model": "bundled",
    "stream": True,
    "cache": "miss",
    "prompt_tokens": 20,
    "output_tokens": 40,
    "cached_tokens": 16,
    "queue_s": 0.01,
    "prefill_s": 0.1235,
    "decode_s": 1.5,
    "cpu_s": 2.25,
    "finish_reasons": ["stop", "length"],
    "user": "u-7",
}


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    """The lines logged since it was last asked; the root logger is afterwards as it was."""
    root = logging.getLogger()
    level = root.level
    yield lambda: capsys.readouterr().err.split("\n")[:-1]  # U+2028 ends no line
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(handler)
    root.setLevel(level)


def test_a_record_shows_what_is_known() -> None:
    assert FULL.fields() == SHOWN
    assert RequestRecord("id-1").fields() == {"request_id": "id-1"}
    assert RequestRecord("id-1", timing=Timing(cpu_s=None)).fields().keys() == {
        "request_id",
        "cached_tokens",
        "queue_s",
        "prefill_s",
        "decode_s",
    }


def test_text_is_one_line_for_people(stderr: Lines) -> None:
    configure_logging("text")
    log_request("POST", "/generate", 200, {"seconds": 1.7, **FULL.fields()})
    [line] = stderr()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d INFO  POST /generate 200 seconds=1\.7 request_id=id-1 model=bundled stream=True .*"
        r"finish_reasons=stop,length user=u-7",
        line,
    )


def test_json_is_one_object_a_line(stderr: Lines) -> None:
    configure_logging("json")
    log_request("POST", "/generate", 200, {"seconds": 1.7, **FULL.fields()})
    [line] = [json.loads(line) for line in stderr()]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line == {
        "level": "info",
        "event": "request",
        "method": "POST",
        "path": "/generate",
        "status": 200,
        "seconds": 1.7,
        **SHOWN,
    }


@pytest.mark.parametrize("format", ["text", "json"])
def test_lines_of_every_library_have_the_same_form(format: Any, stderr: Lines) -> None:
    configure_logging(format)
    extra = {"color_message": "\x1b[1mready\x1b[0m"}  # uvicorn adds this
    logging.getLogger("uvicorn.error").warning("ready on %s", "port 1", extra=extra)
    if format == "json":
        [line] = [json.loads(line) for line in stderr()]
        assert line.keys() == {"timestamp", "level", "event"}
        assert (line["level"], line["event"]) == ("warning", "ready on port 1")
    else:
        assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING ready on port 1", stderr()[0])


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_traceback_is_in_the_log(format: Any, stderr: Lines) -> None:
    configure_logging(format)
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    if format == "json":
        [line] = [json.loads(line) for line in stderr()]
        assert "Traceback" in line["exception"] and "KeyError: 'lost'" in line["exception"]
    else:
        first, *rest = stderr()
        assert first.endswith("ERROR Exception in ASGI application")
        assert rest[0].startswith("Traceback") and rest[-1] == "KeyError: 'lost'"


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics"])
def test_probes_are_logged_only_when_debugging(path: str, stderr: Lines) -> None:
    configure_logging("json")
    log_request("GET", path, 200, {})
    assert stderr() == []
    configure_logging("json", logging.DEBUG)
    log_request("GET", path, 200, {})
    assert [line["path"] for line in [json.loads(line) for line in stderr()]] == [path]


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_client_cannot_forge_a_line(format: Any, stderr: Lines) -> None:
    configure_logging(format)
    record = RequestRecord("id", user="me\n12:00:00 INFO  POST /fake 200\x1b[2J", model='a"b c=d')
    log_request("GET", "/x\r\n12:00:00 INFO  POST /fake 200\x1b[2J\u2028", 404, record.fields())
    [line] = stderr()
    assert "\x1b" not in line
    if format == "text":
        assert r'model="a\"b c=d"' in line and r'user="me\n12:00:00 INFO' in line


@pytest.mark.parametrize("format", ["text", "json"])
def test_text_that_has_no_bytes_is_logged_all_the_same(format: Any, stderr: Lines) -> None:
    configure_logging(format)
    log_request("GET", "/", 400, RequestRecord("id", user="half \ud800 of a pair").fields())
    [line] = stderr()
    assert r"\ud800" in line and line.encode()


def test_a_huge_path_does_not_make_a_huge_line(stderr: Lines) -> None:
    configure_logging("json")
    log_request("GET", "/" + "x" * 60_000, 404, {})
    assert len(stderr()[0]) < 1000


def test_what_other_libraries_do_for_themselves_is_not_logged(stderr: Lines) -> None:
    configure_logging("text")
    logging.getLogger("httpx").info("HTTP Request: GET something")
    logging.getLogger("pocketlm").info("loaded")
    [line] = stderr()
    assert line.endswith("INFO  loaded")
