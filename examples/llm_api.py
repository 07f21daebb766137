"""Part 3: the API as an application of your own, with a route that pocketlm does not have.

uvicorn --factory --app-dir examples llm_api:create_app --port 5000

`pocketlm serve` does the same without a file, and drains better when it is stopped. The settings are
read from pocketlm.toml and POCKETLM_* variables, but for host and port, which are uvicorn's here.
"""

from __future__ import annotations

from fastapi import FastAPI

from pocketlm.config import load_config
from pocketlm.registry import Registry, parse_aliases
from pocketlm.server import app


def create_app() -> FastAPI:
    """Called by uvicorn in the process that serves: the model is loaded once, before the first request."""
    models, engine_config, server_config = load_config({})
    registry = Registry(models, aliases=parse_aliases(server_config.alias), config=engine_config)
    registry.preload()
    api = app.create_app(registry, server_config)

    @api.get("/about", summary="What this service is for")
    async def about() -> dict[str, str]:
        return {"service": "an exercise", "try": "POST /generate"}

    return api
