"""Every error pocketlm raises on purpose, one tree.

    PocketLMError
    ├── ConfigError              a flag, variable or file entry is wrong         exit code 2
    ├── ModelLoadError           a checkpoint is missing, damaged or unsupported exit code 1
    ├── RequestError             the caller can mend the request, or send it again later
    │   ├── InvalidRequest            400   names the field in `param`
    │   │   └── ContextLengthExceeded 400
    │   ├── Unauthorized              401
    │   ├── ModelNotFound             404
    │   ├── RequestTimeout            408   not one token before the deadline
    │   ├── PayloadTooLarge           413
    │   ├── UnsupportedMediaType      415
    │   ├── IdempotencyConflict       422
    │   ├── RateLimited               429   this client's share of the minute is used up
    │   └── Overloaded                429   the queue or the streams of this server are full
    ├── ModelUnavailable         503    the model could not be loaded lately, or has no room just now
    ├── CacheUnavailable         503    the store of the response cache did not answer
    ├── InsufficientMemory       507    the model cannot fit into the memory it may take
    └── EngineError              500    this request failed, through no fault of its own
        ├── NonFiniteLogits      500    the model computed NaN or infinity
        └── EngineDead           503    nothing more can run in this process

A message says what was given, what is allowed, and what to do. Each class carries what the HTTP
answer needs: `status`, `type`, `code`, `param`, and whether and when to try again.
"""

from __future__ import annotations


class PocketLMError(Exception):
    status = 500
    type = "server_error"
    code = "server_error"
    should_retry: bool | None = None  # None: clients decide by the status

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after_s = retry_after_s  # the earliest time at which trying again makes sense
        self.headers: dict[str, str] = {}  # more for the HTTP answer


class ConfigError(PocketLMError):
    code = "invalid_config"


class ModelLoadError(PocketLMError):
    code = "model_load_failed"


class RequestError(PocketLMError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidRequest(RequestError):
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class Unauthorized(RequestError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ModelNotFound(RequestError):
    status = 404
    code = "model_not_found"


class RequestTimeout(RequestError):
    status = 408
    type = "timeout_error"
    code = "timeout"
    should_retry = False  # it would take as long again


class PayloadTooLarge(RequestError):
    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(RequestError):
    status = 415
    code = "unsupported_media_type"


class IdempotencyConflict(RequestError):
    status = 422
    code = "idempotency_key_reused"


class RateLimited(RequestError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Overloaded(RequestError):
    status = 429
    type = "overloaded_error"
    code = "overloaded"


class ModelUnavailable(PocketLMError):
    status = 503
    code = "model_unavailable"


class CacheUnavailable(PocketLMError):
    status = 503
    code = "cache_unavailable"


class InsufficientMemory(PocketLMError):
    status = 507
    code = "insufficient_memory"
    should_retry = False


class EngineError(PocketLMError):
    code = "engine_error"


class NonFiniteLogits(EngineError):
    code = "non_finite_logits"


class EngineDead(EngineError):
    status = 503
    code = "engine_dead"
