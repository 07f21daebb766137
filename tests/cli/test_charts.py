"""Charts: what a reader of the picture relies on, read back from its SVG."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from pocketlm.cli.charts import WIDTH, Series, bar_chart, line_chart, readable

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def bar_widths(svg: str) -> list[float]:
    shapes = ElementTree.fromstring(svg).iter(f"{SVG}rect")
    return [float(shape.attrib["width"]) for shape in shapes if shape.attrib["class"] != "paper"]


def dots(svg: str, series: int) -> list[tuple[float, float]]:
    shapes = ElementTree.fromstring(svg).iter(f"{SVG}circle")
    return [
        (float(shape.attrib["cx"]), float(shape.attrib["cy"]))
        for shape in shapes
        if shape.attrib["class"] == f"fill{series}"
    ]


def test_bars_are_as_long_as_their_figures_say() -> None:
    svg = bar_chart("Memory", [("a", 100.0), ("b", 25.0), ("c", None), ("d", 0.0)])
    first, second = bar_widths(svg)
    assert second == pytest.approx(first / 4, rel=0.01)
    assert texts(svg) == ["Memory", "a", "100", "b", "25", "c", "failed", "d", "0"]


def test_without_a_figure_there_is_a_chart_all_the_same() -> None:
    assert texts(bar_chart("Memory", [("a", None)])) == ["Memory", "a", "failed"]


def test_a_long_name_keeps_its_end_and_stays_within_the_picture() -> None:
    [_, name, _] = texts(bar_chart("Memory", [("folder/" * 40 + "model", 1.0)]))
    assert name.startswith("…") and name.endswith("folder/model") and len(name) < 60


def test_lines_lie_where_their_points_say() -> None:
    svg = line_chart(
        "Throughput",
        "requests at a time",
        "tokens/s",
        [Series("one", [(1, 100), (2, 200), (4, 400)]), Series("two", [(4, 0), (1, 400)])],
    )
    one, two = dots(svg, 0), dots(svg, 1)
    assert one[2][1] == two[0][1] and two[1][1] > one[0][1]  # equal figures are equally high, 0 is lowest
    assert one[0][1] - one[1][1] == pytest.approx((one[0][1] - one[2][1]) / 3, rel=0.01)
    assert one[0][0] == two[0][0] and one[2][0] == two[1][0]
    assert {"Throughput", "requests at a time", "tokens/s", "one", "two", "1", "2", "4"} <= set(texts(svg))


def test_a_sweep_that_doubles_is_spaced_evenly() -> None:
    points = [(x, 1.0) for x in (1, 2, 4, 8, 16)]
    xs = [x for x, _ in dots(line_chart("t", "x", "y", [Series("s", points)]), 0)]
    steps = [right - left for left, right in pairwise(xs)]
    assert steps == pytest.approx([steps[0]] * 4, rel=0.01)


@pytest.mark.parametrize("points", [[(3.0, 0.0)], [(0.0, 5.0)], [(1.0, 1e-4), (1e6, 1e9)]])
def test_unusual_points_stay_within_the_picture(points: list[tuple[float, float]]) -> None:
    svg = line_chart("t", "x", "y", [Series("s", points)])
    height = float(ElementTree.fromstring(svg).attrib["viewBox"].split()[3])
    assert all(0 <= x <= WIDTH and 0 <= y <= height for x, y in dots(svg, 0))


def test_no_points_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        line_chart("t", "x", "y", [Series("s", [])])


def test_names_are_text_and_never_markup() -> None:
    name = "<script>alert(1)</script>&\x1b[31m"
    for svg in (bar_chart(name, [(name, 1.0)]), line_chart(name, name, name, [Series(name, [(1, 1)])])):
        assert "<script" not in svg and "\x1b" not in svg
        assert any("<script>" in text for text in texts(svg))


def test_it_stands_alone() -> None:
    svg = line_chart("t", "x", "y", [Series("s", [(1, 1)])])
    assert "prefers-color-scheme:dark" in svg
    assert svg.count("http") == 1  # the name of SVG itself


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234.4, "1,234"),
        (999.6, "1,000"),
        (56.78, "56.8"),
        (2.5, "2.5"),
        (0.01234, "0.0123"),
        (8, "8"),
    ],
)
def test_readable(value: float, text: str) -> None:
    assert readable(value) == text
