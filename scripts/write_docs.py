"""Write what docs/ has from the code: tables of settings, routes, fields, errors and metrics, and the help.

    make docs

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; the rest of a page is written
by hand. tests/test_docs.py fails where a table is not as this script would write it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import typer.core
import typer.main
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from pocketlm import errors
from pocketlm.cli import app
from pocketlm.config import EngineConfig, ServerConfig
from pocketlm.errors import PocketLMError
from pocketlm.registry import Registry
from pocketlm.server.app import create_app
from pocketlm.server.metrics import Metrics
from pocketlm.server.protocol import (
    ApiRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerateRequest,
    TokenizeRequest,
)
from pocketlm.server.protocol.fields import SAMPLING, SERVING, Schema

HELP_WIDTH = 100  # columns
DOCS = Path(__file__).parents[1] / "docs"
TABLE = re.compile(r"(?<=<!-- table: )(?P<name>[^>]+?) -->\n.*?(?=<!-- end of table -->)", re.DOTALL)

# When each error is raised, and what who gets it can do.
WHAT_TO_DO: dict[type[PocketLMError], str] = {
    errors.PocketLMError: "a bug: the server's log has the traceback under this request's id",
    errors.ConfigError: "a flag, variable or entry of pocketlm.toml is wrong; exit code 2",
    errors.ModelLoadError: "a checkpoint is missing, damaged or not supported; exit code 1",
    errors.RequestError: "no such route, or not with this method",
    errors.InvalidRequest: "a field or header is wrong, unknown or missing; `param` names it",
    errors.ContextLengthExceeded: "the prompt leaves no room for an answer; shorten it",
    errors.Unauthorized: "no API key, or not one of the server's",
    errors.ModelNotFound: "only models named at start can be asked for; the message lists them",
    errors.RequestTimeout: "no token before the deadline, or the body was too slow; allow more time",
    errors.PayloadTooLarge: "the body is longer than `max_body`",
    errors.UnsupportedMediaType: "send `Content-Type: application/json`",
    errors.IdempotencyConflict: "this Idempotency-Key stood for another request; use a new one",
    errors.RateLimited: "this client's minute is used up; wait `Retry-After` seconds",
    errors.Overloaded: "the queue or the streams are full; wait `Retry-After` seconds",
    errors.ModelUnavailable: "the model loads, failed to load or has no room, or the server shuts down; "
    "wait `Retry-After` seconds",
    errors.CacheUnavailable: "try again; answers that are left end with their time to live",
    errors.InsufficientMemory: "the model can never fit; the message has the two numbers",
    errors.EngineError: "the forward pass failed for this request; the log says why; try again",
    errors.NonFiniteLogits: "the model computed NaN or infinity; its weights may be damaged",
    errors.EngineDead: "nothing more can run in this process; it has to be restarted",
}
NOT_OVER_HTTP = (errors.ConfigError, errors.ModelLoadError)


def main() -> None:
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        written = with_tables(text)
        if written != text:
            page.write_text(written)
            print(f"wrote {page.name}")


def with_tables(text: str) -> str:
    """A page with each of its tables as it should be."""
    return TABLE.sub(lambda found: f"{found['name']} -->\n{TABLES[found['name']]()}\n", text)


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def settings(config: type[BaseModel], first: str | None = None, last: str | None = None) -> str:
    """The fields of a config class from the first of these to the last."""
    names = [*config.model_fields]
    chosen = names[names.index(first or names[0]) : names.index(last or names[-1]) + 1]
    header = ("name", "flag", "variable", "type", "default", "")
    return table(header, (_setting(name, config.model_fields[name]) for name in chosen))


def _setting(name: str, field: FieldInfo) -> tuple[str, ...]:
    kind = field.annotation
    if isinstance(kind, UnionType):
        [kind] = [part for part in get_args(kind) if part is not type(None)]
    flag = f"--{name.replace('_', '-')}"
    flags = f"`{flag}`, `--no-{flag[2:]}`" if kind is bool else f"`{flag}`"
    sentence = (field.description or "").partition("; default: ")
    default = sentence[2].rstrip(".") or _default(field.default)
    help = sentence[0].rstrip(".") + "."
    return f"`{name}`", flags, f"`POCKETLM_{name.upper()}`", _kind(kind, field), default, help


def _kind(kind: Any, field: FieldInfo) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is tuple:
        return "list"
    names = {bool: "boolean", int: "integer", float: "number", str: "text", Path: "file", ByteSize: "size"}
    if kind is ByteSize:
        return names[kind]
    bounds = {
        long: getattr(bound, short)
        for bound in field.metadata
        for short, long in (("ge", "minimum"), ("gt", "exclusiveMinimum"), ("le", "maximum"))
        if hasattr(bound, short)
    }
    return names[kind] + _bounds(bounds)


def _default(default: object) -> str:
    if default in (None, ()):
        return "none"
    if isinstance(default, bool):
        return "true" if default else "false"
    if isinstance(default, ByteSize):
        return f"`{default.human_readable().replace('.0', '')}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def fields(request: type[ApiRequest] | type[TokenizeRequest] | type[DetokenizeRequest]) -> str:
    """The fields of a route, without those that it shares with the others."""
    own = {
        name: schema
        for name, schema in request.FIELDS.items()
        if schema is not SAMPLING.get(name) and (schema is not SERVING.get(name) or len(request.FIELDS) < 5)
    }
    return _fields(own, required=request.SCHEMA["required"])


def _fields(schemas: Mapping[str, Schema], required: list[str]) -> str:
    rows = (
        (f"`{name}`", _json_kind(schema) + (", required" if name in required else ""), schema["description"])
        for name, schema in schemas.items()
    )
    return table(("field", "type", ""), rows)


def _json_kind(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_json_kind, schema["anyOf"])))
    if schema["type"] == "array":
        most = f"at most {schema['maxItems']:,} " if "maxItems" in schema else ""
        return f"list of {most}{_plural(schema['items'])}"
    return str(schema["type"]) + _bounds(schema)


def _plural(schema: Schema) -> str:
    if schema["type"] == "array":
        return f"lists of {_plural(schema['items'])}"
    return f"{schema['type']}s"


def _bounds(schema: Mapping[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f", {schema['minimum']:,} to {_number(schema['maximum'])}"
    words = ""
    if "minimum" in schema and schema["minimum"] > 0:
        words += f", at least {_number(schema['minimum'])}"
    if "exclusiveMinimum" in schema:
        words += f", above {_number(schema['exclusiveMinimum'])}"
    if "maximum" in schema:
        words += f", at most {_number(schema['maximum'])}"
    return words


def _number(value: float) -> str:
    return "2^64 - 1" if value == 2**64 - 1 else f"{value:,}"


def unsupported(request: type[ApiRequest]) -> str:
    """Fields of OpenAI's API that are refused by name, and the values that are accepted."""
    rows = (
        (f"`{name}`", ", ".join(f"`{json.dumps(value)}`" for value in (None, *neutral)))
        for name, neutral in request.UNSUPPORTED.items()
    )
    return table(("field", "accepted, since it asks for nothing"), rows)


