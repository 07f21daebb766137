"""Every error pocketlm raises on purpose, one tree.

    PocketLMError
    ├── ConfigError              a flag, variable or file entry is wrong         exit code 2
    ├── ModelLoadError           a checkpoint is missing, damaged or unsupported exit code 1
    ├── RequestError             the caller can mend the request
    │   ├── InvalidRequest            400   names the field in `param`
    │   │   └── ContextLengthExceeded 400
    │   ├── PayloadTooLarge           413
    │   └── UnsupportedMediaType      415
    └── EngineError              500    this request failed, through no fault of its own
        └── EngineDead           503    nothing more can run in this process

A message says what was given, what is allowed, and what to do. Each class carries what the HTTP
answer needs: `status`, `type`, `code` and `param`.
"""

from __future__ import annotations


class PocketLMError(Exception):
    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ConfigError(PocketLMError):
    code = "invalid_config"


class ModelLoadError(PocketLMError):
    code = "model_load_failed"


class RequestError(PocketLMError):
    status = 400
    type = "invalid_request_error"


class InvalidRequest(RequestError):
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class PayloadTooLarge(RequestError):
    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(RequestError):
    status = 415
    code = "unsupported_media_type"


class EngineError(PocketLMError):
    code = "engine_error"


class EngineDead(EngineError):
    status = 503
    code = "engine_dead"
