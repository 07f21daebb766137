"""pocketlm serves small language models from ordinary CPUs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketlm.errors import (
        CacheUnavailable,
        ConfigError,
        ContextLengthExceeded,
        EngineDead,
        EngineError,
        IdempotencyConflict,
        InsufficientMemory,
        InvalidRequest,
        ModelLoadError,
        ModelNotFound,
        ModelUnavailable,
        NonFiniteLogits,
        Overloaded,
        PayloadTooLarge,
        PocketLMError,
        RateLimited,
        RequestError,
        RequestTimeout,
        Unauthorized,
        UnsupportedMediaType,
    )
    from pocketlm.llm import LLM
    from pocketlm.outputs import Completion, FinishReason, RequestOutput
    from pocketlm.sampling import SamplingParams

    __version__: str

__all__ = [
    "LLM",
    "CacheUnavailable",
    "Completion",
    "ConfigError",
    "ContextLengthExceeded",
    "EngineDead",
    "EngineError",
    "FinishReason",
    "IdempotencyConflict",
    "InsufficientMemory",
    "InvalidRequest",
    "ModelLoadError",
    "ModelNotFound",
    "ModelUnavailable",
    "NonFiniteLogits",
    "Overloaded",
    "PayloadTooLarge",
    "PocketLMError",
    "RateLimited",
    "RequestError",
    "RequestOutput",
    "RequestTimeout",
    "SamplingParams",
    "Unauthorized",
    "UnsupportedMediaType",
    "__version__",
]

_MODULES = {
    "LLM": "pocketlm.llm",
    "Completion": "pocketlm.outputs",
    "FinishReason": "pocketlm.outputs",
    "RequestOutput": "pocketlm.outputs",
    "SamplingParams": "pocketlm.sampling",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): `import pocketlm` itself costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'pocketlm' has no attribute {name!r}")
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("pocketlm")
    else:
        value = getattr(importlib.import_module(_MODULES.get(name, "pocketlm.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
