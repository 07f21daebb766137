"""From an open port to a clean end: uvicorn around the app."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import select
import signal
import socket
import ssl
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from pocketlm.config import ServerConfig
from pocketlm.errors import ConfigError, PocketLMError
from pocketlm.server.service import Service

BACKLOG = 2048  # connections that wait to be accepted
LAST_CALL_S = 0.25  # for requests that are on their way when the server stops
# Longer than clients keep an idle connection (httpx, and so openai: 5 s), so that it is they who close
# it: one that the server closes just as the next request is on its way fails that request.
KEEP_ALIVE_S = 75
LOOPBACK = ("127.", "::1")


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
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise PocketLMError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror}; choose another with --port"
        ) from None
    return sock


def url(sock: socket.socket, config: ServerConfig) -> str:
    """Where a client on this machine finds the server."""
    host, port = sock.getsockname()[:2]
    scheme = "http" if config.ssl_certfile is None else "https"
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_exposed(sock: socket.socket) -> bool:
    """Whether other machines can reach it."""
    return not sock.getsockname()[0].startswith(LOOPBACK)


def check_tls(config: ServerConfig) -> None:
    """Refuse a certificate that could not be served, before anything is loaded."""
    if config.ssl_certfile is None:
        if config.ssl_keyfile is not None:
            raise ConfigError("ssl_keyfile is set, but not ssl_certfile; HTTPS needs the certificate, too")
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # The password is asked for on the terminal otherwise; an empty one opens no encrypted key.
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password="")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"ssl_certfile {config.ssl_certfile} with ssl_keyfile {config.ssl_keyfile} cannot be used: "
            f"{error.strerror or error}; give a PEM certificate and its key, not encrypted"
        ) from None


class Server(uvicorn.Server):
    """uvicorn's server; told to stop by a signal, it leaves nobody without an answer."""

    def __init__(self, app: FastAPI, config: ServerConfig) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,  # request_log.py writes a better line
                loop="asyncio",
                # Not httptools, where it is installed: it loses the body of a request that offers to go on
                # in HTTP/2, as Java's client does, and takes heads without end.
                http="h11",
                ws="none",
                server_header=False,
                proxy_headers=bool(config.forwarded_allow_ips),
                forwarded_allow_ips=list(config.forwarded_allow_ips),
                ssl_certfile=config.ssl_certfile,
                ssl_keyfile=config.ssl_keyfile,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(config.drain_timeout),
            )
        )
        self.service: Service = app.state.service
        self._is_told_to_stop = False

    def heed_signals(self) -> None:
        """From now on SIGINT and SIGTERM are a wish to stop.

        uvicorn listens to them only while it runs, and raises them again when it has shut down.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._is_told_to_stop = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let in who is at the door and nobody else, then close it.

        uvicorn alone resets the connections that wait to be accepted, and those that have been but whose
        request has not been read: a client cannot know whether such a request was carried out.
        """
        if self._is_told_to_stop:
            self.service.drain()
            self.server_state.default_headers = [
                *self.server_state.default_headers,
                (b"connection", b"close"),
            ]
            for sock in sockets or []:
                await _close_when_empty(sock, self.servers)
            await asyncio.sleep(LAST_CALL_S)
        await super().shutdown(sockets)
        if self.force_exit:  # by a second Ctrl-C; uvicorn would leave the engines running
            await self.lifespan.shutdown()


async def _close_when_empty(sock: socket.socket, servers: list[asyncio.Server]) -> None:
    """Close a socket that listens, at a moment when nobody waits in its queue."""
    sock.listen(0)  # the queue grows no more; who is turned away tries again, and is refused
    num_quiet_turns = 0  # of the event loop; a connection needs two to be accepted and get its protocol
    for _ in range(BACKLOG):
        is_waiting = bool(select.select([sock], [], [], 0)[0])
        num_quiet_turns = 0 if is_waiting else num_quiet_turns + 1
        if num_quiet_turns == 2:
            break
        await asyncio.sleep(0)
    for server in servers:
        server.close()


def leave() -> None:
    """End the process at once if a thread is still at work, which only one that loads a model can be.

    Python would end that thread when it comes back from compiled code, in a way that C++ takes for a crash.
    """
    if any(thread.daemon for thread in threading.enumerate()):
        logging.shutdown()
        os._exit(0)
