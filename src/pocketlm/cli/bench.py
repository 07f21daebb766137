"""pocketlm bench: put a model under load and measure what its users would see."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketlm.cli.flags import config_flags
from pocketlm.cli.output import configure_logging, note, print_json, print_table
from pocketlm.config import EngineConfig, load_config
from pocketlm.errors import ConfigError, PocketLMError

if TYPE_CHECKING:
    from pocketlm.bench.figures import Figures
    from pocketlm.bench.load import Level
    from pocketlm.bench.plan import Plan
    from pocketlm.bench.sweep import Watch

DEFAULT_CLIENTS = (1, 4, 16)
LEAST_REQUESTS = 16  # at each level, if --requests does not say
REQUESTS_PER_CLIENT = 4
SECONDS_OF_ARRIVALS = 10
MAX_CLIENTS, MAX_RATE = 10_000, 100_000


@config_flags(EngineConfig)
def bench(
    *,
    url: Annotated[
        str | None,
        typer.Option(help="A running server with OpenAI's /v1/completions; default: the engine in place."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="bundled, a folder or a Hub id, or the server's name of a model; may be given many times."
        ),
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="Random weights of a size, e.g. gpt2; may be given many times.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="POCKETLM_API_KEY", help="The key that the server asks for.")
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Clients at once, in turn. Default: 1,4,16.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,...", help="Instead of clients: requests a second, arriving at random moments."
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Most requests at each level. Default: 4 for each client or 10 seconds of arrivals, "
            "but at least 16.",
        ),
    ] = None,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Longest time at each level.")
    ] = 60.0,
    prompt_words: Annotated[int, typer.Option(min=1, max=100_000, help="Words in each prompt.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=1, max=100_000, help="New tokens of each answer.")] = 64,
    warmup: Annotated[int, typer.Option(min=0, max=1000, help="Requests before each model is measured.")] = 4,
    target_ttft: Annotated[
        float | None, typer.Option(min=0, help="Goodput: most milliseconds to the first token.")
    ] = None,
    target_itl: Annotated[
        float | None, typer.Option(min=0, help="Goodput: most milliseconds from token to token, on average.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of the prompts and arrivals. With one seed twice a server may answer from its cache. "
            "Default: another one each time."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    flags: dict[str, Any],
) -> None:
    """Measure the engine, or a running server, under load.

    Clients ask again as soon as they have their answer; with --rate, requests come whether or not the
    answers keep up. The exit code is 1 if not one request was answered.
    """
    configure_logging(logging.WARNING)
    levels = _levels(concurrency, rate, requests, max_seconds)
    if html is not None and not html.absolute().parent.is_dir():
        raise ConfigError(f"html: there is no folder {html.parent} to write {html.name} in")

    from pocketlm.bench.figures import SLO
    from pocketlm.bench.plan import Plan

    has_target = target_ttft is not None or target_itl is not None
    plan = Plan(
        levels=levels,
        num_words=prompt_words,
        num_tokens=max_tokens,
        num_warmup=warmup,
        slo=SLO(target_ttft, target_itl) if has_target else None,
        seed=secrets.randbits(32) if seed is None else seed,
    )
    names = [*(model or []), *(f"shape:{name}" for name in shape or [])]
    if url is None:
        models, engine_config, _ = load_config({"model": names or None, **flags})
        note(f"the engine in place: {', '.join(models)}")
        results = _bench_engine(models, engine_config, plan)
    else:
        _refuse_beside_url(shape, flags)
        results = asyncio.run(_bench_server(url, api_key, names, plan))

    if html is not None:
        where = "the engine in place" if url is None else f"the server at {url}"
        _write_page(html, results, [f"measured on {where}", *plan.described()])
    if json:
        targets = {"target_ttft_ms": target_ttft, "target_itl_ms": target_itl}
        print_json(
            {
                "url": url,
                "prompt_words": prompt_words,
                "max_tokens": max_tokens,
                "seed": plan.seed,
                **targets,
                "levels": [asdict(figures) for figures in results],
            }
        )
    else:
        _print(results)
    if not any(figures.complete for figures in results):
        raise PocketLMError("not one request was answered; see the errors, or raise --max-seconds")


def _levels(
    concurrency: str | None, rate: str | None, num_requests: int | None, max_seconds: float
) -> tuple[Level, ...]:
    from pocketlm.bench.load import Level

    if rate is None:
        clients = list(DEFAULT_CLIENTS)
        if concurrency is not None:
            clients = [int(n) for n in _numbers("concurrency", concurrency, MAX_CLIENTS, whole=True)]
        return tuple(
            Level(n, None, num_requests or max(LEAST_REQUESTS, REQUESTS_PER_CLIENT * n), max_seconds)
            for n in clients
        )
    if concurrency is not None:
        raise ConfigError("give --concurrency or --rate: clients that wait for answers, or arrivals")
    return tuple(
        Level(None, r, num_requests or max(LEAST_REQUESTS, math.ceil(SECONDS_OF_ARRIVALS * r)), max_seconds)
        for r in _numbers("rate", rate, MAX_RATE, whole=False)
    )


def _numbers(name: str, text: str, most: int, *, whole: bool) -> Iterator[float]:
    """The numbers between the commas of a flag."""
    for part in text.split(","):
        try:
            number = float(int(part) if whole else float(part))
        except ValueError:
            number = math.nan
        if not 0 < number <= most:
            kind = "whole numbers" if whole else "numbers"
            raise ConfigError(
                f"{name} must be {kind} above 0, at most {most}, with commas between; got {text!r}"
            )
        yield number


def _refuse_beside_url(shape: list[str] | None, flags: dict[str, Any]) -> None:
    given = [name for name, value in flags.items() if value is not None]
    if shape:
        given.append("shape")
    if given:
        raise ConfigError(
            f"{given[0]} is for the engine in place; with --url the server has its own settings"
        )


def _bench_engine(names: Sequence[str], config: EngineConfig, plan: Plan) -> list[Figures]:
    """One model after the other, so that each has the machine to itself."""
    from pocketlm.bench.engine_target import engine_target
    from pocketlm.bench.sweep import sweep
    from pocketlm.loading import load_model

    async def run() -> list[Figures]:
        _say(plan)  # in the event loop: Ctrl-C while asyncio makes one leaves a traceback
        figures: list[Figures] = []
        for name in names:
            note(f"loading {name} ...")
            async with engine_target(load_model(name, config)) as target:
                with _progress(name) as watch:
                    figures += await sweep(target, plan, watch)
        return figures

    return asyncio.run(run())


async def _bench_server(url: str, api_key: str | None, names: Sequence[str], plan: Plan) -> list[Figures]:
    from pocketlm.bench.server_target import ServerTarget, first_model, server_client
    from pocketlm.bench.sweep import sweep

    results = []
    async with server_client(url, api_key) as client:
        names = names or [await first_model(client)]
        note(f"the server at {url}: {', '.join(names)}")
        _say(plan)
        for name in names:
            target = ServerTarget(client, name)
            await target.settle_extras()
            if not target.ignores_eos:
                note(f"{name}: the server does not know ignore_eos, so answers may be shorter")
            if not target.counts_tokens:
                note(f"{name}: the server does not count tokens, so each event counts as one")
            with _progress(name) as watch:
                results += await sweep(target, plan, watch)
    return results


def _say(plan: Plan) -> None:
    for line in plan.described():
        note(line)


@contextmanager
def _progress(name: str) -> Iterator[Watch]:
    """A bar for each level on a terminal, a line where there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def watch(level: Level) -> Callable[[], None]:
            if progress.disable:
                note(f"{name}: {level} ...")
            task = progress.add_task(f"{name}, {level}", total=level.num_requests)
            return lambda: progress.advance(task)

        yield watch


def _print(results: Sequence[Figures]) -> None:
    """A table for each model, in parts where the terminal is too narrow for all levels."""
    from rich.console import Console

    from pocketlm.cli.bench_table import by_model, rows

    width = Console().width if sys.stdout.isatty() else sys.maxsize
    for model, levels in by_model(results).items():
        print(model)
        while levels:
            num_shown = len(levels)
            while num_shown > 1 and _width(rows(levels[:num_shown])) > width:
                num_shown -= 1
            print_table(_aligned(rows(levels[:num_shown])))
            levels = levels[num_shown:]
            print()


def _width(table: Sequence[tuple[str, ...]]) -> int:
    return sum(max(map(len, column)) + 2 for column in zip(*table, strict=True))


def _aligned(table: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Figures to the right of their columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *cells in table:
        yield (name, *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)))


def _write_page(path: Path, results: Sequence[Figures], settings: Sequence[str]) -> None:
    from pocketlm.cli.bench_page import bench_page

    try:
        path.write_text(bench_page(results, settings), encoding="utf-8")
    except OSError as error:
        raise PocketLMError(f"cannot write {path}: {error.strerror}") from None
    note(f"wrote {path}")
