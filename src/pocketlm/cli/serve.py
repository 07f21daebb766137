"""pocketlm serve: models behind HTTP."""

from __future__ import annotations

import gc
import logging
from typing import Annotated, Any

import typer

from pocketlm.cli.flags import config_flags
from pocketlm.cli.output import note
from pocketlm.config import EngineConfig, ServerConfig, load_config

CURL = """\
pocketlm serves {models} at {url}; Ctrl-C stops it. Try:

curl {insecure}{url}/generate -H 'Content-Type: application/json'{key} -d '{{"prompt": "Kubernetes is a"}}'
"""

EXPOSED = """\
WARNING: other machines can reach this server, and it asks nobody for a key. Whoever can connect can use
it. Set --api-key or --api-key-file, or listen on 127.0.0.1 only.
"""


@config_flags(ServerConfig, EngineConfig)
def serve(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            help="bundled, local folders or Hugging Face Hub ids. The first is loaded at once, the others "
            "when they are asked for."
        ),
    ] = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Serve models over HTTP.

    The routes are those of the exercise, and OpenAI's under /v1.
    """
    names, engine_config, server_config = load_config({"model": model or None, **flags})

    from pocketlm.registry import Registry, parse_aliases
    from pocketlm.server.app import create_app
    from pocketlm.server.request_log import configure_logging
    from pocketlm.server.run import Server, check_tls, is_exposed, leave, open_port, url

    configure_logging(server_config.log_format, logging.INFO)
    check_tls(server_config)
    registry = Registry(
        names,
        aliases=parse_aliases(server_config.alias),
        config=engine_config,
        memory_budget=server_config.memory_budget,
        keep_alive_s=server_config.keep_alive,
        max_queue=server_config.max_queue,
    )
    app = create_app(registry, server_config)
    registry.preload()
    sock = open_port(server_config)
    server = Server(app, server_config)
    server.heed_signals()
    has_keys = bool(server_config.api_key or server_config.api_key_file)
    if is_exposed(sock) and not has_keys:
        note(EXPOSED)
    note(
        CURL.format(
            models=", ".join(names),
            url=url(sock, server_config),
            insecure="-k " if server_config.ssl_certfile else "",
            key=" -H 'Authorization: Bearer YOUR_KEY'" if has_keys else "",
        )
    )
    gc.freeze()  # code and routes stay: to look through them again and again would halt every stream
    try:
        server.run(sockets=[sock])
    finally:
        gc.unfreeze()  # so that all is freed in the end, the compiled core's too
    leave()
