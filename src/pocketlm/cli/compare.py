"""pocketlm compare: what models cost on this machine, side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlm.cli.flags import config_flags
from pocketlm.cli.measure_apart import STAGES, Row, measure_apart
from pocketlm.cli.output import note, print_json
from pocketlm.config import EngineConfig, load_config
from pocketlm.errors import ConfigError
from pocketlm.hub import SHAPE_PREFIX

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FIGURES = {  # field of a row -> its heading
    "parameters": "params",
    "load_s": "load s",
    "memory_mib": "memory MiB",
    "peak_memory_mib": "peak MiB",
    "inference_s": "inference s",
    "tokens_per_second": "tokens/s",
}
CHARTS = {  # field of a row -> title of its chart
    "tokens_per_second": "Tokens per second",
    "memory_mib": "Memory of the model, MiB",
    "load_s": "Load time, seconds",
    "inference_s": "Inference time, seconds",
}
PIPE_WIDTH = 100
OUTPUT_CHARACTERS = 200  # of each model's text in the terminal


@config_flags(EngineConfig)
def compare(
    model: Annotated[
        list[str] | None, typer.Argument(help="bundled, local folders or Hugging Face Hub ids.")
    ] = None,
    *,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="gpt2, distilgpt2, gpt2-medium, gpt2-large or gpt2-xl: random weights of that size, nothing "
            "downloaded; may be given many times."
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Text that each model continues.")] = "Kubernetes is a",
    max_tokens: Annotated[int, typer.Option(help="New tokens of each model.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page with charts into this file.")] = None,
    flags: dict[str, Any],
) -> None:
    """Compare the cost of models and what they write.

    They are loaded one after the other, each in a process of its own.
    The exit code is 1 if one of them failed; the others are measured all the same.
    """
    names = [*(model or []), *(f"{SHAPE_PREFIX}{name}" for name in shape or [])]
    names_or_default, config, _ = load_config({"model": names or None, **flags})

    from pocketlm import __version__, hardware, kernels
    from pocketlm.cli.measure import SEED
    from pocketlm.loading import resolve_num_threads
    from pocketlm.server.protocol import GenerateRequest

    request = GenerateRequest.from_json({"prompt": prompt, "max_tokens": max_tokens})
    if html is not None:
        _check_writable(html)
    result: dict[str, Any] = {
        "prompt": request.prompt,
        "max_tokens": max_tokens,
        "seed": SEED,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "pocketlm": __version__,
        "cpu": hardware.cpu_model(),
        "num_threads": resolve_num_threads(config)[0],
        "isa": kernels.isa()[0],
        "models": _measure_all(names_or_default, config, prompt, max_tokens),
    }
    if html is not None:
        _write_page(html, result)
        note(f"wrote {html}")
    if json:
        print_json(result)
    else:
        _print(result)
    sys.exit(0 if all(row["ok"] for row in result["models"]) else 1)


def _measure_all(names: Iterable[str], config: EngineConfig, prompt: str, max_tokens: int) -> list[Row]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    names = list(names)
    rows = []
    progress = Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=2)),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
        expand=True,
    )
    with progress:
        task = progress.add_task("", total=len(STAGES) * len(names))
        for i, name in enumerate(names):

            def show(stage: str, name: str = name, i: int = i) -> None:
                progress.update(
                    task, description=f"{stage} {name}", completed=len(STAGES) * i + STAGES.index(stage)
                )
                if progress.disable:
                    note(f"{stage} {name} ({i + 1} of {len(names)}) ...")

            rows.append(measure_apart(name, config, prompt, max_tokens, show))
    return rows


def _check_writable(path: Path) -> None:
    """Before the work, not after it."""
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ConfigError(f"html: cannot write {path}; give a file in a folder that is there")


def _write_page(path: Path, result: dict[str, Any]) -> None:
    from jinja2 import Environment
    from markupsafe import Markup

    from pocketlm.cli.charts import bar_chart

    template = Path(__file__).with_name("compare.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    charts = [
        Markup(bar_chart(title, [(row["model"], row.get(field)) for row in result["models"]]))
        for field, title in CHARTS.items()
    ]
    try:
        path.write_text(
            page.render(**result, charts=charts, table=_table(result["models"])), encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(f"html: cannot write {path}: {error.strerror}") from None


def _table(rows: list[Row]) -> list[dict[str, str]]:
    """Heading -> what stands in that column, for each row."""
    return [{heading: _shown(row, field) for field, heading in FIGURES.items()} for row in rows]


def _shown(row: Row, field: str) -> str:
    from pocketlm.cli.charts import readable

    if not row["ok"]:
        return "-"
    return f"{readable(row[field] / 1e6)}M" if field == "parameters" else readable(row[field])


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    from pocketlm.cli.visible import visible

    rows = [{**row, "model": visible(row["model"])} for row in result["models"]]
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    _print_figures(console, rows)
    measured = [row for row in rows if row["ok"]]
    for field in ("tokens_per_second", "memory_mib"):
        if measured:
            console.print(Text(f"\n{CHARTS[field]}", style="bold"))
            console.print(_bars(console, measured, field))
    console.print()
    for row in rows:
        if row["ok"]:
            text = visible(" ".join((result["prompt"] + row["output"]).split()))
            text = text if len(text) <= OUTPUT_CHARACTERS else f"{text[:OUTPUT_CHARACTERS]}..."
            console.print(Text(f"{row['model']} ({row['dtype']}): ", style="bold") + text)
        else:
            console.print(Text(f"{row['model']}: ", style="bold red") + visible(row["error"]))


def _print_figures(console: Console, rows: list[Row]) -> None:
    """One row a model; or, in a narrow terminal, one line a figure."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for heading in FIGURES.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row, figures in zip(rows, _table(rows), strict=True):
        table.add_row(row["model"], *figures.values())
    without_bound = console.options.update(width=10_000)
    if console.measure(table, options=without_bound).maximum <= console.width:
        console.print(table)
        return
    for row, figures in zip(rows, _table(rows), strict=True):
        console.print(Text(row["model"], style="bold"))
        if not row["ok"]:
            console.print("  failed")
            continue
        lines = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for heading, figure in figures.items():
            lines.add_row(f"  {heading}", figure)
        console.print(lines)


def _bars(console: Console, rows: list[Row], field: str) -> Table:
    from rich.bar import Bar
    from rich.table import Table

    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, max_width=console.width // 3)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    largest = max(row[field] for row in rows) or 1
    for row in rows:
        grid.add_row(row["model"], Bar(size=largest, begin=0, end=row[field]), _shown(row, field))
    return grid