def routes() -> str:
    paths = create_app(Registry(["bundled"]), ServerConfig()).openapi()["paths"]
    rows = (
        (method.upper(), f"`{path}`", operation["summary"])
        for path, operations in paths.items()
        for method, operation in operations.items()
    )
    return table(("method", "path", ""), rows)


def error_classes() -> str:
    rows = []
    for error, sentence in WHAT_TO_DO.items():
        status, code, kind = str(error.status), f"`{error.code}`", f"`{error.type}`"
        if error in NOT_OVER_HTTP:
            status = kind = ""
        elif error is errors.RequestError:
            status, code = "404, 405", "`not_found`, `method_not_allowed`"
        elif error.should_retry is False:
            sentence += "; `X-Should-Retry: false`"
        rows.append((status, code, kind, f"`{error.__name__}`", sentence))
    rows.sort(key=lambda row: row[0] or "none")
    return table(("status", "code", "type", "class", "when, and what to do"), rows)


def metrics() -> str:
    rows = (
        (f"`{name}`", type, ", ".join(f"`{label}`" for label in labels), help)
        for name, type, help, labels in Metrics.describe()
    )
    return table(("name", "type", "labels", ""), rows)


def command_help() -> str:
    """What `--help` prints: of pocketlm, then of each command."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    context = group.context_class(group, info_name="pocketlm", terminal_width=HELP_WIDTH)
    sections = [_help("pocketlm", group.get_help(context))]
    for name, command in group.commands.items():
        own = group.context_class(command, info_name=name, parent=context, terminal_width=HELP_WIDTH)
        sections.append(_help(f"pocketlm {name}", command.get_help(own)))
    return "\n".join(sections)


def _help(title: str, text: str) -> str:
    return f"## {title}\n\n```text\n{text}\n```\n"


TABLES: dict[str, Callable[[], str]] = {
    "settings of the engine": lambda: settings(EngineConfig),
    "settings: listening": lambda: settings(ServerConfig, "host", "ssl_keyfile"),
    "settings: models": lambda: settings(ServerConfig, "alias", "keep_alive"),
    "settings: limits": lambda: settings(ServerConfig, "lenient", "rate_limit_url"),
    "settings: response cache": lambda: settings(ServerConfig, "cache", "cache_sampled"),
    "settings: access": lambda: settings(ServerConfig, "api_key", "forwarded_allow_ips"),
    "settings: operations": lambda: settings(ServerConfig, "log_format"),
    "routes": routes,
    "fields of /generate": lambda: fields(GenerateRequest),
    "fields of /v1/completions": lambda: fields(CompletionRequest),
    "fields of /v1/chat/completions": lambda: fields(ChatRequest),
    "fields of /tokenize": lambda: fields(TokenizeRequest),
    "fields of /detokenize": lambda: fields(DetokenizeRequest),
    "fields that choose tokens": lambda: _fields(SAMPLING, required=[]),
    "fields about the service": lambda: _fields(SERVING, required=[]),
    "fields refused by /v1/completions": lambda: unsupported(CompletionRequest),
    "fields refused by /v1/chat/completions": lambda: unsupported(ChatRequest),
    "errors": error_classes,
    "metrics": metrics,
    "help": command_help,
}


if __name__ == "__main__":
    main()
