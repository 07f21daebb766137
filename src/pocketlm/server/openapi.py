"""What /openapi.json says: the routes check bodies by hand, so their schemas are written by hand, too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI

from pocketlm.server.protocol import ApiRequest
from pocketlm.server.protocol.fields import MAX_TIMEOUT_S, Schema, object_schema

MESSAGE: Schema = {"$ref": "#/components/schemas/Error"}
OPENAI_ERROR: Schema = {"$ref": "#/components/schemas/OpenAIError"}

STATUSES = {
    400: "A field is wrong, unknown or missing, or the prompt leaves no room for an answer.",
    401: "The server asks for an API key, and the request has none that it knows.",
    404: "No such model.",
    408: "Not one token was ready before the deadline, or the body did not arrive.",
    413: "The body is too long.",
    415: "The body is not application/json.",
    422: "The Idempotency-Key was used for another request.",
    429: "Too many requests or tokens in this minute, or the queue or the streams are full.",
    500: "The request failed through no fault of its own.",
    503: "The model cannot be loaded just now, the engine can run nothing more, or Redis did not answer.",
    507: "The model does not fit into memory.",
}
OF_EVERY_ROUTE = (401, 500)
OF_A_MODEL = (*OF_EVERY_ROUTE, 400, 404, 413, 415, 503, 507)  # routes whose body names a model
OF_A_GENERATION = (*OF_A_MODEL, 408, 422, 429)

_ERRORS: dict[str, Schema] = {
    "Error": object_schema({"error": {"type": "string", "description": "What is wrong, and what to do."}}),
    "OpenAIError": object_schema(
        {
            "error": object_schema(
                {
                    "message": {"type": "string", "description": "What is wrong, and what to do."},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"], "description": "The field that is wrong."},
                    "code": {"type": "string"},
                }
            )
        }
    ),
}
_KEYS: dict[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def _header(description: str, schema: Schema, *, required: bool = False) -> dict[str, Any]:
    return {"description": description, "schema": schema, "required": required}


_SECONDS: Schema = {"type": "integer", "minimum": 1}
REQUEST_ID = {
    "X-Request-Id": _header(
        "The request's X-Request-Id, or one made up; it stands in the server's log.",
        {"type": "string"},
        required=True,
    )
}
_IGNORED = {
    "X-Ignored-Fields": _header("Fields that a lenient server left out of account.", {"type": "string"})
}
_CACHE = {
    "X-Cache": _header(
        "Whether the response cache had the answer, had it not, or was not asked.",
        {"enum": ["hit", "miss", "bypass"]},
        required=True,
    )
}
_RATES = {
    name: header
    for unit in ("requests", "tokens")
    for name, header in {
        f"X-RateLimit-Limit-{unit.title()}": _header(
            f"{unit.title()} allowed a minute, if there is a limit.", {"type": "integer"}
        ),
        f"X-RateLimit-Remaining-{unit.title()}": _header(
            f"{unit.title()} left of them.", {"type": "integer", "minimum": 0}
        ),
        f"X-RateLimit-Reset-{unit.title()}": _header(
            "When all of them are free again, in seconds, like 12s.",
            {"type": "string", "pattern": "^[0-9]+s$"},
        ),
    }.items()
}
_RETRY_AFTER = {"Retry-After": _header("Seconds after which to try again.", _SECONDS)}
_SHOULD_RETRY = {
    "X-Should-Retry": _header(
        "Whether trying again can help, where it is known.", {"enum": ["true", "false"]}
    )
}
_ERROR_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": _header("Always Bearer.", {"enum": ["Bearer"]}, required=True)},
    408: _SHOULD_RETRY,
    429: {**_RETRY_AFTER, **_SHOULD_RETRY, **_RATES},
    503: _RETRY_AFTER,
    507: _SHOULD_RETRY,
}

TIMEOUT = {
    "name": "X-Request-Timeout-Seconds",
    "in": "header",
    "description": "Seconds the request may take, a number above 0 and at most "
    f"{MAX_TIMEOUT_S}; if the body has a timeout, too, the smaller one wins.",
    "schema": {"type": "string"},
    "example": "30",
}
_CACHING = [
    {
        "name": "Cache-Control",
        "in": "header",
        "description": "no-cache: make the answer anew, and keep it; no-store: do not keep it, either.",
        "schema": {"type": "string"},
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "With the same key, the same request gets the same answer as long as it is kept.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    },
]


class DocumentedApp(FastAPI):
    """FastAPI, whose document also has what the routes share."""

    def __init__(self, *, asks_for_key: bool, **values: Any) -> None:
        super().__init__(**values)
        self._asks_for_key = asks_for_key

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(_ERRORS)
        if self._asks_for_key:
            components["securitySchemes"] = _KEYS
            document["security"] = [{name: []} for name in _KEYS]
        return document


def content(schema: Schema, media_type: str = "application/json") -> dict[str, Any]:
    return {"content": {media_type: {"schema": schema}}}


def described(
    answer: dict[str, Any],
    *,
    body: Schema | None = None,
    error: Schema = MESSAGE,
    statuses: Iterable[int] = OF_EVERY_ROUTE,
    parameters: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Arguments for a route: what it answers, what it takes, and its errors."""
    responses = {"200": {"description": "The answer.", "headers": REQUEST_ID, **answer}}
    for status in sorted(statuses):
        headers = REQUEST_ID | _ERROR_HEADERS.get(status, {})
        responses[str(status)] = {"description": STATUSES[status], "headers": headers, **content(error)}
    extra: dict[str, Any] = {"responses": responses, "parameters": [*parameters]}
    if body is not None:
        extra["requestBody"] = {"required": True, **content(body)}
    return {"openapi_extra": extra}


def probe(healthy: Schema, unwell: Schema) -> dict[str, Any]:
    """The same, for a route that says how the server is, and asks nobody for a key."""
    arguments = described(content(healthy), statuses=[500])
    extra = arguments["openapi_extra"]
    extra["responses"]["503"] = {"description": "It is not so.", "headers": REQUEST_ID, **content(unwell)}
    extra["security"] = []
    return arguments


def documented(request: type[ApiRequest], error: Schema = MESSAGE) -> dict[str, Any]:
    """The same, for a route that generates: its answer may be a stream of events, too."""
    answer = content(request.RESPONSE)
    answer["content"]["text/event-stream"] = {"itemSchema": _event(request.EVENT, error)}
    answer["headers"] = {**REQUEST_ID, **_CACHE, **_IGNORED, **_RATES}
    return described(
        answer,
        body=request.SCHEMA,
        error=error,
        statuses=OF_A_GENERATION,
        parameters=[TIMEOUT, *_CACHING],
    )


def _event(data: Schema, error: Schema) -> Schema:
    """An event of a stream, as OpenAPI 3.2 describes it and FastAPI, too."""
    json_data: Schema = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [data, error]}}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, json_data]}},
        "description": "With stream: true. The last one is [DONE], or an error.",
    }
