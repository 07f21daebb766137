"""ServerTarget: a model behind any server with OpenAI's /v1/completions."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from pocketlm.bench.asked import Asked, AskFailed
from pocketlm.errors import ConfigError, PocketLMError

CONNECT_TIMEOUT_S = 10.0
MAX_SHOWN = 200  # characters of what a server said

# What makes the figures truer, most wanted first. Not every server knows it, and some refuse a request
# with a field that they do not know.
EXTRAS: tuple[dict[str, Any], ...] = (
    {"ignore_eos": True, "stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True}},
    {},
)


class ServerTarget:
    def __init__(self, client: httpx.AsyncClient, name: str) -> None:
        self.name = name
        self.extras: dict[str, Any] = EXTRAS[0]
        self._client = client

    @property
    def ignores_eos(self) -> bool:
        """Whether every answer is as long as it was asked to be."""
        return "ignore_eos" in self.extras

    @property
    def counts_tokens(self) -> bool:
        """Whether the server says how many tokens an answer has."""
        return "stream_options" in self.extras

    async def settle_extras(self) -> None:
        """Find out with requests of one token which of EXTRAS the server takes. PocketLMError."""
        for self.extras in EXTRAS:
            try:
                await self.ask("Hello", 1, Asked(due_at=time.monotonic()))
            except AskFailed as error:
                if error.kind not in ("400", "422") or self.extras == EXTRAS[-1]:
                    raise PocketLMError(f"{_address(self._client)}: {error}") from None
            else:
                return

    async def ask(self, prompt: str, num_tokens: int, asked: Asked) -> None:
        body = {
            "model": self.name,
            "prompt": prompt,
            "max_tokens": num_tokens,
            "temperature": 0,
            "stream": True,
            **self.extras,
        }
        try:
            async with self._client.stream("POST", "v1/completions", json=body) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode(errors="replace")
                    raise AskFailed(str(response.status_code), f"{response.status_code} {_reason(text)}")
                await _read(response, asked)
        except httpx.HTTPError as error:
            raise AskFailed(type(error).__name__, _said(error)) from error


@asynccontextmanager
async def server_client(url: str, api_key: str | None) -> AsyncIterator[httpx.AsyncClient]:
    """A client that opens as many connections as there are requests under way, and waits for answers."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        client = httpx.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers=headers,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
    except httpx.InvalidURL as error:
        raise ConfigError(f"url: {url!r} is no address: {error}") from None
    async with client:
        yield client


async def first_model(client: httpx.AsyncClient) -> str:
    """The name of the first model that a server lists. PocketLMError."""
    try:
        response = await client.get("v1/models", timeout=CONNECT_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise PocketLMError(f"cannot reach {_address(client)}: {_said(error)}") from None
    if response.status_code != 200:
        raise PocketLMError(
            f"{_address(client)}/v1/models answers {response.status_code} {_reason(response.text)}; "
            "name the model with --model, and the key with --api-key if there is one"
        )
    try:
        name = str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise PocketLMError(f"{_address(client)}/v1/models lists no model; name one with --model") from None
    if not name.isprintable():  # it would be shown in a terminal
        raise PocketLMError(f"{_address(client)}/v1/models lists {name!r}; name another model with --model")
    return name


async def _read(response: httpx.Response, asked: Asked) -> None:
    """Note each event with text. Tokens are counted by the server, or else by events."""
    is_done, num_told = False, None
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            is_done = True
            continue  # to the end of the response, so that its connection is used again
        event = _parsed(data)
        for choice in event.get("choices") or []:
            if choice.get("text"):
                asked.arrived_at.append(time.monotonic())
                asked.num_tokens += 1
            reason = choice.get("finish_reason")
            if reason not in (None, "stop", "length"):
                raise AskFailed(f"ended by {_shown(reason)}", f"the server ended an answer: {_shown(reason)}")
        if event.get("usage"):
            num_told = int(event["usage"]["completion_tokens"])
            asked.num_prompt_tokens = int(event["usage"]["prompt_tokens"])
    if not is_done:
        raise AskFailed("cut off", "the stream ended without [DONE]")
    if num_told is not None:
        asked.num_tokens = num_told


def _parsed(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise AskFailed("not an event", f"not a JSON object in the stream: {_shown(data)}")
    if "error" in event:
        raise AskFailed("error in the stream", _reason(data))
    return event


def _reason(text: str) -> str:
    """The message in a server's error, whatever its shape."""
    try:
        error = json.loads(text)["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, LookupError, TypeError):
        message = text
    return _shown(message)


def _shown(value: object) -> str:
    """Words of a server, on one line and without what a terminal would obey."""
    words = " ".join(str(value)[:MAX_SHOWN].split())
    return "".join(character if character.isprintable() else "?" for character in words)


def _address(client: httpx.AsyncClient) -> str:
    return str(client.base_url).rstrip("/")


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
