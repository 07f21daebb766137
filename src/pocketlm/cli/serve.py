"""pocketlm serve: a model behind HTTP."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated, Any

import typer

from pocketlm.cli.flags import config_flags
from pocketlm.cli.output import configure_logging, note
from pocketlm.config import EngineConfig, ServerConfig, load_config

CURL = """\
pocketlm serves {model} at {url}; Ctrl-C stops it. Try:

curl {url}/generate -H 'Content-Type: application/json' -d '{{"prompt": "Kubernetes is a"}}'
"""


@config_flags(ServerConfig, EngineConfig)
def serve(
    model: Annotated[
        str | None, typer.Argument(help="bundled, a local folder or a Hugging Face Hub id.")
    ] = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Serve a model over HTTP: GET /health and POST /generate."""
    configure_logging(logging.INFO)
    # Without a handler the process would end as killed by the signal, after a clean shutdown too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    name, engine_config, server_config = load_config({"model": model, **flags})

    from pocketlm.loading import load_model
    from pocketlm.server.app import create_app
    from pocketlm.server.run import open_port, run, url

    app = create_app(load_model(name, engine_config), server_config)
    sock = open_port(server_config)
    note(CURL.format(model=name, url=url(sock)))
    run(app, sock)
