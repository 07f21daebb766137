"""The Grafana dashboard asks for metrics that there are, in the way that their type allows."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from pocketlm.server.metrics import Metrics

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "pocketlm.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
METRICS = {name: (type, set(labels)) for name, type, _, labels in Metrics.describe()}

SCRAPED = {"job", "instance"}  # labels that Prometheus adds
QUERY_NAME = re.compile(r"\b(?:pocketlm:|process_)\w+")
SERIES = re.compile(r"(?P<before>rate\()?(?P<name>(?:pocketlm:|process_)\w+)\{(?P<selector>[^}]*)\}")

QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
    for panel in PANELS
    for target in panel.get("targets", [])
]
VARIABLES = [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]


def metric_of(series: str) -> tuple[str, str, set[str]]:
    """The metric's name, its type, and the labels of the series; a histogram has three kinds of them."""
    base = re.sub(r"_(bucket|sum|count)$", "", series)
    if METRICS.get(base, ("", set()))[0] == "histogram" and base != series:
        return base, "histogram", METRICS[base][1] | ({"le"} if series.endswith("_bucket") else set())
    assert series in METRICS, f"there is no metric {series}"
    assert METRICS[series][0] != "histogram", f"{series} has no series of its own name"
    return series, *METRICS[series]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_fits_the_metrics_it_asks_for(query: str) -> None:
    found = list(SERIES.finditer(query))
    assert len(found) == len(QUERY_NAME.findall(query)) > 0  # each is chosen by job and instance
    labels_of_all: set[str] = set()
    for series in found:
        _, type, labels = metric_of(series["name"])
        # A counter means something only as a rate, a gauge only as it is.
        assert (series["before"] is not None) == (type != "gauge")
        selected = set(re.findall(r"(\w+)=~", series["selector"]))
        assert selected >= SCRAPED and selected <= labels | SCRAPED
        labels_of_all |= labels
    for grouped in re.findall(r"by \(([^)]*)\)", query):
        assert set(re.split(r",\s*", grouped)) <= labels_of_all | SCRAPED
    if "histogram_quantile" in query:
        assert "by (le)" in query and "_bucket{" in query


@pytest.mark.parametrize("query", [*(param.values[0] for param in QUERIES), *VARIABLES])
def test_brackets_match(query: object) -> None:
    left = re.sub(r'"[^"]*"|[^(){}\[\]]', "", str(query))
    while left != (shorter := re.sub(r"\(\)|\{\}|\[\]", "", left)):
        left = shorter
    assert left == ""


def test_the_variables_ask_for_metrics_that_there_are() -> None:
    for query in VARIABLES:
        found = re.fullmatch(r"label_values\(([\w:]+)(?:\{.*\})?, (\w+)\)", query)
        assert found, query
        assert found[2] in metric_of(found[1])[2] | SCRAPED
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS))) - {"__rate_interval"}
    assert used <= names and "datasource" in used


def test_the_data_source_is_the_one_that_is_chosen() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["datasource"] == chosen
            assert all(target["datasource"] == chosen for target in panel["targets"])


def test_panels_have_names_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)
