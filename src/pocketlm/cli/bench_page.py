"""The page of `pocketlm bench --html`: one file with pictures, without scripts or a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from pocketlm.bench.figures import Figures
from pocketlm.cli.bench_table import by_model, rows
from pocketlm.cli.charts import Series, line_chart

TEMPLATE = Path(__file__).with_name("bench.html.jinja")

Pick = Callable[[Figures], float | None]


def bench_page(results: Sequence[Figures], settings: Iterable[str]) -> str:
    """A page about the levels of all models; `settings` are the lines that say how it was measured."""
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        settings=settings,
        charts=[Markup(chart) for chart in _charts(results)],  # charts.py has escaped what is in them
        tables=[(model, rows(levels)) for model, levels in by_model(results).items()],
    )


def _charts(results: Sequence[Figures]) -> Iterable[str]:
    yield from _chart("Throughput", "tokens per second", results, [("", lambda f: f.tokens_per_s)])
    if any(f.goodput is not None for f in results):
        picks: list[tuple[str, Pick]] = [
            ("within target", lambda f: f.goodput),
            ("all", lambda f: f.requests_per_s),
        ]
        yield from _chart("Goodput", "requests per second", results, picks)
    yield from _chart("Time to first token", "ms", results, _p50_and_p99(lambda f: f.ttft_ms))
    yield from _chart("Inter-token latency", "ms", results, _p50_and_p99(lambda f: f.itl_ms))
    yield from _chart("End to end", "ms", results, _p50_and_p99(lambda f: f.e2e_ms))


def _p50_and_p99(times: Callable[[Figures], dict[str, float] | None]) -> list[tuple[str, Pick]]:
    def pick(name: str) -> Pick:
        return lambda f: (times(f) or {}).get(name)

    return [(name, pick(name)) for name in ("p50", "p99")]


def _chart(
    title: str, y_label: str, results: Sequence[Figures], picks: Sequence[tuple[str, Pick]]
) -> Iterable[str]:
    """One line for each model and pick; no chart if there is not one figure."""
    series = []
    for model, levels in by_model(results).items():
        for name, pick in picks:
            points = [(x, y) for f in levels if (y := pick(f)) is not None and (x := _x(f)) is not None]
            if points:
                series.append(Series(f"{model} {name}".strip(), points))
    if series:
        x_label = "requests per second sent" if results[0].rate is not None else "clients at once"
        yield line_chart(title, x_label, y_label, series)


def _x(figures: Figures) -> float | None:
    return figures.clients if figures.rate is None else figures.rate
