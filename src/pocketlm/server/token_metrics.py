"""What is counted for every token: plain numbers until Prometheus asks.

Its library's own counters take a lock, and its histograms look through their buckets, at each token.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pocketlm.server.state_metrics import PREFIX, Description

# Upper bounds of the buckets: from a small model on a fast machine to a large one under a crowd.
STEP_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
LABELS = ("model_name",)

TOKENS = Description(PREFIX + "generation_tokens_total", "counter", "Tokens generated.", LABELS)
INTER_TOKEN_S = Description(
    PREFIX + "inter_token_latency_seconds", "histogram", "From one token of an answer to the next.", LABELS
)


class TokenCounts:
    """Of one model; its methods are called in the event loop."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_gaps = [0] * (len(STEP_S) + 1)  # in each bucket; the last one has no bound
        self.gaps_s = 0.0  # their sum

    def add(self, num_tokens: int) -> None:
        self.num_tokens += num_tokens

    def observe_gap(self, seconds: float) -> None:
        self.num_gaps[bisect_left(STEP_S, seconds)] += 1
        self.gaps_s += seconds


class TokenCollector(Collector):
    """One scrape's reading of the counts of all models."""

    def __init__(self, counts: Mapping[str, TokenCounts]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        tokens = CounterMetricFamily(TOKENS.name, TOKENS.help, labels=LABELS)
        gaps = HistogramMetricFamily(INTER_TOKEN_S.name, INTER_TOKEN_S.help, labels=LABELS)
        for name, counts in self._counts.items():
            tokens.add_metric([name], counts.num_tokens)
            bounds = map(floatToGoString, (*STEP_S, float("inf")))
            buckets = list(zip(bounds, accumulate(counts.num_gaps), strict=True))
            gaps.add_metric([name], buckets, counts.gaps_s)
        yield tokens
        yield gaps
