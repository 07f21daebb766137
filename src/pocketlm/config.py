"""Every setting, once: its name, type, default and one sentence of help.

The command line flags, the POCKETLM_* variables and the keys of pocketlm.toml are made from these
fields. What is given later wins: defaults < pocketlm.toml < environment < flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pocketlm.errors import ConfigError

CONFIG_FILE = Path("pocketlm.toml")

Model = TypeVar("Model", bound=BaseModel)


class EngineConfig(BaseModel):
    """How a model is loaded and run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["auto", "float32", "int8"] = Field(
        default="auto",
        description="Number format of the weights; auto takes int8 if a probe finds it accurate.",
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
    num_threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Compute threads; default: what affinity and CPU quota allow.",
    )


class ServerConfig(BaseModel):
    """How the HTTP server listens and what it accepts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=5000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    max_length_limit: int = Field(
        default=200, ge=1, description="Largest max_length that /generate accepts, in tokens."
    )
    max_body: ByteSize = Field(
        default=ByteSize(1 << 20), ge=1, description="Largest request body, e.g. 1MiB."
    )


class _Settings(EngineConfig, ServerConfig, BaseSettings):
    """All fields in one flat table, as the environment and pocketlm.toml see them."""

    model_config = SettingsConfigDict(
        env_prefix="POCKETLM_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    model: str = "bundled"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, CONFIG_FILE)


def engine_config(**values: Any) -> EngineConfig:
    """An EngineConfig from keyword arguments; a wrong one is a ConfigError that names it."""
    return _checked(EngineConfig, values)


def load_config(flags: dict[str, Any]) -> tuple[str, EngineConfig, ServerConfig]:
    """The model's name and both configs, from defaults, pocketlm.toml, environment and flags.

    A flag that is None was not given.
    """
    settings = _checked(_Settings, {name: v for name, v in flags.items() if v is not None})
    engine = EngineConfig(**{name: getattr(settings, name) for name in EngineConfig.model_fields})
    server = ServerConfig(**{name: getattr(settings, name) for name in ServerConfig.model_fields})
    return settings.model, engine, server


def _checked(model: type[Model], values: dict[str, Any]) -> Model:
    try:
        return model(**values)
    except ValidationError as error:
        problems = "; ".join(_problem(details) for details in error.errors())
        raise ConfigError(problems) from None
    except ValueError as error:  # from the reader of the file; values were checked above
        raise ConfigError(f"{CONFIG_FILE} is not valid TOML: {error}") from None


def _problem(details: Any) -> str:
    name = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        return f"unknown setting {name!r}"
    return f"{name}: {details['msg'][0].lower()}{details['msg'][1:]}, got {details['input']!r}"
