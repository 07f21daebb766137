"""What a running server does and holds, as figures from its /metrics."""

from __future__ import annotations

from dataclasses import dataclass

from pocketlm.cli.scrape import Scrape, Span
from pocketlm.server.state_metrics import PREFIX

MIB = 2**20
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

Quantiles = dict[str, float]


@dataclass(frozen=True)
class ModelFigures:
    """Of a loaded model. None: nothing happened that it could be made of."""

    running: int
    waiting: int
    requests_per_second: float
    tokens_per_second: float
    prompt_tokens_per_second: float
    ttft_s: Quantiles | None
    inter_token_s: Quantiles | None
    kv_cache_usage: float
    prefix_cache_hit_rate: float | None
    memory_mib: float
    load_s: float


@dataclass(frozen=True)
class GpuFigures:
    utilization: float | None
    memory_used_mib: float
    memory_total_mib: float


@dataclass(frozen=True)
class ServerFigures:
    """Of tokens and time: in `interval_s`; of requests, latencies and hits: in the longer `window_s`."""

    interval_s: float
    window_s: float
    models: dict[str, ModelFigures]
    num_models_unloaded: int
    processors_used: float | None
    throttled_s_per_s: float | None  # None: the server is under no CPU quota that tells
    memory_mib: float | None
    response_cache_hit_rate: float | None
    streams_open: int
    gpus: dict[str, GpuFigures]


def server_figures(window: list[Scrape]) -> ServerFigures:
    """Of two scrapes at least, the latest last."""
    *_, previous, last = window
    interval, whole = Span(previous, last), Span(window[0], last)
    names = last.label_values(PREFIX + "generation_tokens_total", "model_name")
    loaded = set(last.label_values(PREFIX + "num_requests_running", "model_name"))
    memory_bytes = last.value("process_resident_memory_bytes")
    return ServerFigures(
        interval_s=interval.seconds,
        window_s=whole.seconds,
        models={name: _model(name, last, interval, whole) for name in names if name in loaded},
        num_models_unloaded=sum(name not in loaded for name in names),
        processors_used=interval.rate("process_cpu_seconds_total"),
        throttled_s_per_s=interval.rate(PREFIX + "cgroup_throttled_seconds_total"),
        memory_mib=None if memory_bytes is None else memory_bytes / MIB,
        response_cache_hit_rate=whole.share(
            PREFIX + "response_cache_hits_total",
            PREFIX + "response_cache_hits_total",
            PREFIX + "response_cache_misses_total",
        ),
        streams_open=int(last.value(PREFIX + "http_streams_open") or 0),
        gpus={
            number: _gpu(number, last)
            for number in last.label_values(PREFIX + "gpu_memory_total_bytes", "gpu")
        },
    )


def _model(name: str, last: Scrape, interval: Span, whole: Span) -> ModelFigures:
    def now(metric: str) -> float:
        return last.value(PREFIX + metric, model_name=name) or 0.0

    def rate(metric: str) -> float:
        return interval.rate(PREFIX + metric, model_name=name) or 0.0

    def quantiles(metric: str) -> Quantiles | None:
        found = whole.quantiles(PREFIX + metric, tuple(QUANTILES.values()), model_name=name)
        return None if found is None else dict(zip(QUANTILES, found, strict=True))

    return ModelFigures(
        running=int(now("num_requests_running")),
        waiting=int(now("num_requests_waiting")),
        requests_per_second=whole.rate(PREFIX + "e2e_request_latency_seconds_count", model_name=name) or 0.0,
        tokens_per_second=rate("generation_tokens_total"),
        prompt_tokens_per_second=rate("prompt_tokens_total"),
        ttft_s=quantiles("time_to_first_token_seconds"),
        inter_token_s=quantiles("inter_token_latency_seconds"),
        kv_cache_usage=now("kv_cache_usage_perc"),
        prefix_cache_hit_rate=whole.share(
            PREFIX + "prefix_cache_hits_total", PREFIX + "prefix_cache_queries_total", model_name=name
        ),
        memory_mib=now("model_memory_bytes") / MIB,
        load_s=now("model_load_seconds"),
    )


def _gpu(number: str, last: Scrape) -> GpuFigures:
    return GpuFigures(
        utilization=last.value(PREFIX + "gpu_utilization", gpu=number),
        memory_used_mib=(last.value(PREFIX + "gpu_memory_used_bytes", gpu=number) or 0.0) / MIB,
        memory_total_mib=(last.value(PREFIX + "gpu_memory_total_bytes", gpu=number) or 0.0) / MIB,
    )
