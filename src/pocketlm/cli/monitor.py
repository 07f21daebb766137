"""pocketlm monitor: what a model costs on this machine, or what a running server is doing."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlm.cli.flags import config_flags
from pocketlm.cli.output import note, print_json, print_table
from pocketlm.config import EngineConfig, load_config
from pocketlm.errors import ConfigError, ModelLoadError
from pocketlm.hub import SHAPE_PREFIX

if TYPE_CHECKING:
    import httpx

    from pocketlm.cli.server_figures import ServerFigures

DEFAULT_INTERVAL_S = 1.0
WINDOW_S = 30.0  # of what the quantiles are made: in one interval there may be few requests, or none


@config_flags(EngineConfig)
def monitor(
    model: Annotated[str | None, typer.Argument(help="bundled, a local folder or a Hub id.")] = None,
    *,
    shape: Annotated[
        str | None,
        typer.Option(
            help="gpt2, distilgpt2, gpt2-medium, gpt2-large or gpt2-xl: random weights of that size, nothing "
            "downloaded."
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Text that the model continues.")] = "Machine learning is",
    max_tokens: Annotated[int, typer.Option(help="New tokens.")] = 50,
    url: Annotated[
        str | None, typer.Option(help="Watch the pocketlm server at this address instead, until Ctrl-C.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="POCKETLM_API_KEY", help="The key that the server asks for.")
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option(min=0.05, max=3600, help="Seconds between two looks at the server. Default: 1."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Watch the server for one interval only.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; of a server, one each interval.")
    ] = False,
    flags: dict[str, Any],
) -> None:
    """Show what a model costs, or watch a running server.

    Memory before and after loading, times, and tokens a second; of a server what its /metrics say.

    The model runs in a process of its own; memory is resident memory in MiB (2^20 bytes).
    """
    if model is not None and shape is not None:
        raise ConfigError("give a model or --shape, not both")
    name = model if shape is None else SHAPE_PREFIX + shape
    if url is None:
        if interval is not None:
            raise ConfigError("interval: it is for watching a server; give --url, too")
        _monitor_model(name, flags, prompt, max_tokens, json)
        return
    given = [flag for flag, value in {"model": name, **flags}.items() if value is not None]
    if given:
        raise ConfigError(f"{given[0]} is for a model in place; with --url the server has its own settings")
    _monitor_server(url, api_key, interval or DEFAULT_INTERVAL_S, once, json)


def _monitor_model(name: str | None, flags: dict[str, Any], prompt: str, max_tokens: int, json: bool) -> None:
    from pocketlm.cli.measure_apart import measure_apart
    from pocketlm.cli.visible import visible
    from pocketlm.server.protocol import GenerateRequest

    [first, *_], config, _ = load_config({"model": name and [name], **flags})
    request = GenerateRequest.from_json({"prompt": prompt, "max_tokens": max_tokens})
    row = measure_apart(first, config, request.prompt, max_tokens, lambda stage: note(f"{stage} {first} ..."))
    if not row["ok"]:
        raise ModelLoadError(row["error"])
    if json:
        print_json(row)
        return
    print_table(
        [
            ("model", f"{visible(first)}, {row['parameters']:,} parameters, {row['dtype']}"),
            ("memory before load", f"{row['memory_before_mib']:.1f} MiB"),
            ("memory after load", f"{row['memory_after_mib']:.1f} MiB"),
            ("memory of the model", f"{row['memory_mib']:.1f} MiB"),
            ("load time", f"{row['load_s']:.2f} s"),
            ("inference time", f"{row['inference_s']:.2f} s for {row['num_tokens']} tokens"),
            ("memory at inference", f"{row['memory_during_mib']:.1f} MiB"),
            ("peak memory", f"{row['peak_memory_mib']:.1f} MiB"),
            ("CPU at inference", f"{row['processors_used']:.2f} processors"),
            ("tokens per second", f"{row['tokens_per_second']:.1f}"),
            ("output", visible(request.prompt + row["output"])),
        ]
    )


def _monitor_server(url: str, api_key: str | None, interval_s: float, once: bool, json: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from pocketlm.cli.scrape import open_client
    from pocketlm.cli.server_view import server_view

    is_terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if is_terminal else 80)
    with open_client(url, api_key) as client:
        watched = _watch(client, interval_s, once)
        if json:
            for figures in watched:
                print_json({"url": url, **asdict(figures)})
                sys.stdout.flush()
        elif once or not is_terminal:
            for figures in watched:
                console.print(server_view(figures))
                sys.stdout.flush()
        else:
            note(f"watching {url}; Ctrl-C ends it")
            with Live(console=console, auto_refresh=False) as live:
                for figures in watched:
                    live.update(server_view(figures), refresh=True)


def _watch(client: httpx.Client, interval_s: float, once: bool) -> Iterator[ServerFigures]:
    from pocketlm.cli.scrape import scraper
    from pocketlm.cli.server_figures import server_figures

    scrape = scraper(client)
    window = deque([scrape()])
    while True:
        time.sleep(interval_s)
        latest = scrape()
        if latest.start_s != window[-1].start_s:  # another process at the same address
            window.clear()
        window.append(latest)
        while len(window) > 2 and window[1].at_s <= latest.at_s - WINDOW_S:
            window.popleft()
        if len(window) > 1:
            yield server_figures(list(window))
            if once:
                return
