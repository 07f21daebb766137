"""From an open port to a clean end: uvicorn around the app."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

from pocketlm.config import ServerConfig
from pocketlm.errors import ConfigError, PocketLMError

SHUTDOWN_S = 30  # how long requests under way may take to end once the server is told to stop


def open_port(config: ServerConfig) -> socket.socket:
    """A socket that listens; connections wait in its queue until `run` takes them."""
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"host: {config.host!r} cannot be resolved: {error.strerror}") from None
    family, kind, protocol, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen()
    except OSError as error:
        sock.close()
        raise PocketLMError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror}; choose another with --port"
        ) from None
    return sock


def url(sock: socket.socket) -> str:
    """Where a client on this machine finds the server."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, sock: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, then let the requests under way end."""
    config = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=SHUTDOWN_S)
    try:
        uvicorn.Server(config).run(sockets=[sock])
    except KeyboardInterrupt:  # uvicorn shuts down first, and raises it afterwards
        return
