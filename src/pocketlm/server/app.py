"""The ASGI application: one model, its engine, and the routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import pocketlm
from pocketlm.async_engine import AsyncEngine
from pocketlm.config import ServerConfig
from pocketlm.loading import LoadedModel
from pocketlm.server import errors, generate, health


def create_app(model: LoadedModel, config: ServerConfig) -> FastAPI:
    """An application whose lifespan is that of the engine's thread."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = AsyncEngine(model)
        app.state.engine.start()
        yield
        await app.state.engine.stop()

    app = FastAPI(
        title="pocketlm",
        version=pocketlm.__version__,
        summary=f"Text generation with the model {model.name}",
        lifespan=lifespan,
    )
    app.state.config = config
    app.include_router(health.router)
    app.include_router(generate.router)
    errors.add_handlers(app)
    return app
