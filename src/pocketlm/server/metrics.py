"""Metrics: what the server does and holds, in Prometheus's format.

Names and meanings are vLLM's, under our prefix, wherever it has the same thing. What happens is counted
as it happens, by the methods of `Metrics`, what every token counts in a cheaper way (`token_metrics.py`);
what is so at the moment is read when Prometheus asks (`state_metrics.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from pocketlm.outputs import FinishReason, Timing
from pocketlm.server.state_metrics import PREFIX, STATE_METRICS, Description, Models, StateCollector
from pocketlm.server.token_metrics import INTER_TOKEN_S, TOKENS, TokenCollector, TokenCounts

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}  # others are a client's inventions
MODEL = ("model_name",)

# Upper bounds of buckets: from a small model on a fast machine to a large one under a crowd.
WAIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
NUM_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

# Else each counter has a second series, that says when it was made.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's


class Metrics:
    """The metrics of one application. Its methods are called in the event loop."""

    def __init__(self, models: Models) -> None:
        make = self._make = _Maker()
        self._rejections = make.counter(
            "admission_rejections_total", "Requests answered with an error, by its code.", ("reason",)
        )
        self._rate_limit_errors = make.counter(
            "rate_limit_errors_total", "Requests that were counted in this process, for want of Redis."
        )
        self._http_requests = make.counter(
            "http_requests_total", "HTTP requests that ended.", ("method", "route", "status")
        )
        self._streams_open = make.gauge("http_streams_open", "Streaming responses under way.")
        self._cache_hits = make.counter("response_cache_hits_total", "Answers found in the response cache.")
        self._cache_misses = make.counter(
            "response_cache_misses_total", "Answers looked for in the response cache, and not found."
        )
        self._cache_bypasses = make.counter(
            "response_cache_bypasses_total", "Answers not looked for in the response cache."
        )
        self._cache_errors = make.counter(
            "response_cache_errors_total", "Failures of the response cache's store; each is a miss."
        )
        self._cache_evictions = make.counter(
            "response_cache_evictions_total", "Answers dropped from the response cache to make room."
        )
        self._cache_entries = make.gauge("response_cache_entries", "Answers kept in this process.")
        self._cache_bytes = make.gauge("response_cache_bytes", "Memory that these answers take.")
        generation = _GenerationMetrics(make)
        # Made at once, so that every series is there from the first scrape on, at 0.
        self._models = {entry.name: _OfModel(generation, entry.name) for entry in models.entries()}
        self._tokens = {name: TokenCounts() for name in self._models}
        make.registry.register(TokenCollector(self._tokens))
        make.registry.register(StateCollector(models))

    @staticmethod
    def describe() -> list[Description]:
        """Every metric there is, whether or not it has a value on this machine."""
        return [*Metrics(_NoModels())._make.descriptions, TOKENS, INTER_TOKEN_S, *STATE_METRICS.values()]

    def render(self) -> bytes:
        """The answer to a scrape, of the type CONTENT_TYPE."""
        return prometheus_client.generate_latest(self._make.registry)

    # Generation; `model` is the name of a registry's entry.

    def prompt_tokens(self, model: str, count: int) -> None:
        self._models[model].prompt_tokens.inc(count)

    def tokens(self, model: str, count: int) -> None:
        self._tokens[model].add(count)

    def first_token(self, model: str, seconds: float) -> None:
        self._models[model].first_token_s.observe(seconds)

    def inter_token(self, model: str, seconds: float) -> None:
        self._tokens[model].observe_gap(seconds)

    def finished(
        self,
        model: str,
        reasons: Iterable[FinishReason],
        timing: Timing,
        e2e_s: float,
        num_prompt_tokens: int,
        num_output_tokens: int,
    ) -> None:
        """A request ended; `reasons` has one for each answer to it."""
        metrics = self._models[model]
        for reason in reasons:
            metrics.success[reason].inc()
        metrics.e2e_s.observe(e2e_s)
        metrics.queue_s.observe(timing.queue_s)
        metrics.prefill_s.observe(timing.prefill_s)
        metrics.decode_s.observe(timing.decode_s)
        metrics.num_prompt_tokens.observe(num_prompt_tokens)
        metrics.num_output_tokens.observe(num_output_tokens)

    def corrupted(self, model: str) -> None:
        self._models[model].corrupted.inc()

    # Admission and HTTP

    def rejected(self, code: str) -> None:
        self._rejections.labels(code).inc()

    def rate_limit_error(self) -> None:
        self._rate_limit_errors.inc()

    def http_request(self, method: str, route: str, status: int) -> None:
        """`route` is the template of a path: a label must not take as many values as clients can think of."""
        self._http_requests.labels(method if method in METHODS else "other", route, status).inc()

    def stream_opened(self) -> None:
        self._streams_open.inc()

    def stream_closed(self) -> None:
        self._streams_open.dec()

    # The response cache

    def cache_hit(self) -> None:
        self._cache_hits.inc()

    def cache_miss(self) -> None:
        self._cache_misses.inc()

    def cache_bypass(self) -> None:
        self._cache_bypasses.inc()

    def cache_error(self) -> None:
        self._cache_errors.inc()

    def cache_eviction(self, count: int = 1) -> None:
        self._cache_evictions.inc(count)

    def cache_size(self, num_entries: int, num_bytes: int) -> None:
        self._cache_entries.set(num_entries)
        self._cache_bytes.set(num_bytes)


class _Maker:
    """Makes metrics in a registry of their own, and keeps their descriptions."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.descriptions: list[Description] = []

    def counter(self, name: str, help: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(self._described(name, "counter", help, labels), help, labels, registry=self.registry)

    def gauge(self, name: str, help: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(self._described(name, "gauge", help, labels), help, labels, registry=self.registry)

    def histogram(
        self, name: str, help: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        name = self._described(name, "histogram", help, labels)
        return Histogram(name, help, labels, registry=self.registry, buckets=buckets)

    def _described(self, name: str, type: str, help: str, labels: tuple[str, ...]) -> str:
        self.descriptions.append(Description(PREFIX + name, type, help, labels))
        return PREFIX + name


class _GenerationMetrics:
    """What is counted for each model."""

    def __init__(self, make: _Maker) -> None:
        self.prompt_tokens = make.counter("prompt_tokens_total", "Prompt tokens taken in.", MODEL)
        self.success = make.counter(
            "request_success_total", "Answers that ended, by the reason why.", (*MODEL, "finished_reason")
        )
        self.corrupted = make.counter(
            "corrupted_requests_total", "Requests that failed with NaN or infinite logits.", MODEL
        )
        self.first_token_s = make.histogram(
            "time_to_first_token_seconds", "From when a request is queued to its first token.", MODEL, WAIT_S
        )
        self.e2e_s = make.histogram(
            "e2e_request_latency_seconds", "From when a request is queued to its last token.", MODEL, WAIT_S
        )
        self.queue_s = make.histogram(
            "request_queue_time_seconds", "From when a request is queued until it is computed.", MODEL, WAIT_S
        )
        self.prefill_s = make.histogram(
            "request_prefill_time_seconds", "From then to the request's first token.", MODEL, WAIT_S
        )
        self.decode_s = make.histogram(
            "request_decode_time_seconds", "From a request's first token to its last.", MODEL, WAIT_S
        )
        self.num_prompt_tokens = make.histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", MODEL, NUM_TOKENS
        )
        self.num_output_tokens = make.histogram(
            "request_generation_tokens", "Tokens generated for a request.", MODEL, NUM_TOKENS
        )


class _OfModel:
    """The series of one model: to look one up by its labels costs more than to count."""

    def __init__(self, metrics: _GenerationMetrics, name: str) -> None:
        self.prompt_tokens = metrics.prompt_tokens.labels(name)
        self.success = {reason: metrics.success.labels(name, reason.value) for reason in FinishReason}
        self.corrupted = metrics.corrupted.labels(name)
        self.first_token_s = metrics.first_token_s.labels(name)
        self.e2e_s = metrics.e2e_s.labels(name)
        self.queue_s = metrics.queue_s.labels(name)
        self.prefill_s = metrics.prefill_s.labels(name)
        self.decode_s = metrics.decode_s.labels(name)
        self.num_prompt_tokens = metrics.num_prompt_tokens.labels(name)
        self.num_output_tokens = metrics.num_output_tokens.labels(name)


class _NoModels:
    def entries(self) -> list[object]:
        return []
