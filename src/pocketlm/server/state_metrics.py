"""StateCollector: the metrics that mirror what is so at the moment, read when Prometheus asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import psutil
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from pocketlm import hardware
from pocketlm.server import gpu

PREFIX = "pocketlm:"


class Description(NamedTuple):
    """What a metric is, for the docs and for who makes a dashboard."""

    name: str
    type: str
    help: str
    labels: tuple[str, ...]


class Models(Protocol):
    """What is read of `pocketlm.registry.Registry`: its entries, each a ModelEntry."""

    def entries(self) -> Sequence[Any]: ...


def _describe(*descriptions: Description) -> dict[str, Description]:
    return {description.name: description for description in descriptions}


def _of_model(name: str, type: str, help: str) -> Description:
    return Description(PREFIX + name, type, help, ("model_name",))


def _of_process(name: str, type: str, help: str) -> Description:
    """Where Prometheus's client libraries have a name for it, it is theirs, without our prefix."""
    return Description(name, type, help, ())


def _of_gpu(name: str, help: str) -> Description:
    return Description(PREFIX + name, "gauge", help, ("gpu",))


STATE_METRICS = _describe(
    _of_model("num_requests_running", "gauge", "Sequences in the batch of the engine."),
    _of_model("num_requests_waiting", "gauge", "Requests and sequences that wait for their turn."),
    _of_model("kv_cache_usage_perc", "gauge", "Share of the KV cache in use, 0 to 1."),
    _of_model("prefix_cache_queries_total", "counter", "Tokens looked up in the prefix cache."),
    _of_model("prefix_cache_hits_total", "counter", "Tokens found in the prefix cache."),
    _of_model("num_preemptions_total", "counter", "Sequences put back to wait, for want of KV blocks."),
    _of_model("spec_decode_num_draft_tokens_total", "counter", "Tokens guessed by prompt look-up."),
    _of_model("spec_decode_num_accepted_tokens_total", "counter", "Tokens guessed and then drawn."),
    _of_model("model_load_seconds", "gauge", "What the latest load of the model took."),
    _of_model("model_memory_bytes", "gauge", "Memory of the loaded model: weights and KV cache."),
    Description(PREFIX + "models_loaded", "gauge", "Models in memory.", ()),
    _of_process("process_resident_memory_bytes", "gauge", "Resident memory of the process."),
    _of_process("process_cpu_seconds_total", "counter", "CPU time of the process, user and system."),
    _of_process("process_start_time_seconds", "gauge", "When the process started, in seconds since 1970."),
    _of_process("process_threads", "gauge", "Threads of the process."),
    _of_process(PREFIX + "cgroup_throttled_periods_total", "counter", "Periods cut short by the CPU quota."),
    _of_process(PREFIX + "cgroup_throttled_seconds_total", "counter", "Time lost to the CPU quota."),
    _of_gpu("gpu_utilization", "Share of time that the GPU was busy, 0 to 1."),
    _of_gpu("gpu_memory_used_bytes", "GPU memory in use, by whomever."),
    _of_gpu("gpu_memory_total_bytes", "GPU memory there is."),
)


class StateCollector(Collector):
    """One scrape's reading of the models, this process and the machine.

    Counters of an engine start again at 0 when its model is loaded again; Prometheus knows such resets.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    def describe(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        """No names, so that nothing is read to register this collector."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        families = {name: _family(description) for name, description in STATE_METRICS.items()}
        readings = [*self._read_models(), *_read_process(), *_read_gpus()]
        for name, labels, value in readings:
            families[name].add_metric(labels, value)
        for family in families.values():
            if family.samples:
                yield family

    def _read_models(self) -> Iterator[tuple[str, list[str], float]]:
        entries = self._models.entries()
        for entry in entries:
            of_entry: dict[str, float] = {}
            if entry.engine is not None:
                stats = entry.engine.stats()
                of_entry |= {
                    "num_requests_running": stats.num_running,
                    "num_requests_waiting": stats.num_waiting,
                    "kv_cache_usage_perc": 1 - stats.num_free_blocks / stats.num_blocks,
                    "prefix_cache_queries_total": stats.prefix_cache_queries,
                    "prefix_cache_hits_total": stats.prefix_cache_hits,
                    "num_preemptions_total": stats.num_preemptions,
                    "spec_decode_num_draft_tokens_total": stats.num_draft_tokens,
                    "spec_decode_num_accepted_tokens_total": stats.num_accepted_tokens,
                }
            if entry.model is not None:
                of_entry |= {
                    "model_load_seconds": entry.model.load_s,
                    "model_memory_bytes": entry.model.memory_bytes,
                }
            for name, value in of_entry.items():
                yield PREFIX + name, [entry.name], value
        yield PREFIX + "models_loaded", [], sum(entry.model is not None for entry in entries)


def _read_process() -> Iterator[tuple[str, list[str], float]]:
    process = psutil.Process()
    with process.oneshot():
        times = process.cpu_times()
        yield "process_resident_memory_bytes", [], process.memory_info().rss
        yield "process_cpu_seconds_total", [], times.user + times.system
        yield "process_start_time_seconds", [], process.create_time()
        yield "process_threads", [], process.num_threads()
    throttling = hardware.cpu_throttling()
    if throttling is not None:
        num_periods, seconds = throttling
        yield PREFIX + "cgroup_throttled_periods_total", [], num_periods
        yield PREFIX + "cgroup_throttled_seconds_total", [], seconds


def _read_gpus() -> Iterator[tuple[str, list[str], float]]:
    for reading in gpu.read():
        labels = [str(reading.number)]
        if reading.utilization is not None:
            yield PREFIX + "gpu_utilization", labels, reading.utilization
        yield PREFIX + "gpu_memory_used_bytes", labels, reading.memory_used_bytes
        yield PREFIX + "gpu_memory_total_bytes", labels, reading.memory_total_bytes


def _family(description: Description) -> GaugeMetricFamily | CounterMetricFamily:
    kind = CounterMetricFamily if description.type == "counter" else GaugeMetricFamily
    return kind(description.name, description.help, labels=description.labels)
