"""The ASGI application: models, what stands in front of them, and the routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

import pocketlm
from pocketlm.config import ServerConfig
from pocketlm.registry import Registry
from pocketlm.server import (
    cache_routes,
    errors,
    generation_routes,
    health,
    metrics_route,
    models_routes,
    token_routes,
)
from pocketlm.server.api_keys import ApiKeys
from pocketlm.server.checks import Checks
from pocketlm.server.flights import Flights
from pocketlm.server.metrics import Metrics
from pocketlm.server.middleware import Edge
from pocketlm.server.openapi import DocumentedApp
from pocketlm.server.rate_limits import RateLimits
from pocketlm.server.response_cache import ResponseCache
from pocketlm.server.service import Service

EXPOSED_HEADERS = [  # what scripts of another origin may read
    "Retry-After",
    "X-Cache",
    "X-Ignored-Fields",
    "X-Request-Id",
    "X-Should-Retry",
    *(
        f"X-RateLimit-{what}-{unit}"
        for what in ("Limit", "Remaining", "Reset")
        for unit in ("Requests", "Tokens")
    ),
]
ROUTERS = (health, generation_routes, token_routes, models_routes, cache_routes, metrics_route)


def create_app(registry: Registry, config: ServerConfig) -> FastAPI:
    """An application whose lifespan is that of the models' engines. ConfigError."""
    metrics = Metrics(registry)
    checks = Checks(registry)
    service = Service(
        config=config,
        registry=registry,
        metrics=metrics,
        cache=ResponseCache(config.cache_ttl, config.cache_size, config.cache_url, metrics),
        rate_limits=RateLimits(
            config.rate_limit_requests,
            config.rate_limit_tokens,
            config.rate_limit_url,
            metrics.rate_limit_error,
        ),
        checks=checks,
        flights=Flights(metrics, on_failure=checks.doubt),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await registry.start()
        await service.cache.start()
        yield
        await checks.close()
        await service.cache.close()
        await service.rate_limits.close()
        await registry.stop()

    api_keys = ApiKeys(config.api_key, config.api_key_file)
    app = DocumentedApp(
        asks_for_key=api_keys.enabled,
        title="pocketlm",
        version=pocketlm.__version__,
        summary="Text generation with small language models on a CPU",
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service
    for module in ROUTERS:
        app.include_router(module.router)
    errors.add_handlers(app)
    app.add_middleware(Edge, api_keys=api_keys, metrics=metrics)
    if config.cors_origin:  # outside of Edge: a browser asks for permission without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origin,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    return app
