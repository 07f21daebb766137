"""GET /models, as the exercise asks, and GET /v1/models, as OpenAI has it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from pocketlm.registry import ModelEntry, ModelState
from pocketlm.server import openapi
from pocketlm.server.protocol.fields import Schema, object_schema
from pocketlm.server.service import Service

router = APIRouter(tags=["models"])

_STATE: Schema = {"enum": [state.value for state in ModelState]}
_ALIASES: Schema = {"type": "array", "items": {"type": "string"}, "description": "Its other names."}
MODEL = object_schema(
    {"name": {"type": "string"}, "aliases": _ALIASES, "state": _STATE},
    {
        "error": {"type": "string", "description": "Why it failed."},
        "parameters": {"type": "integer", "description": "How many numbers it is made of."},
        "dtype": {"type": "string", "description": "Number format of its weights."},
        "context_window": {"type": "integer", "description": "Tokens of prompt and answer together."},
        "memory_bytes": {"type": "integer", "description": "Weights and KV cache together."},
        "weights_bytes": {"type": "integer"},
        "kv_cache_bytes": {"type": "integer"},
        "load_seconds": {"type": "number"},
        "estimated_memory_bytes": {"type": "integer", "description": "What it would take, if loaded."},
    },
)
MODELS = object_schema(
    {
        "default": {"type": "string", "description": "The model of requests that name none."},
        "models": {"type": "array", "items": MODEL},
    }
)
OPENAI_MODEL = object_schema(
    {
        "id": {"type": "string"},
        "object": {"enum": ["model"]},
        "created": {"type": "integer", "description": "Seconds since 1970."},
        "owned_by": {"type": "string"},
        "aliases": _ALIASES,
        "state": _STATE,
    }
)
OPENAI_MODELS = object_schema(
    {"object": {"enum": ["list"]}, "data": {"type": "array", "items": OPENAI_MODEL}}
)
_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "A model's name or alias.",
    "schema": {"type": "string", "minLength": 1},
}


@router.get(
    "/models",
    summary="The models that can be asked for, and the state of each",
    **openapi.described(openapi.content(MODELS)),
)
async def models(request: Request) -> dict[str, Any]:
    service: Service = request.app.state.service
    entries = service.registry.entries()
    return {"default": entries[0].name, "models": [described(entry) for entry in entries]}


@router.get(
    "/v1/models",
    summary="The models, in OpenAI's form",
    **openapi.described(openapi.content(OPENAI_MODELS), error=openapi.OPENAI_ERROR),
)
async def list_models(request: Request) -> dict[str, Any]:
    service: Service = request.app.state.service
    return {"object": "list", "data": [openai_model(entry) for entry in service.registry.entries()]}


@router.get(
    "/v1/models/{name:path}",
    summary="One model, in OpenAI's form",
    **openapi.described(
        openapi.content(OPENAI_MODEL),
        error=openapi.OPENAI_ERROR,
        statuses=(*openapi.OF_EVERY_ROUTE, 404),
        parameters=[_NAME],
    ),
)
async def retrieve_model(request: Request) -> dict[str, Any]:
    # An argument of its own would have FastAPI document a status that it never has.
    service: Service = request.app.state.service
    name = service.registry.resolve(request.path_params["name"])
    [entry] = [entry for entry in service.registry.entries() if entry.name == name]
    return openai_model(entry)


def described(entry: ModelEntry) -> dict[str, Any]:
    """One model for people: what it takes if it is loaded, what it would take if not."""
    model, estimate = entry.model, entry.estimate
    content: dict[str, Any] = {"name": entry.name, "aliases": list(entry.aliases), "state": entry.state.value}
    if entry.error is not None:
        content["error"] = entry.error
    if model is not None:
        return content | {
            "parameters": model.num_parameters,
            "dtype": model.dtype,
            "context_window": model.max_model_len,
            "memory_bytes": model.memory_bytes,
            "weights_bytes": model.weights_bytes,
            "kv_cache_bytes": model.kv_cache_bytes,
            "load_seconds": round(model.load_s, 3),
        }
    if estimate is not None:
        return content | {
            "parameters": estimate.num_parameters,
            "context_window": estimate.max_model_len,
            "estimated_memory_bytes": estimate.weights_bytes + estimate.kv_cache_bytes,
        }
    return content


def openai_model(entry: ModelEntry) -> dict[str, Any]:
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "pocketlm",
        "aliases": list(entry.aliases),
        "state": entry.state.value,
    }
