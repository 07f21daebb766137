"""pocketlm explore: what a prompt becomes with other sampling parameters, side by side."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from pocketlm.cli.flags import config_flags
from pocketlm.cli.output import configure_logging, note, print_json
from pocketlm.config import EngineConfig, load_config

# But for the length, those of `generate`.
BASE: dict[str, Any] = {"temperature": 0.7, "max_tokens": 30, "top_k": 50}
VALUES: dict[str, list[Any]] = {
    "temperature": [0.1, 0.7, 1.0, 1.5],
    "max_tokens": [10, 30, 60],
    "top_k": [1, 10, 50, 0],
    "top_p": [0.3, 0.6, 0.9, 1.0],
}


@config_flags(EngineConfig)
def explore(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    *,
    model: Annotated[
        str | None, typer.Option(help="bundled, a local folder, a Hugging Face Hub id or shape:NAME.")
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Compare these; may be given many times. Default: 0.1 0.7 1.0 1.5."),
    ] = None,
    max_tokens: Annotated[
        list[int] | None,
        typer.Option(help="Compare these numbers of new tokens; many times. Default: 10 30 60."),
    ] = None,
    top_k: Annotated[
        list[int] | None, typer.Option(help="Compare these; many times; 0 = all. Default: 1 10 50 0.")
    ] = None,
    top_p: Annotated[
        list[float] | None, typer.Option(help="Compare these; many times. Default: 0.3 0.6 0.9 1.0.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every answer; drawn if absent, and shown.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    flags: dict[str, Any],
) -> None:
    """Show what the sampling parameters do with a prompt.

    Its tokens, what may come next at each temperature, and answers over temperatures, lengths, top-k and
    top-p.
    """
    configure_logging(logging.WARNING)
    [name, *_], engine_config, _ = load_config({"model": model and [model], **flags})

    from pocketlm.cli.exploration import explore_prompt, varied
    from pocketlm.cli.exploration_view import print_exploration
    from pocketlm.llm import LLM
    from pocketlm.sampling import SamplingParams

    given = {"temperature": temperature, "max_tokens": max_tokens, "top_k": top_k, "top_p": top_p}
    base = SamplingParams(**BASE, seed=secrets.randbits(32) if seed is None else seed)
    experiments = varied(base, {name: given[name] or VALUES[name] for name in VALUES})
    note(f"loading {name} ...")
    llm = LLM(name, **engine_config.model_dump())
    exploration = explore_prompt(llm, prompt, base, experiments, _progress)
    if json:
        print_json(exploration.as_json())
    else:
        print_exploration(exploration)


def _progress(parameters: Iterable[str]) -> Iterator[str]:
    """A bar on stderr while the parameters go by; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        list(parameters), "answering", console=console, transient=True, disable=not console.is_terminal
    )
