"""The log: one line for each request, and every other line of this process in the same form.

Modules log with the standard library; structlog gives each line its form, for people or for programs:

    12:00:01 INFO  POST /generate 200 seconds=0.41 model=bundled prompt_tokens=3 output_tokens=40
    {"timestamp": "2030-01-31T12:00:01.000000Z", "level": "info", "event": "request", "method": "POST", …}
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

from pocketlm.outputs import Timing

log = logging.getLogger(__name__)

MAX_PATH = 256  # characters of a path in the log; clients may send tens of thousands
QUIET_PATHS = {"/health", "/health/live", "/health/ready", "/metrics"}  # asked every few seconds, for ever


@dataclass(slots=True)
class RequestRecord:
    """What is known of one HTTP request. `Edge` makes it; the route fills it in as it learns."""

    request_id: str
    model: str | None = None
    stream: bool = False
    cache: Literal["hit", "miss", "bypass"] | None = None
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    timing: Timing | None = None
    finish_reasons: list[str] = field(default_factory=list)
    user: str | None = None  # as the client calls its own user
    error_code: str | None = None
    prompts: list[str] = field(default_factory=list)  # these two are filled in only with --log-prompts
    answers: list[str] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """What is known, by the names it has in the log."""
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "model": self.model,
            "stream": self.stream or None,
            "cache": self.cache,
            "prompt_tokens": self.num_prompt_tokens,
            "output_tokens": self.num_output_tokens,
        }
        if self.timing is not None:
            fields |= {
                "cached_tokens": self.timing.num_cached_tokens,
                "queue_s": round(self.timing.queue_s, 4),
                "prefill_s": round(self.timing.prefill_s, 4),
                "decode_s": round(self.timing.decode_s, 4),
                "cpu_s": None if self.timing.cpu_s is None else round(self.timing.cpu_s, 4),
            }
        fields |= {
            "finish_reasons": self.finish_reasons or None,
            "user": self.user,
            "error_code": self.error_code,
            "prompts": self.prompts or None,
            "answers": self.answers or None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def log_request(method: str, path: str, status: int, fields: dict[str, Any]) -> None:
    """The one line of a request, once it has ended."""
    level = logging.DEBUG if path in QUIET_PATHS else logging.INFO
    shown = {"method": method, "path": path[:MAX_PATH], "status": status, **fields}
    log.log(level, "request", extra={"fields": shown})


def configure_logging(format: Literal["text", "json"], level: int = logging.INFO) -> None:
    """Every line of this process to stderr, in this form. Called once, when the process starts."""
    as_text = format == "text"
    stamp = structlog.processors.TimeStamper(
        fmt="%H:%M:%S" if as_text else "iso", utc=not as_text, key="timestamp"
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            stamp,
            structlog.stdlib.add_log_level,
            _add_fields,
            structlog.processors.format_exc_info,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _as_text if as_text else _as_json,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Other libraries tell of their own affairs below this: each request of an HTTP client, for example.
    for library in ("asyncio", "httpx", "httpcore", "huggingface_hub", "filelock"):
        logging.getLogger(library).setLevel(max(level, logging.WARNING))


def _add_fields(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """What a line gives beside its message, as `extra={"fields": {…}}`."""
    event.update(getattr(event["_record"], "fields", {}))
    return event


def _as_json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    line = {name: event.pop(name) for name in ("timestamp", "level", "event")}
    line.update(event)
    try:
        return orjson.dumps(line, default=str).decode()
    except TypeError:  # half of a surrogate pair, or an integer of more than 64 bits
        return json.dumps(line, default=str)


def _as_text(logger: WrappedLogger, method: str, event: EventDict) -> str:
    timestamp, level, message = (event.pop(name) for name in ("timestamp", "level", "event"))
    traceback = event.pop("exception", None)
    if message == "request":
        message = " ".join(str(event.pop(name)) for name in ("method", "path", "status"))
    words = [timestamp, f"{level.upper():5}", _printable(message.strip())]
    words += [f"{name}={_shown(value)}" for name, value in event.items()]
    return " ".join(words) + (f"\n{traceback}" if traceback else "")


def _shown(value: object) -> str:
    """A value as one word, or in quotes."""
    if isinstance(value, list):
        return ",".join(_shown(item) for item in value)
    text = str(value)
    is_one_word = text.isprintable() and not set(text) & set(' "=,')
    return text if is_one_word and text else json.dumps(text)


def _printable(text: str) -> str:
    """With a line break or a terminal's command spelled out: it may come from a client, to forge a line."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
