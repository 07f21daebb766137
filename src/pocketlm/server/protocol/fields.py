"""The fields that every generation route takes, as JSON schemas; the OpenAPI document shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pocketlm.sampling import (
    MAX_LOGIT_BIAS,
    MAX_SEED,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)

Schema = dict[str, Any]  # a JSON schema

MAX_TIMEOUT_S = 86400
TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")

# Fields of every generation route that choose tokens. SamplingParams checks them.
SAMPLING: dict[str, Schema] = {
    "max_tokens": {"type": "integer", "minimum": 0, "description": "Most new tokens."},
    "min_tokens": {
        "type": "integer",
        "minimum": 0,
        "description": "No end and no stop string before this many new tokens; default 0.",
    },
    "temperature": {"type": "number", "minimum": 0, "maximum": 2, "description": "0 is greedy."},
    "top_k": {
        "type": "integer",
        "minimum": 0,
        "description": "Draw from the k most likely tokens; 0, the default: from all.",
    },
    "top_p": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "description": "Draw from the likeliest tokens of this much probability; default 1.",
    },
    "min_p": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "description": "Drop tokens below this share of the likeliest one; default 0.",
    },
    "repetition_penalty": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 10,
        "description": "Above 1: tokens of the prompt and the answer become less likely; default 1.",
    },
    "presence_penalty": {
        "type": "number",
        "minimum": -2,
        "maximum": 2,
        "description": "Taken from the logit of every token that the answer has; default 0.",
    },
    "frequency_penalty": {
        "type": "number",
        "minimum": -2,
        "maximum": 2,
        "description": "The same, once for each time that the answer has it; default 0.",
    },
    "logit_bias": {
        "type": "object",
        "maxProperties": MAX_LOGIT_BIAS,
        "propertyNames": {"pattern": f"^({TOKEN_ID.pattern})$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "description": "Token id, as a string -> added to its logit.",
    },
    "seed": {
        "type": "integer",
        "minimum": 0,
        "maximum": MAX_SEED,
        "description": "Answer i to a prompt is drawn with seed + i; default: a random one; it is reported.",
    },
    "stop": {
        "anyOf": [
            {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_CHARS},
            {
                "type": "array",
                "maxItems": MAX_STOP_STRINGS,
                "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_CHARS},
            },
        ],
        "description": "The answer ends before the first of these strings.",
    },
    "stop_token_ids": {
        "type": "array",
        "maxItems": MAX_STOP_TOKEN_IDS,
        "items": {"type": "integer", "minimum": 0},
        "description": "The answer ends with the first of these tokens.",
    },
    "ignore_eos": {"type": "boolean", "description": "Go on after the end-of-text token; default false."},
}

# Fields of every generation route about how it is served. `reading.read` checks them.
SERVING: dict[str, Schema] = {
    "model": {"type": "string", "description": "A model's name or alias; default: the server's first."},
    "stream": {"type": "boolean", "description": "Send the answer as server-sent events; default false."},
    "timeout": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": MAX_TIMEOUT_S,
        "description": "Seconds the request may take, waiting included; default: the server's.",
    },
    "cache": {
        "type": "boolean",
        "description": "Whether the response cache may be used; default: as the server is configured.",
    },
    "include_timing": {"type": "boolean", "description": "Say where the time went; default false."},
    "user": {
        "type": "string",
        "maxLength": 512,
        "description": "Who it is for; written to the server's log.",
    },
}


def body_schema(fields: Mapping[str, Schema], required: list[str], **more: Any) -> Schema:
    """The schema of a whole body: what is not required may be null."""
    properties = {name: field if name in required else _or_null(field) for name, field in fields.items()}
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
        **more,
    }


def needs(name: str, kind: str, other: str) -> Schema:
    """A rule of a body: field `name`, which is of this type, may be given only with `other`: true."""
    return {
        "if": {"required": [name], "properties": {name: {"type": kind}}},
        "then": {"required": [other], "properties": {other: {"const": True}}},
    }


def object_schema(properties: dict[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """The schema of an object that has all of `properties`, and nothing else but what is optional."""
    return {
        "type": "object",
        "required": [*properties],
        "properties": {**properties, **(optional or {})},
        "additionalProperties": False,
    }


def _or_null(field: Schema) -> Schema:
    if "anyOf" in field:
        return {**field, "anyOf": [*field["anyOf"], {"type": "null"}]}
    return {**field, "type": [field["type"], "null"]}
