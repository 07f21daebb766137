"""One reading of a server's /metrics, and what lies between two of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from pocketlm.errors import ConfigError, PocketLMError
from pocketlm.server.state_metrics import PREFIX

TIMEOUT_S = 10.0

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """The samples of /metrics by name and labels, and when they were read."""

    at_s: float
    samples: Mapping[tuple[str, Labels], float]

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, frozenset(labels.items())))

    @property
    def start_s(self) -> float | None:
        """When the process of the server started."""
        return self.value("process_start_time_seconds")

    def label_values(self, name: str, label: str) -> list[str]:
        """The values that a label of a metric takes."""
        return [dict(labels)[label] for found, labels in self.samples if found == name]


class Span:
    """What a server did between two scrapes."""

    def __init__(self, first: Scrape, last: Scrape) -> None:
        self._first, self._last = first, last
        self.seconds = last.at_s - first.at_s

    def increase(self, name: str, **labels: str) -> float | None:
        """How much a counter grew; None if there is no such counter. One that fell began again at 0."""
        last = self._last.value(name, **labels)
        if last is None:
            return None
        first = self._first.value(name, **labels) or 0.0
        return last - first if last >= first else last

    def rate(self, name: str, **labels: str) -> float | None:
        """The increase per second."""
        increase = self.increase(name, **labels)
        return None if increase is None else increase / self.seconds

    def share(self, part: str, *whole: str, **labels: str) -> float | None:
        """The increase of one counter as a share of that of all of `whole`; None if they did not grow."""
        total = sum(self.increase(name, **labels) or 0.0 for name in whole)
        return (self.increase(part, **labels) or 0.0) / total if total else None

    def quantiles(self, name: str, shares: tuple[float, ...], **labels: str) -> list[float] | None:
        """Of what a histogram observed; None if it was nothing."""
        bounds = self._last.label_values(f"{name}_bucket", "le")
        counts = sorted(
            (float(bound), self.increase(f"{name}_bucket", le=bound, **labels) or 0.0)
            for bound in dict.fromkeys(bounds)
        )
        if not counts or not counts[-1][1]:
            return None
        return [_quantile(counts, share) for share in shares]


def _quantile(counts: list[tuple[float, float]], share: float) -> float:
    """As Prometheus's histogram_quantile has it: straight lines between the upper bounds of buckets."""
    rank = share * counts[-1][1]
    lower, below = 0.0, 0.0
    for upper, count in counts:
        if count >= rank and count > below:
            if upper == math.inf:
                return lower
            return lower + (upper - lower) * (rank - below) / (count - below)
        lower, below = upper, count
    return lower


def scraper(client: httpx.Client) -> Callable[[], Scrape]:
    """What reads the /metrics of a server. PocketLMError, ConfigError."""
    address = str(client.base_url).rstrip("/")

    def scrape() -> Scrape:
        try:
            response = client.get("/metrics")
        except httpx.UnsupportedProtocol:
            raise ConfigError(f"url: {address!r} is no address, such as http://127.0.0.1:5000") from None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise PocketLMError(f"the server at {address} does not answer: {reason}") from None
        if response.status_code in (401, 403):
            raise PocketLMError(f"the server at {address} asks for a key: give --api-key or POCKETLM_API_KEY")
        if response.status_code != 200 or PREFIX not in response.text:
            raise PocketLMError(
                f"{address}/metrics has no metrics of pocketlm (status {response.status_code}); "
                "is it a pocketlm server?"
            )
        return parse(response.text)

    return scrape


def parse(text: str) -> Scrape:
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return Scrape(time.monotonic(), samples)


def open_client(url: str, api_key: str | None) -> httpx.Client:
    """A client of the server at this address; a trailing /v1 does no harm. ConfigError."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        return httpx.Client(base_url=url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=TIMEOUT_S)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ConfigError(f"url: {url!r} is no address: {error}") from None
