"""Asked: what a request says about how it is served; how its tokens are chosen is in SamplingParams."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    model: str | None = None  # None: the server's first one
    stream: bool = False
    include_usage: bool = False  # in a stream, as its last event
    timeout_s: float | None = None
    use_cache: bool | None = None  # None: as the server is configured
    include_timing: bool = False
    user: str | None = None
    ignored: tuple[str, ...] = ()  # fields that a lenient server dropped; fit for a header
    given: frozenset[str] = frozenset()  # the fields that the request held
