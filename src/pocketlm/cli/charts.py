"""Charts as SVG text: bars and lines that need no script, in the reader's light or dark colours.

The text is a picture of its own, and may as well stand inside an HTML page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

WIDTH = 440  # little more than a telephone's, so that text stays readable there
MARGIN = 12
LINE = 18  # from one line of text to the next
CHARACTER = 7.3  # of the font in STYLE: a wide one, since each system has its own
BAR_HEIGHT = 12
VALUE_WIDTH = 84  # kept free for the figure behind the longest bar
PLOT_HEIGHT = 190

# The colours differ in lightness too, and lines in their dashes: nobody has to tell red from green.
LIGHT = ("#2a6fc9", "#d9601a", "#12875c", "#6b4fc4", "#c73a4b", "#7a6a00")
DARK = ("#5b9ff0", "#f0894a", "#35bd8a", "#a794f5", "#f07a86", "#c9b43a")
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2", "12 4")

STYLE = """
.chart{font:13px system-ui,sans-serif;font-variant-numeric:tabular-nums}
.chart .paper{fill:#fff}.chart text{fill:#1f2328}.chart .title{font-weight:600}
.chart .faint,.chart .tick{fill:#57606a}.chart .tick{font-size:12px}
.chart .grid{stroke:#d8dee4}.chart .axis{stroke:#8c959f}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round}
"""
DARK_STYLE = """
.chart .paper{fill:#161b22}.chart text{fill:#e6edf3}.chart .faint,.chart .tick{fill:#a3adb8}
.chart .grid{stroke:#30363d}.chart .axis{stroke:#6e7681}
"""


@dataclass(frozen=True)
class Series:
    """One line: its name, and its points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


def bar_chart(title: str, bars: Sequence[tuple[str, float | None]]) -> str:
    """A bar for each name, one below the other; None is a figure that there is not."""
    heading = 2 * LINE
    height = heading + len(bars) * (LINE + BAR_HEIGHT + 8) + MARGIN // 2
    svg = _canvas(title, height)
    longest = max((value for _, value in bars if value is not None), default=0)
    room = WIDTH - 2 * MARGIN - VALUE_WIDTH
    for i, (name, value) in enumerate(bars):
        top = heading + i * (LINE + BAR_HEIGHT + 8)
        _text(svg, MARGIN, top + 12, _cut(name, WIDTH - 2 * MARGIN))
        length = 0.0 if value is None or value <= 0 else max(1.0, room * value / longest)
        if length:
            _add(svg, "rect", "fill0", x=MARGIN, y=top + LINE, width=length, height=BAR_HEIGHT, rx=2)
        shown = "failed" if value is None else readable(value)
        kind = "faint" if value is None else ""
        _text(svg, MARGIN + (length + 6 if length else 0), top + LINE + 11, shown, kind)
    return _written(svg)


def line_chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """Lines over a sweep. x is spaced by its logarithm if it grows by factors; y begins at 0."""
    xs = sorted({x for one in series for x, _ in one.points})
    if not xs:
        raise ValueError("a line chart needs at least one point")
    ticks = _ticks(max(y for one in series for _, y in one.points))
    left = MARGIN + CHARACTER * max(len(readable(tick)) for tick in ticks) + 6
    right = WIDTH - MARGIN - CHARACTER * len(readable(xs[-1])) / 2
    places = _legend_places([one.name for one in series])
    legend_top = 2.0 * LINE
    top = legend_top + (places[-1][1] + 1) * LINE + LINE + 10  # below it, a line for the name of y
    bottom = top + PLOT_HEIGHT

    svg = _canvas(title, bottom + 2 * LINE + MARGIN)
    for i, (one, (x, row)) in enumerate(zip(series, places, strict=True)):
        y = legend_top + row * LINE
        _line(svg, f"line stroke{i % len(LIGHT)}", x, y + 8, x + 22, y + 8)
        _text(svg, x + 28, y + 12, one.name)

    def across(x: float) -> float:
        return left + (right - left) * _share(x, xs)

    def up(y: float) -> float:
        return bottom - PLOT_HEIGHT * y / ticks[-1]

    _text(svg, MARGIN, top - 14, y_label, "faint")
    for tick in ticks:
        _line(svg, "grid" if tick else "axis", left, up(tick), right, up(tick))
        _text(svg, left - 6, up(tick) + 4, readable(tick), "tick", anchor="end")
    for x in _apart(xs, across):
        _line(svg, "axis", across(x), bottom, across(x), bottom + 4)
        _text(svg, across(x), bottom + LINE, readable(x), "tick", anchor="middle")
    _text(svg, (left + right) / 2, bottom + 2 * LINE, x_label, "faint", anchor="middle")

    for i, one in enumerate(series):
        points = [(across(x), up(y)) for x, y in sorted(one.points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        _add(svg, "polyline", f"line stroke{i % len(LIGHT)}", points=path)
        for (x, y), (real_x, real_y) in zip(points, sorted(one.points), strict=True):
            dot = _add(svg, "circle", f"fill{i % len(LIGHT)}", cx=x, cy=y, r=3.5)
            SubElement(dot, "title").text = _printable(
                f"{one.name}: {readable(real_y)} at {readable(real_x)}"
            )
    return _written(svg)


def readable(value: float) -> str:
    """A figure with three digits that count, or all before the point: 1,234 56.7 8.9 0.012."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def _ticks(largest: float) -> list[float]:
    """Round figures from 0 to one that is not below the largest."""
    if largest <= 0:
        return [0.0, 1.0]
    unit = 10.0 ** math.floor(math.log10(largest))
    step = next(unit * part for part in (0.2, 0.25, 0.5, 1, 2) if largest <= 5 * unit * part)
    return [i * step for i in range(math.ceil(largest / step - 1e-9) + 1)]


def _share(x: float, xs: list[float]) -> float:
    """Where x lies between the first (0) and the last (1)."""
    low, high = xs[0], xs[-1]
    if low == high:
        return 0.5
    if low > 0 and high / low >= 8:
        return math.log(x / low) / math.log(high / low)
    return (x - low) / (high - low)


def _apart(xs: list[float], across: Callable[[float], float]) -> list[float]:
    """The figures of the x axis that have room beside one another."""
    shown: list[float] = []
    end = -math.inf
    for x in xs:
        half = CHARACTER * len(readable(x)) / 2
        if across(x) - half >= end + 6:
            shown.append(x)
            end = across(x) + half
    return shown


def _legend_places(names: Sequence[str]) -> list[tuple[float, int]]:
    """Where each name of the legend begins, and in which row."""
    places: list[tuple[float, int]] = []
    x, row = float(MARGIN), 0
    for name in names:
        width = 28 + CHARACTER * len(name) + 16
        if x > MARGIN and x + width > WIDTH:
            x, row = float(MARGIN), row + 1
        places.append((x, row))
        x += width
    return places


def _canvas(title: str, height: float) -> Element:
    svg = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {height:g}",
            "class": "chart",
            "role": "img",
            "aria-label": _printable(title),
        },
    )
    SubElement(svg, "style").text = _style()
    _add(svg, "rect", "paper", width=WIDTH, height=height, rx=6)
    _text(svg, MARGIN, 22, title, "title")
    return svg


def _style() -> str:
    def colours(palette: Sequence[str]) -> str:
        return "".join(
            f".chart .fill{i}{{fill:{colour}}}.chart .stroke{i}{{stroke:{colour}}}"
            for i, colour in enumerate(palette)
        )

    dashes = "".join(f".chart .stroke{i}{{stroke-dasharray:{dash}}}" for i, dash in enumerate(DASHES))
    dark = DARK_STYLE + colours(DARK)
    return f"{STYLE}{colours(LIGHT)}{dashes}@media(prefers-color-scheme:dark){{{dark}}}".replace("\n", "")


def _add(parent: Element, tag: str, kind: str, **attributes: float | str) -> Element:
    """A shape; `kind` is its class in the style."""
    shown = {
        name: value if isinstance(value, str) else f"{round(value, 1):g}"
        for name, value in attributes.items()
    }
    return SubElement(parent, tag, {"class": kind, **shown})


def _line(svg: Element, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
    _add(svg, "line", kind, x1=x1, y1=y1, x2=x2, y2=y2)


def _text(svg: Element, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
    element = _add(svg, "text", kind, x=x, y=y)
    if anchor != "start":
        element.set("text-anchor", anchor)
    element.text = _printable(text)


def _cut(text: str, width: float) -> str:
    """The end of a text that is too long: the end of a path says more than its beginning."""
    most = int(width / CHARACTER)
    return text if len(text) <= most else "…" + text[1 - most :]


def _printable(text: str) -> str:
    """XML has no way to write most control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def _written(svg: Element) -> str:
    return tostring(svg, encoding="unicode")
