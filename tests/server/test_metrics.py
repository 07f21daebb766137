"""Metrics: what Prometheus reads, by name, and what each event adds to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pocketlm import hardware
from pocketlm.engine.engine import EngineStats
from pocketlm.outputs import FinishReason, Timing
from pocketlm.server import gpu
from pocketlm.server.metrics import Metrics

STATS = EngineStats(
    num_running=3,
    num_waiting=5,
    num_blocks=100,
    num_free_blocks=75,
    prefix_cache_queries=640,
    prefix_cache_hits=320,
    num_preemptions=2,
    num_prompt_tokens=1000,
    num_output_tokens=2000,
    num_draft_tokens=40,
    num_accepted_tokens=30,
)


@dataclass
class FakeEngine:
    stats_now: EngineStats = STATS

    def stats(self) -> EngineStats:
        return self.stats_now


@dataclass
class FakeModel:
    load_s: float = 1.5
    memory_bytes: int = 1 << 20


@dataclass
class FakeEntry:
    name: str
    engine: FakeEngine | None = None
    model: FakeModel | None = None


class FakeRegistry:
    """One model is loaded, and one is not yet."""

    def __init__(self) -> None:
        self.loaded = FakeEntry("a", FakeEngine(), FakeModel())
        self.available = FakeEntry("b")

    def entries(self) -> list[FakeEntry]:
        return [self.loaded, self.available]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(FakeRegistry())


def samples(metrics: Metrics) -> dict[str, float]:
    """Each series as it is written, less our prefix: name{label="value"} -> value."""
    found = {}
    for line in metrics.render().decode().splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            found[series.removeprefix("pocketlm:")] = float(value)
    return found


def changes(metrics: Metrics, before: dict[str, float]) -> dict[str, float]:
    ours = {series: v for series, v in samples(metrics).items() if not series.startswith("process_")}
    return {series: v - before.get(series, 0.0) for series, v in ours.items() if v != before.get(series, 0.0)}


def test_what_the_engine_holds_is_read_at_the_scrape() -> None:
    registry = FakeRegistry()
    metrics = Metrics(registry)
    expected = {
        'num_requests_running{model_name="a"}': 3,
        'num_requests_waiting{model_name="a"}': 5,
        'kv_cache_usage_perc{model_name="a"}': 0.25,
        'prefix_cache_queries_total{model_name="a"}': 640,
        'prefix_cache_hits_total{model_name="a"}': 320,
        'num_preemptions_total{model_name="a"}': 2,
        'spec_decode_num_draft_tokens_total{model_name="a"}': 40,
        'spec_decode_num_accepted_tokens_total{model_name="a"}': 30,
        'model_load_seconds{model_name="a"}': 1.5,
        'model_memory_bytes{model_name="a"}': 1 << 20,
        "models_loaded": 1,
    }
    found = samples(metrics)
    assert {series: found[series] for series in expected} == expected
    assert 'num_requests_running{model_name="b"}' not in found
    registry.loaded.engine = registry.loaded.model = None  # unloaded
    found = samples(metrics)
    assert found["models_loaded"] == 0 and 'kv_cache_usage_perc{model_name="a"}' not in found


def test_tokens_and_times_are_counted_for_each_model(metrics: Metrics) -> None:
    before = samples(metrics)
    metrics.prompt_tokens("a", 20)
    metrics.tokens("a", 3)
    metrics.first_token("a", 0.2)
    metrics.inter_token("a", 0.004)
    metrics.inter_token("a", 0.006)
    metrics.corrupted("b")
    changed = changes(metrics, before)
    assert changed['prompt_tokens_total{model_name="a"}'] == 20
    assert changed['generation_tokens_total{model_name="a"}'] == 3
    assert changed['time_to_first_token_seconds_sum{model_name="a"}'] == pytest.approx(0.2)
    assert changed['time_to_first_token_seconds_bucket{le="0.25",model_name="a"}'] == 1
    assert 'time_to_first_token_seconds_bucket{le="0.1",model_name="a"}' not in changed
    assert changed['inter_token_latency_seconds_count{model_name="a"}'] == 2
    assert changed['inter_token_latency_seconds_bucket{le="0.005",model_name="a"}'] == 1
    assert changed['corrupted_requests_total{model_name="b"}'] == 1


def test_an_answer_that_ends_is_counted_with_all_its_times(metrics: Metrics) -> None:
    before = samples(metrics)
    timing = Timing(queue_s=0.1, prefill_s=0.2, decode_s=0.4)
    metrics.finished("a", [FinishReason.STOP], timing, 0.8, 20, 40)
    changed = changes(metrics, before)
    assert changed['request_success_total{finished_reason="stop",model_name="a"}'] == 1
    for name, value in {
        "request_queue_time_seconds": 0.1,
        "request_prefill_time_seconds": 0.2,
        "request_decode_time_seconds": 0.4,
        "e2e_request_latency_seconds": 0.8,
        "request_prompt_tokens": 20,
        "request_generation_tokens": 40,
    }.items():
        assert changed[f'{name}_sum{{model_name="a"}}'] == pytest.approx(value), name
        assert changed[f'{name}_count{{model_name="a"}}'] == 1, name


def test_every_series_of_a_model_is_there_before_its_first_request(metrics: Metrics) -> None:
    """Prometheus sees an increment only if it has seen the value before."""
    found = samples(metrics)
    for model in ("a", "b"):
        assert found[f'generation_tokens_total{{model_name="{model}"}}'] == 0
        for reason in FinishReason:
            series = f'request_success_total{{finished_reason="{reason.value}",model_name="{model}"}}'
            assert found[series] == 0


def test_refusals_and_http_requests(metrics: Metrics) -> None:
    before = samples(metrics)
    metrics.rejected("overloaded")
    metrics.rejected("overloaded")
    metrics.rate_limit_error()
    metrics.http_request("POST", "/generate", 200)
    metrics.http_request("BREW1", "unmatched", 405)
    metrics.http_request("BREW2", "unmatched", 405)
    metrics.stream_opened()
    metrics.stream_opened()
    metrics.stream_closed()
    assert changes(metrics, before) == {
        'admission_rejections_total{reason="overloaded"}': 2,
        "rate_limit_errors_total": 1,
        'http_requests_total{method="POST",route="/generate",status="200"}': 1,
        'http_requests_total{method="other",route="unmatched",status="405"}': 2,
        "http_streams_open": 1,
    }


def test_the_response_cache(metrics: Metrics) -> None:
    before = samples(metrics)
    metrics.cache_hit()
    metrics.cache_miss()
    metrics.cache_bypass()
    metrics.cache_error()
    metrics.cache_eviction()
    metrics.cache_size(7, 4096)
    names = ("hits_total", "misses_total", "bypasses_total", "errors_total", "evictions_total")
    expected = {f"response_cache_{name}": 1 for name in names}
    expected |= {"response_cache_entries": 7, "response_cache_bytes": 4096}
    assert changes(metrics, before) == expected


def test_the_process_is_measured(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_throttling", lambda: (12, 3.5))
    found = samples(metrics)
    rss = psutil.Process().memory_info().rss
    assert found["process_resident_memory_bytes"] == pytest.approx(rss, rel=0.2)
    assert found["process_cpu_seconds_total"] > 0 and found["process_threads"] >= 1
    assert found["cgroup_throttled_periods_total"] == 12
    assert found["cgroup_throttled_seconds_total"] == 3.5
    monkeypatch.setattr(hardware, "cpu_throttling", lambda: None)
    assert "cgroup_throttled_seconds_total" not in samples(metrics)


def test_gpus_are_measured_where_there_are_any(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gpu_memory_total_bytes" not in {series.partition("{")[0] for series in samples(metrics)}
    readings = [gpu.GpuReading(0, 0.5, 1000, 8000), gpu.GpuReading(1, None, 2000, 8000)]
    monkeypatch.setattr(gpu, "read", lambda: readings)
    found = samples(metrics)
    assert found['gpu_utilization{gpu="0"}'] == 0.5 and 'gpu_utilization{gpu="1"}' not in found
    assert found['gpu_memory_used_bytes{gpu="1"}'] == 2000
    assert found['gpu_memory_total_bytes{gpu="1"}'] == 8000


def test_applications_do_not_share_metrics() -> None:
    one, two = Metrics(FakeRegistry()), Metrics(FakeRegistry())
    one.cache_hit()
    assert samples(one)["response_cache_hits_total"] == 1
    assert samples(two)["response_cache_hits_total"] == 0


def test_every_metric_is_described_and_every_description_is_a_metric(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_throttling", lambda: (12, 3.5))
    monkeypatch.setattr(gpu, "read", lambda: [gpu.GpuReading(0, 0.5, 1000, 8000)])
    metrics.rejected("overloaded")
    metrics.http_request("GET", "/health", 200)
    described = {description.name: description for description in Metrics.describe()}
    assert len(described) == len(Metrics.describe())
    families: dict[str, Any] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        families[family.name + ("_total" if family.type == "counter" else "")] = family
    assert families.keys() == described.keys()
    for name, family in families.items():
        description = described[name]
        assert (family.type, family.documentation) == (description.type, description.help)
        assert description.help.endswith("."), name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(description.labels), name
