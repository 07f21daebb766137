"""Every setting, once: its name, type, default and one sentence of help.

The command line flags, the POCKETLM_* variables and the keys of pocketlm.toml are made from these
fields. What is given later wins: defaults < pocketlm.toml < environment < flags.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError

from pocketlm.errors import ConfigError

CONFIG_FILE = Path("pocketlm.toml")

Model = TypeVar("Model", bound=BaseModel)


def _listed(value: object) -> object:
    """A string is a list of what stands between its commas, as an environment variable has no other way."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class EngineConfig(BaseModel):
    """How a model is loaded and run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = Field(
        default="auto",
        description="Number format of the weights; auto: int8, else bfloat16, if a probe finds it accurate.",
    )
    max_model_len: int | None = Field(
        default=None, ge=1, description="Longest prompt and answer together, in tokens; default: the model's."
    )
    max_num_seqs: int = Field(default=64, ge=1, description="Most sequences computed in one step.")
    max_batch_tokens: int = Field(default=512, ge=1, description="Most tokens computed in one step.")
    kv_cache_memory: ByteSize | None = Field(
        default=None,
        ge=1,
        description="Memory for keys and values, e.g. 512MiB; default: a share of what is free.",
    )
    prefix_caching: bool = Field(
        default=True,
        description="Keep the keys and values of finished requests for prompts that begin alike.",
    )
    speculative_tokens: int = Field(
        default=0,
        ge=0,
        le=32,
        description="Most tokens guessed by prompt look-up and checked in one step, for a sequence that runs "
        "alone; 0: off.",
    )
    num_threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Compute threads; default: what affinity and CPU quota allow.",
    )
    cache_dir: Path | None = Field(
        default=None, description="Folder for packed weights; default: pocketlm in the user's cache folder."
    )


class ServerConfig(BaseModel):
    """How the HTTP server listens, what it accepts, and what it keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=5000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    ssl_certfile: Path | None = Field(
        default=None, description="PEM file with the certificate chain: serve HTTPS."
    )
    ssl_keyfile: Path | None = Field(default=None, description="PEM file with the certificate's private key.")

    # Several models
    alias: Names = Field(
        default=(), description="Another name for a model, NEW=MODEL; may be given several times."
    )
    memory_budget: ByteSize | None = Field(
        default=None,
        ge=1,
        description="Memory for the weights and KV caches of all models; default: a share of what is free.",
    )
    keep_alive: float | None = Field(
        default=None,
        gt=0,
        description="Unload a model after this many idle seconds; default: when its memory is needed.",
    )

    # What a request may ask for
    lenient: bool = Field(
        default=False,
        description="Ignore unknown and unsupported request fields, and name them in X-Ignored-Fields.",
    )
    max_length_limit: int = Field(
        default=200, ge=1, description="Largest max_length that /generate accepts, in tokens."
    )
    max_body: ByteSize = Field(
        default=ByteSize(1 << 20), ge=1, description="Largest request body, e.g. 1MiB."
    )
    max_prompt_tokens: int | None = Field(
        default=None, ge=1, description="Longest prompt, in tokens; default: the context window."
    )
    max_n: int = Field(default=16, ge=1, le=128, description="Most answers to one prompt.")
    max_queue: int = Field(
        default=256, ge=0, description="Most prompts that wait for their turn, for each model."
    )
    max_streams: int = Field(default=256, ge=1, description="Most streaming responses at one time.")
    request_timeout: float = Field(
        default=60.0, gt=0, le=86400, description="Seconds a request may take, waiting included."
    )
    rate_limit_requests: int | None = Field(
        default=None, ge=1, description="Requests a minute for each API key, or each client without keys."
    )
    rate_limit_tokens: int | None = Field(
        default=None, ge=1, description="Tokens a minute, prompt and answer, for each key or client."
    )
    rate_limit_url: str | None = Field(
        default=None, description="redis://... where replicas count together; default: in this process."
    )

    # The response cache
    cache: bool = Field(default=True, description="Keep answers, for equal requests.")
    cache_ttl: float = Field(default=300.0, gt=0, description="Seconds an answer is kept.")
    cache_size: ByteSize = Field(
        default=ByteSize(64 << 20), ge=1, description="Memory for kept answers, e.g. 64MiB."
    )
    cache_url: str | None = Field(
        default=None, description="redis://... where replicas share answers; default: in this process."
    )
    cache_sampled: bool = Field(
        default=False,
        description="Keep what /v1 routes drew without a seed, too, as /generate always does.",
    )

    # Who may ask
    api_key: Names = Field(
        default=(), description="A key that requests must carry, KEY or NAME:KEY; may be given several times."
    )
    api_key_file: Path | None = Field(
        default=None, description="File with one key a line, KEY or NAME:KEY; read again when it changes."
    )
    cors_origin: Names = Field(
        default=(), description="Web origin whose pages may call this server; may be given several times."
    )
    forwarded_allow_ips: Names = Field(
        default=(),
        description="Proxy whose X-Forwarded-For is believed; may be given several times.",
    )

    # Operations
    log_format: Literal["text", "json"] = Field(default="text", description="Lines for people or programs.")
    log_prompts: bool = Field(default=False, description="Write prompts and answers to the log.")
    drain_timeout: float = Field(
        default=30.0, gt=0, description="Seconds that requests under way may take to end after SIGTERM."
    )
    sse_keep_alive: float = Field(
        default=15.0, gt=0, description="Seconds of silence after which a stream gets a comment."
    )


class _Settings(EngineConfig, ServerConfig):
    """All fields in one flat table, as the environment and pocketlm.toml see them."""

    model: Names = ("bundled",)


def engine_config(**values: Any) -> EngineConfig:
    """An EngineConfig from keyword arguments; a wrong one is a ConfigError that names it."""
    return _checked(EngineConfig, values)


def load_config(flags: dict[str, Any]) -> tuple[tuple[str, ...], EngineConfig, ServerConfig]:
    """The models' names and both configs, from defaults, pocketlm.toml, environment and flags.

    A flag that is None was not given.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    settings = _checked(_Settings, {**_from_file(), **_from_environment(), **given})
    engine = EngineConfig(**{name: getattr(settings, name) for name in EngineConfig.model_fields})
    server = ServerConfig(**{name: getattr(settings, name) for name in ServerConfig.model_fields})
    return settings.model, engine, server


def _from_file() -> dict[str, Any]:
    if not CONFIG_FILE.is_file():
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found]  # where Python has none of its own
    try:
        values: dict[str, Any] = tomllib.loads(CONFIG_FILE.read_text(encoding="utf-8"))
        return values
    except ValueError as error:  # also bytes that are not UTF-8
        raise ConfigError(f"{CONFIG_FILE} is not valid TOML: {error}") from None


def _from_environment() -> dict[str, Any]:
    """An empty variable counts as none: a compose file passes one for each that is not set."""
    found = {name.upper(): value for name, value in os.environ.items() if value}
    keys = {name: f"POCKETLM_{name.upper()}" for name in _Settings.model_fields}
    return {name: found[key] for name, key in keys.items() if key in found}


def _checked(model: type[Model], values: dict[str, Any]) -> Model:
    try:
        return model(**values)
    except ValidationError as error:
        problems = "; ".join(_problem(details) for details in error.errors())
        raise ConfigError(problems) from None


def _problem(details: Any) -> str:
    name = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        return f"unknown setting {name!r}"
    return f"{name}: {details['msg'][0].lower()}{details['msg'][1:]}, got {details['input']!r}"
