"""A server's figures for the eye: a panel for each loaded model and one for the process."""

from __future__ import annotations

from rich.columns import Columns
from rich.console import RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pocketlm.cli.server_figures import GpuFigures, ModelFigures, Quantiles, ServerFigures
from pocketlm.cli.visible import visible

PANEL_WIDTH = 38  # so that two fit beside each other in 80 columns, and one in 40
BAR_WIDTH = 10
SHOWN_QUANTILES = ("p50", "p99")
NOTHING = "-"


def server_view(figures: ServerFigures) -> Columns:
    panels = [_panel(name, _model_rows(model)) for name, model in figures.models.items()]
    return Columns([*panels, _panel("server", _server_rows(figures))], padding=(0, 1))


def _panel(title: str, rows: dict[str, RenderableType]) -> Panel:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(justify="right", no_wrap=True)
    for name, value in rows.items():
        grid.add_row(name, value)
    return Panel(grid, title=Text(visible(title)), width=PANEL_WIDTH)


def _model_rows(model: ModelFigures) -> dict[str, RenderableType]:
    return {
        "running": str(model.running),
        "waiting": Text(str(model.waiting), style="yellow" if model.waiting else ""),
        "requests/s": f"{model.requests_per_second:.1f}",
        "tokens/s": Text(f"{model.tokens_per_second:.1f}", style="bold green"),
        "prompt tokens/s": f"{model.prompt_tokens_per_second:.1f}",
        **_latency_rows("first token", model.ttft_s),
        **_latency_rows("next token", model.inter_token_s),
        "KV cache": _bar(model.kv_cache_usage),
        "prefix hits": _percent(model.prefix_cache_hit_rate),
        "memory": f"{model.memory_mib:.0f} MiB",
        "loaded in": f"{model.load_s:.2f} s",
    }


def _latency_rows(name: str, quantiles: Quantiles | None) -> dict[str, RenderableType]:
    return {
        f"{name} {key}": NOTHING if quantiles is None else _seconds(quantiles[key]) for key in SHOWN_QUANTILES
    }


def _server_rows(figures: ServerFigures) -> dict[str, RenderableType]:
    rows: dict[str, RenderableType] = {}
    if figures.processors_used is not None:
        rows["CPU"] = f"{figures.processors_used:.2f} processors"
    if figures.throttled_s_per_s is not None:
        rows["throttled"] = Text(
            f"{figures.throttled_s_per_s:.2f} s/s", style="red" if figures.throttled_s_per_s else ""
        )
    if figures.memory_mib is not None:
        rows["memory"] = f"{figures.memory_mib:.0f} MiB"
    rows["open streams"] = str(figures.streams_open)
    rows["kept answers hit"] = _percent(figures.response_cache_hit_rate)
    if figures.num_models_unloaded:
        rows["models unloaded"] = str(figures.num_models_unloaded)
    for number, gpu in figures.gpus.items():
        rows |= _gpu_rows(number, gpu)
    return rows


def _gpu_rows(number: str, gpu: GpuFigures) -> dict[str, RenderableType]:
    used, total = gpu.memory_used_mib / 1024, gpu.memory_total_mib / 1024
    return {
        f"GPU {number}": NOTHING if gpu.utilization is None else _bar(gpu.utilization),
        f"GPU {number} memory": f"{used:.1f} of {total:.1f} GiB",
    }


def _bar(share: float) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=1, completed=share, width=BAR_WIDTH), f"{share:.0%}")
    return grid


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.0%}"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
