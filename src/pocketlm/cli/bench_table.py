"""The table of `pocketlm bench`: a row for each figure, a column for each level, so that it stays narrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pocketlm.bench.figures import PERCENTILES, Figures
from pocketlm.cli.charts import readable


def by_model(results: Sequence[Figures]) -> dict[str, list[Figures]]:
    """The levels of each model, in the order in which they were run."""
    models: dict[str, list[Figures]] = {}
    for figures in results:
        models.setdefault(figures.model, []).append(figures)
    return models


def rows(levels: Sequence[Figures]) -> list[tuple[str, ...]]:
    """The cells of one model's table, the first row its heading."""
    return [(name, *cells) for name, cells in _rows(levels) if any(cells)]


def _rows(levels: Sequence[Figures]) -> Iterator[tuple[str, list[str]]]:
    if levels[0].rate is None:
        yield "clients", [str(f.clients) for f in levels]
    else:
        yield "requests/s sent", [f"{f.rate:g}" for f in levels]
    yield "complete", [f"{f.complete} of {f.requests}" for f in levels]
    yield "unfinished", [str(f.unfinished or "") for f in levels]
    for kind in dict.fromkeys(kind for f in levels for kind in f.errors):
        yield f"error {kind}", [str(f.errors.get(kind, "")) for f in levels]
    yield "tokens/s", [readable(f.tokens_per_s) for f in levels]
    yield "requests/s", [readable(f.requests_per_s) for f in levels]
    yield "goodput", [_shown(f.goodput) for f in levels]
    yield "within target", ["" if f.good_percent is None else f"{f.good_percent:g} %" for f in levels]
    times = (
        ("TTFT", [f.ttft_ms for f in levels]),
        ("ITL", [f.itl_ms for f in levels]),
        ("E2E", [f.e2e_ms for f in levels]),
    )
    for name, found in times:
        for p in PERCENTILES:
            yield f"{name} p{p} ms", [_shown(None if t is None else t[f"p{p}"]) for t in found]


def _shown(value: float | None) -> str:
    return "" if value is None else readable(value)
