"""Reading the fields of a body: each is known and of its type, or refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pocketlm.errors import InvalidRequest
from pocketlm.generation import check_text
from pocketlm.sampling import MAX_N
from pocketlm.server.protocol.asked import Asked
from pocketlm.server.protocol.fields import SERVING, Schema

MAX_NAMED = 20  # unknown fields that are named to the client; a body may hold many thousands
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]+")


class Limits(Protocol):
    """What the server's configuration says about requests; a ServerConfig is one."""

    @property
    def max_length_limit(self) -> int | None: ...
    @property
    def max_n(self) -> int: ...
    @property
    def lenient(self) -> bool: ...


@dataclass(frozen=True)
class NoLimits:
    """For requests that come from the command line."""

    max_length_limit: int | None = None
    max_n: int = MAX_N
    lenient: bool = False


def read(
    body: Mapping[str, Any],
    fields: Mapping[str, Schema],
    unsupported: Mapping[str, tuple[Any, ...]],
    *,
    lenient: bool,
) -> tuple[dict[str, Any], Asked]:
    """The fields given, without those of SERVING, and these as an Asked. null counts as not given.

    `unsupported`: fields of the API that this server does not have, and the values with which they
    ask for nothing. These values are accepted.
    """
    values = {name: body[name] for name in fields if body.get(name) is not None}
    refused = [name for name in body if name not in fields and not _is_neutral(body, name, unsupported)]
    if refused and not lenient:
        raise _refusal(refused, fields, unsupported)
    given = frozenset(values)
    serving = {name: check(name, values.pop(name), SERVING[name]) for name in SERVING if name in values}
    asked = Asked(
        model=serving.get("model"),
        stream=serving.get("stream", False),
        timeout_s=serving.get("timeout"),
        use_cache=serving.get("cache"),
        include_timing=serving.get("include_timing", False),
        user=serving.get("user"),
        ignored=tuple(printable(name) for name in refused[:MAX_NAMED]),
        given=given,
    )
    return values, asked


def _is_neutral(body: Mapping[str, Any], name: str, unsupported: Mapping[str, tuple[Any, ...]]) -> bool:
    return name in unsupported and body[name] in (None, *unsupported[name])


def _refusal(
    refused: list[str], fields: Mapping[str, Schema], unsupported: Mapping[str, tuple[Any, ...]]
) -> InvalidRequest:
    first = refused[0]
    if first in unsupported:
        return InvalidRequest(f"{first} is not supported by this server; leave it out", param=first)
    unknown = [name for name in refused if name not in unsupported]
    named = ", ".join(f"{name!r:.60}" for name in unknown[:5])
    return InvalidRequest(f"unknown field {named}; allowed are {', '.join(fields)}", param=printable(first))


def unknown_inside(
    where: str, value: Mapping[str, Any], allowed: tuple[str, ...], *, lenient: bool
) -> list[str]:
    """The fields of an object inside a body that a lenient server drops; InvalidRequest from a strict one.

    What is null or empty asks for nothing: clients send answers back with all their unused fields.
    """
    unknown = [name for name in value if name not in allowed and value[name] not in (None, [], {})]
    if unknown and not lenient:
        name = printable(f"{where}.{unknown[0]}")
        raise InvalidRequest(f"unknown field {name}; allowed are {', '.join(allowed)}", param=name)
    return [printable(f"{where}.{name}") for name in unknown[:MAX_NAMED]]


def printable(name: str) -> str:
    """A field's name as it may stand in a header and in JSON: a body may call it anything."""
    return f"{name if PLAIN_NAME.fullmatch(name) else ascii(name):.60}"


def check(name: str, value: Any, schema: Schema) -> Any:
    """The value, or InvalidRequest if it is not what a simple schema (no list, no object) allows."""
    kinds, a_kind = _KINDS[schema["type"]]
    is_allowed = isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))
    if is_allowed and isinstance(value, str):
        is_allowed = len(value) <= schema.get("maxLength", math.inf)
    elif is_allowed:
        is_allowed = schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        is_allowed = is_allowed and value > schema.get("exclusiveMinimum", -math.inf)
    if not is_allowed:
        raise InvalidRequest(f"{name} must be {a_kind}{_bounds(schema)}, got {value!r:.60}", param=name)
    if isinstance(value, str):
        check_text(name, value)
    return value


_KINDS: dict[str, tuple[Any, str]] = {
    "boolean": (bool, "true or false"),
    "integer": (int, "an integer"),
    "number": ((int, float), "a number"),
    "string": (str, "a string"),
}


def _bounds(schema: Schema) -> str:
    if "maxLength" in schema:
        return f" of at most {schema['maxLength']} characters"
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']} and at most {schema['maximum']}"
    if "maximum" in schema:
        return f" between {schema['minimum']} and {schema['maximum']}"
    return f" at least {schema['minimum']}" if "minimum" in schema else ""


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    bounds = {"minimum": low} if high is None else {"minimum": low, "maximum": high}
    checked: int = check(name, value, {"type": "integer", **bounds})
    return checked
